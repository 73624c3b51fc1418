"""root changes the owner of files to the user of flanneld only if flanneld created them."""

import os
import stat
from pathlib import Path

import pytest

from pyflannel.commands import preparation
from pyflannel.commands.preparation import User, give_files, user_named
from pyflannel.errors import UsageError

NOBODY = User("nobody", 65534, 65534)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: owners of files")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory of the user, with files of root in it."""
    directory = tmp_path / "flannel"
    (directory / "blue").mkdir(parents=True)
    for name in ("identity.json", "blue/device"):
        (directory / name).write_text("content")
    os.chown(directory, NOBODY.uid, NOBODY.gid)
    return directory


@needs_root
def test_files_of_root_get_the_user_as_owner(directory: Path) -> None:
    assert give_files(directory, NOBODY) == 3

    assert {path.stat().st_uid for path in directory.rglob("*")} == {NOBODY.uid}
    assert give_files(directory, NOBODY) == 0


@needs_root
def test_files_that_the_user_linked_into_the_directory_keep_their_owner(
    directory: Path, tmp_path: Path
) -> None:
    """A symbolic link is not followed, and a file with another name elsewhere keeps its owner."""
    secret, other = tmp_path / "secret", tmp_path / "other"
    secret.write_text("of root")
    other.mkdir()
    (other / "file").write_text("of root")
    (directory / "link").symlink_to(secret)
    (directory / "to directory").symlink_to(other)
    (directory / "hard link").hardlink_to(secret)

    give_files(directory, NOBODY)

    assert (secret.stat().st_uid, other.stat().st_uid, (other / "file").stat().st_uid) == (0, 0, 0)


@needs_root
@pytest.mark.parametrize("obstacle", ["a directory of root", "unprotected hard links"])
def test_no_file_gets_another_owner(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, obstacle: str
) -> None:
    """Another program uses the directory, or the user could add links to files of root."""
    if obstacle == "a directory of root":
        os.chown(directory, 0, 0)
    else:
        setting = tmp_path / "protected_hardlinks"
        setting.write_text("0\n")
        monkeypatch.setattr(preparation, "_PROTECTED_HARDLINKS", setting)

    assert give_files(directory, NOBODY) == 0
    assert (directory / "identity.json").stat().st_uid == 0


@needs_root
def test_the_group_may_lock_iptables_and_others_may_not(tmp_path: Path) -> None:
    lock = tmp_path / "xtables.lock"

    preparation._share_lock(lock, NOBODY)

    found = lock.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (0, NOBODY.gid, 0o640)


def test_a_missing_user_is_named() -> None:
    with pytest.raises(UsageError, match="the user flannel-missing does not exist"):
        user_named("flannel-missing")
