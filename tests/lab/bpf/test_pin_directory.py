"""root mounts the bpffs for pins only in the directory of the daemon, and at no other place."""

import asyncio
import os
import subprocess
from contextlib import ExitStack

import pytest

from pyflannel.assembly.directories import Places
from pyflannel.commands.preparation import create_pins
from pyflannel.errors import TargetError
from pyflannel.kernel.bpf.pins import is_bpffs, pin_directory, remove_pin_directory


def test_a_symlink_in_place_of_the_directory_is_not_followed(tmp_path):
    """A compromised daemon cannot let root mount a file system over a directory of the host."""
    run_dir, target = tmp_path / "run", tmp_path / "etc"
    run_dir.mkdir()
    target.mkdir()
    places = Places(run_dir=run_dir)
    places.bpf.symlink_to(target)

    with ExitStack() as unmount:
        unmount.callback(lambda: os.path.ismount(target) and subprocess.run(["umount", target], check=True))
        with pytest.raises(TargetError, match=r"\.bpf is not a directory"):
            asyncio.run(create_pins(places))

        assert not os.path.ismount(target)
    assert places.bpf.is_symlink()


def test_pins_reach_the_mounted_bpffs_after_its_place_was_exchanged(tmp_path):
    """The daemon may replace the directory. Pins still reach the file system that root mounted."""
    place, elsewhere = tmp_path / "bpf", tmp_path / "elsewhere"
    elsewhere.mkdir()

    with pin_directory(str(place)) as directory:
        mounted = os.stat(place).st_dev
        subprocess.run(["umount", "--lazy", place], check=True)
        place.rmdir()
        place.symlink_to(elsewhere)

        assert os.stat(directory).st_dev == mounted


def test_a_bpffs_that_is_mounted_already_is_used(tmp_path):
    place = str(tmp_path / "parent" / "bpf")

    with pin_directory(place) as first:
        device = os.stat(first).st_dev
    with pin_directory(place) as second:
        assert os.stat(second).st_dev == device
    assert is_bpffs(place)

    assert remove_pin_directory(place)
    assert not os.path.exists(place)
