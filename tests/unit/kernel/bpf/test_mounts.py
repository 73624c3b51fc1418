"""The mounts in /proc/PID/mountinfo, whose paths a user may choose."""

import pytest

from pyflannel.kernel.bpf.pins import Mount, mounts_in

BPFFS = b"31 24 0:27 / /sys/fs/bpf rw shared:9 - bpf bpf rw,mode=700\n"


@pytest.mark.parametrize("character", [b"\r", b"\x0b", b"\x1c", b"\x85", b"\xff", "\u2028".encode()])
def test_a_path_may_contain_a_character_that_ends_a_line_for_python(character: bytes) -> None:
    odd = b"77 24 0:50 / /home/a" + character + b"b rw,nosuid - fuse.x fs rw\n"

    found = list(mounts_in(odd + BPFFS))

    assert [mount.kind for mount in found] == ["fuse.x", "bpf"]
    assert found[1] == Mount("0:27", "/sys/fs/bpf", "bpf")


def test_escaped_characters_are_restored() -> None:
    (mount,) = mounts_in(rb"77 24 0:50 / /a\040b\134c rw - bpf bpf rw")

    assert mount.place == "/a b\\c"
