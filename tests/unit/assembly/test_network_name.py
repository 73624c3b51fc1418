"""The allowed names of several networks in one daemon."""

import re
from pathlib import Path

import pytest

from pyflannel.assembly.directories import Places, file_in_the_way, objection
from pyflannel.assembly.options import parse_flanneld
from pyflannel.errors import UsageError

ROOT = Path(__file__).parents[3]
DOCUMENTED = re.findall(
    r"^\| `([^`]+)` \|",
    (ROOT / "docs/reference/files.md").read_text().partition("## The run directory")[2],
    re.MULTILINE,
)


@pytest.mark.parametrize("name", ["blue", "docker", "networks", "Device", "a.b-c_1", "7"])
def test_allowed_names(name: str) -> None:
    assert objection(name) is None


@pytest.mark.parametrize(
    "name",
    [
        "subnets",
        "claims",
        "subnet.env",
        "identity.json.corrupt",
        "",
        "..",
        "a/b",
        "a\0b",
        *DOCUMENTED,
    ],
)
def test_refused_names(name: str) -> None:
    """Refused names are keys of flannel in the store, or files of flanneld beside directories of networks."""
    assert objection(name) is not None


def test_the_files_of_both_directories_are_documented() -> None:
    assert {"device", "flanneld.lock", "forwarder.log", "identity.json", "last-known.json"} <= {*DOCUMENTED}


def test_flanneld_reports_why_a_name_is_refused() -> None:
    with pytest.raises(
        UsageError, match=r"'device' cannot be the name of a network: a file of flanneld has this name"
    ):
        parse_flanneld(["--networks=blue,device"], {})


@pytest.mark.parametrize("directory", ["run", "state"])
def test_a_foreign_file_at_the_path_of_a_network_is_found(tmp_path: Path, directory: str) -> None:
    places = Places(run_dir=tmp_path / "run", state_dir=tmp_path / "state")
    path = tmp_path / directory / "docker"
    path.parent.mkdir()
    assert file_in_the_way("docker", places) is None

    path.touch()
    assert file_in_the_way("docker", places) == path

    path.unlink()
    path.mkdir()
    assert file_in_the_way("docker", places) is None
