"""The files of a release, built once per run."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SIGNER = "signer@example.org"


@pytest.fixture(scope="session")
def signing_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of GnuPG with the key that signs the release; empty without GnuPG."""
    home = tmp_path_factory.mktemp("gnupg")
    home.chmod(0o700)
    if shutil.which("gpg"):
        create = ["--batch", "--quiet", "--passphrase", "", "--quick-generate-key", SIGNER]
        subprocess.run(["gpg", "--homedir", home, *create], check=True)
    return home


@pytest.fixture(scope="session")
def dist(signing_home: Path) -> Path:
    """Build all files of a release, for each architecture, and return their directory."""
    command = [ROOT / "scripts/package", "--arch", "amd64", "--arch", "arm64"]
    if shutil.which("gpg"):
        command += ["--sign", SIGNER]
    subprocess.run(command, check=True, env=os.environ | {"GNUPGHOME": str(signing_home)})
    return ROOT / "dist"
