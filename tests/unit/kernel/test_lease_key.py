"""The key that signs the lease of a host is created once, has mode 0600, and belongs to an owner."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pyflannel.errors import TargetError
from pyflannel.kernel.host.lease_key import lease_key, public_lease_key


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state/lease-key.json"


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def test_a_key_is_made_once_and_kept(path: Path) -> None:
    first = lease_key(path, "a")

    assert lease_key(path, "a") == first
    private = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(first.private.reveal()))
    assert private.public_key().public_bytes_raw() == first.public


@pytest.mark.usefixtures("open_umask")
def test_no_other_user_may_read_it_at_any_moment(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []
    real = os.open

    def watched(name: str, flags: int, mode: int = 0o777, **more: int) -> int:
        descriptor = real(name, flags, mode, **more)
        if "lease-key" in str(name):
            opened.append(stat.S_IMODE(os.fstat(descriptor).st_mode))
        return descriptor

    monkeypatch.setattr(os, "open", watched)
    lease_key(path, "a")

    assert opened == [0o600]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_another_owner_gets_another_key(path: Path) -> None:
    """On a clone, the disk has the key of the original host."""
    assert lease_key(path, "a").public != lease_key(path, "b").public


@pytest.mark.parametrize("text", ["", "{}", "[" * 5000, '{"Owner":"a","Private":"00","Public":"zz"}', "\xff"])
def test_a_damaged_file_is_not_replaced(path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    """Operators may have allowed the key, and can restore the file."""
    lease_key(path, "a")
    path.write_bytes(text.encode("latin-1"))

    with pytest.raises(TargetError, match="contains no key"):
        lease_key(path, "a")
    assert public_lease_key(path, "a") is None
    assert str(path) in caplog.text
    assert path.read_bytes() == text.encode("latin-1")


def test_a_file_that_others_may_read_is_not_used(path: Path) -> None:
    lease_key(path, "a")
    path.chmod(0o640)

    with pytest.raises(TargetError, match="its mode is 0640, so other users may know the key"):
        lease_key(path, "a")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: a file of another user")
def test_a_file_of_another_user_is_not_used(path: Path) -> None:
    lease_key(path, "a")
    os.chown(path, 12345, -1)

    with pytest.raises(TargetError, match="its owner is user 12345"):
        lease_key(path, "a")


def test_a_path_that_is_not_a_file_is_not_used(path: Path) -> None:
    path.mkdir(parents=True)

    with pytest.raises(TargetError, match="not a regular file"):
        lease_key(path, "a")


def test_without_the_library_the_reason_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = path.parent.parent / "cryptography.py"
    broken.write_text("import no_such_library")
    monkeypatch.syspath_prepend(broken.parent)

    with pytest.raises(TargetError, match="No module named 'no_such_library'") as raised:
        lease_key(path, "a")

    assert raised.value.hint == "Install the Python package cryptography."
    assert not path.exists()
