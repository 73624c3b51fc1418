"""The directories and files of a daemon."""

from pathlib import Path

import pytest

from pyflannel.assembly.directories import Places
from pyflannel.assembly.options import parse_flanneld
from pyflannel.errors import UsageError


@pytest.mark.parametrize(
    ("text", "name"), [("flannel3\n", "flannel3"), ("", None), ("eth0", None), ("flannel0\nx", None)]
)
def test_the_device_name_that_was_claimed_last_is_known(tmp_path: Path, text: str, name: str | None) -> None:
    """An invalid name in the file is ignored."""
    places = Places(run_dir=tmp_path)
    assert places.device() is None
    places.device_file.write_text(text)

    assert places.device() == name


def test_several_networks_share_the_directory_of_pins(tmp_path: Path) -> None:
    """The directory is mounted before the names of the networks are known."""
    places = Places(run_dir=tmp_path)

    blue = places.of_network("blue", tmp_path / "networks")
    assert blue.bpf == places.bpf
    assert blue.run_dir.parent == places.bpf.parent
    with pytest.raises(UsageError, match="networks"):
        parse_flanneld([f"--networks={places.bpf.name}"], {})


def test_the_places_of_one_of_several_networks_are_recognised_by_their_names(tmp_path: Path) -> None:
    """A daemon with places of such names is told apart by its identity file."""
    daemon = Places(run_dir=tmp_path, state_dir=tmp_path / "state", subnet_file=tmp_path / "subnet.env")
    made = daemon.of_network("blue", tmp_path / "networks")
    named = Places(run_dir=made.run_dir, state_dir=made.state_dir, subnet_file=made.subnet_file)
    assert (daemon.network, named.network) == (None, "blue")

    named.state_dir.mkdir(parents=True)
    named.identity.touch()

    assert named.network is None
