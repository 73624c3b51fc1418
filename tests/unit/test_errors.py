"""Errors are shown as sentences of message and hint. System errors are temporary or permanent."""

import errno
from pathlib import Path

import pytest

from pyflannel.errors import TargetError, in_words, is_permanent, sentences, target_errors


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("no route to 10.0.0.1", "no route to 10.0.0.1. Add one."),
        ("is 10.0.0.1 a copy of this host?", "is 10.0.0.1 a copy of this host? Add one."),
        ("Device or resource busy.", "Device or resource busy. Add one."),
        ("it continues …", "it continues … Add one."),
        ("nft: syntax error!\n", "nft: syntax error! Add one."),
        ("nft: syntax error\n", "nft: syntax error. Add one."),
    ],
)
def test_message_and_hint_are_joined_by_one_punctuation_mark(message: str, shown: str) -> None:
    """A message may end with the text of another program, with or without punctuation."""
    assert sentences(message, "Add one.") == shown
    assert TargetError(message, hint="Add one.").in_full == shown


def test_without_a_hint_the_message_is_unchanged() -> None:
    assert sentences("is it a copy?", "") == "is it a copy?"
    assert sentences("no route", "") == "no route"


TEMPORARY = (
    "EAGAIN EBUSY ENOBUFS ENOMEM EMFILE ENFILE EINTR EIO ENOSPC ENETDOWN ENETUNREACH ENODEV EADDRINUSE"
)
PERMANENT = "EPERM EACCES EROFS EOPNOTSUPP ENOSYS EINVAL ENOENT EEXIST EISDIR ENOTDIR"


@pytest.mark.parametrize("code", [*(getattr(errno, name) for name in TEMPORARY.split()), 9999, None])
def test_an_error_that_may_disappear_by_itself_is_temporary(code: int | None) -> None:
    """An unknown error is temporary too. A needless retry costs less than a missing retry."""
    assert not is_permanent(code)


@pytest.mark.parametrize("code", [getattr(errno, name) for name in PERMANENT.split()])
def test_an_error_that_needs_an_operator_is_permanent(code: int) -> None:
    assert is_permanent(code)


def test_a_system_error_inside_a_boundary_is_a_target_error_with_its_cause() -> None:
    with pytest.raises(TargetError) as raised, target_errors("the file cannot be read", hint="Look at it."):
        raise OSError(errno.EACCES, "Permission denied", "/run/x")

    assert str(raised.value) == "the file cannot be read: EACCES: Permission denied (/run/x)"
    assert raised.value.hint == "Look at it."
    assert raised.value.is_permanent


def test_a_system_error_without_an_errno_is_shown_by_its_text() -> None:
    assert in_words(OSError("libbpf.so.1: cannot open shared object file")).startswith("libbpf.so.1")


def test_a_file_that_cannot_be_renamed_is_reported_with_its_new_name(tmp_path: Path) -> None:
    """The old name is that of a temporary file."""
    (tmp_path / "subnet.env").mkdir()
    (tmp_path / ".new").touch()

    with pytest.raises(IsADirectoryError) as raised:
        (tmp_path / ".new").replace(tmp_path / "subnet.env")

    assert in_words(raised.value) == f"EISDIR: Is a directory ({tmp_path}/subnet.env)"
