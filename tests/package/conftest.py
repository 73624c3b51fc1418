"""The files of a release, built once per run."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def dist() -> Path:
    """Build all files of a release, for each architecture, and return their directory."""
    subprocess.run([ROOT / "scripts/package", "--arch", "amd64", "--arch", "arm64"], check=True)
    return ROOT / "dist"
