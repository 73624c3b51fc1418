"""The signature of a release, by the commands of the guide, and the completeness of its lists of packages."""

import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from testlab.console import command_blocks

TOOLS = ("gpg", "help2man")
missing = next((tool for tool in TOOLS if not shutil.which(tool)), None)
pytestmark = [
    pytest.mark.skipif(missing is not None, reason=f"no {missing}"),
    pytest.mark.timeout(3600),
]


@pytest.fixture
def downloaded(dist: Path, signing_home: Path, tmp_path: Path) -> Path:
    """The directory of a user with one package, the checksums, their signature and the key."""
    directory = tmp_path / "downloaded"
    directory.mkdir()
    package = next(dist.glob("*.deb"))
    for file in (package, dist / "SHA256SUMS", dist / "SHA256SUMS.asc"):
        shutil.copy(file, directory)
    export = ["gpg", "--homedir", signing_home, "--armor", "--export"]
    (directory / "KEY.asc").write_bytes(subprocess.check_output(export))
    return directory


def check(directory: Path) -> "subprocess.CompletedProcess[str]":
    """Run the commands of the guide as a user without keys."""
    (block,) = command_blocks("docs/guides/install.md", "Check the signature")
    home = directory.parent / "home"
    home.mkdir(mode=0o700, exist_ok=True)
    environment = os.environ | {"GNUPGHOME": str(home), "LC_ALL": "C"}
    command = ["bash", "-ec", block]
    return subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, check=False
    )


def test_the_guide_accepts_the_files_of_the_release(downloaded: Path) -> None:
    done = check(downloaded)

    assert done.returncode == 0, done.stderr
    assert "Good signature" in done.stderr
    assert ".deb: OK" in done.stdout


@pytest.mark.parametrize(
    ("altered", "complaint"), [("*.deb", "did NOT match"), ("SHA256SUMS", "BAD signature")]
)
def test_the_guide_refuses_altered_files(downloaded: Path, altered: str, complaint: str) -> None:
    (file,) = downloaded.glob(altered)
    with file.open("a") as opened:
        opened.write("# altered\n")

    done = check(downloaded)

    assert done.returncode != 0
    assert complaint in done.stderr


def components(sbom: Path) -> set[tuple[str, str]]:
    listed = json.loads(sbom.read_text())["components"]
    return {(one["name"].lower().replace("_", "-"), one["version"]) for one in listed}


def test_the_list_of_a_debian_package_names_each_python_package_in_it(dist: Path, tmp_path: Path) -> None:
    packages = list(dist.glob("*.deb"))
    assert packages
    for package in packages:
        root = tmp_path / package.name
        subprocess.run(["dpkg-deb", "--extract", package, root], check=True)
        found = {
            (name.lower().replace("_", "-"), version)
            for path in root.rglob("*.dist-info")
            for name, version in [path.stem.split("-", 1)]
            if name != "pyflannel"
        }

        assert found
        assert components(dist / f"{package.stem}.cdx.json") == found
        assert components(root / "usr/share/doc/pyflannel/sbom.cdx.json") == found


def test_the_list_of_the_cni_plugin_names_the_packages_of_its_interpreter_and_libraries(dist: Path) -> None:
    (archive,) = dist.glob("flannel-cni-*.tar.gz")
    sbom = dist / archive.name.replace(".tar.gz", ".cdx.json")

    listed = {name for name, _ in components(sbom)}

    with tarfile.open(archive) as opened:
        libraries = {name for name in opened.getnames() if "/lib/lib" in name and ".so" in name}
    assert "libc6" in listed
    assert any(name.startswith("python3") and name.endswith("-minimal") for name in listed)
    assert libraries
    for library in libraries:
        owners = subprocess.check_output(["dpkg-query", "--search", f"*/{Path(library).name}"], text=True)
        names = {line.split(":")[0] for line in owners.splitlines()}
        assert names & listed, library
