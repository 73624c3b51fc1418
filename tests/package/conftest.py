"""The files of a release, built once per run."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def dist() -> Path:
    """Build all files of a release and return their directory."""
    subprocess.run([ROOT / "scripts/package"], check=True)
    return ROOT / "dist"
