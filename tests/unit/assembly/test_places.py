"""What a daemon's directories say of it."""

from pathlib import Path

import pytest

from pyflannel.assembly.directories import Places
from pyflannel.assembly.options import parse_flanneld
from pyflannel.errors import UsageError


@pytest.mark.parametrize(
    ("text", "name"), [("flannel3\n", "flannel3"), ("", None), ("eth0", None), ("flannel0\nx", None)]
)
def test_the_name_that_was_claimed_last_is_kept(tmp_path: Path, text: str, name: str | None) -> None:
    """What is no name of ours is not believed."""
    places = Places(run_dir=tmp_path)
    assert places.device() is None
    places.device_file.write_text(text)

    assert places.device() == name


def test_several_networks_share_the_place_of_pins(tmp_path: Path) -> None:
    """It is mounted before anybody knows their names."""
    places = Places(run_dir=tmp_path)

    blue = places.of_network("blue", tmp_path / "networks")
    assert blue.bpf == places.bpf
    assert blue.run_dir.parent == places.bpf.parent
    with pytest.raises(UsageError, match="networks"):
        parse_flanneld([f"--networks={places.bpf.name}"], {})


def test_one_of_several_networks_is_told_by_the_names_of_its_places(tmp_path: Path) -> None:
    """A daemon with places of such names has an identity in them."""
    daemon = Places(run_dir=tmp_path, state_dir=tmp_path / "state", subnet_file=tmp_path / "subnet.env")
    made = daemon.of_network("blue", tmp_path / "networks")
    named = Places(run_dir=made.run_dir, state_dir=made.state_dir, subnet_file=made.subnet_file)
    assert (daemon.network, named.network) == (None, "blue")

    named.state_dir.mkdir(parents=True)
    named.identity.touch()

    assert named.network is None
