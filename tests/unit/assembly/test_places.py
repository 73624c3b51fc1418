"""What a daemon's directories say of it."""

from pathlib import Path

import pytest

from pyflannel.assembly.places import Places


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

    assert places.of_network("blue", tmp_path / "networks").bpf == places.bpf == tmp_path / "bpf"
