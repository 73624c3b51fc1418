"""What a daemon's directories say of it."""

from pathlib import Path

import pytest

from pyflannel.assembly.options import parse_flanneld
from pyflannel.assembly.places import Places
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
