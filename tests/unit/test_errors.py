"""How an error is shown: its message and its hint, as sentences."""

import errno

import pytest

from pyflannel.errors import TargetError, in_words, is_permanent, sentences, target_errors


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("no route to 10.0.0.1", "no route to 10.0.0.1. Add one."),
        ("is 10.0.0.1 a copy of this host?", "is 10.0.0.1 a copy of this host? Add one."),
        ("Device or resource busy.", "Device or resource busy. Add one."),
        ("it goes on …", "it goes on … Add one."),
        ("nft: syntax error!\n", "nft: syntax error! Add one."),
        ("nft: syntax error\n", "nft: syntax error. Add one."),
    ],
)
def test_message_and_hint_are_joined_by_one_mark(message: str, shown: str) -> None:
    """A message may quote another program, whose text ends as it likes."""
    assert sentences(message, "Add one.") == shown
    assert TargetError(message, hint="Add one.").in_full == shown


def test_without_a_hint_the_message_stays_as_it_is() -> None:
    assert sentences("is it a copy?", "") == "is it a copy?"
    assert sentences("no route", "") == "no route"


TEMPORARY = (
    "EAGAIN EBUSY ENOBUFS ENOMEM EMFILE ENFILE EINTR EIO ENOSPC ENETDOWN ENETUNREACH ENODEV EADDRINUSE"
)
PERMANENT = "EPERM EACCES EROFS EOPNOTSUPP ENOSYS EINVAL ENOENT EEXIST EISDIR ENOTDIR"


@pytest.mark.parametrize("code", [*(getattr(errno, name) for name in TEMPORARY.split()), 9999, None])
def test_what_may_end_by_itself_is_temporary(code: int | None) -> None:
    """So is what is not known: a needless try costs little, a try that never comes a host."""
    assert not is_permanent(code)


@pytest.mark.parametrize("code", [getattr(errno, name) for name in PERMANENT.split()])
def test_what_somebody_must_change_is_permanent(code: int) -> None:
    assert is_permanent(code)


def test_what_the_system_refuses_within_a_boundary_is_a_target_error_that_names_it() -> None:
    with pytest.raises(TargetError) as raised, target_errors("the file cannot be read", hint="Look at it."):
        raise OSError(errno.EACCES, "Permission denied", "/run/x")

    assert str(raised.value) == "the file cannot be read: EACCES: Permission denied (/run/x)"
    assert raised.value.hint == "Look at it."
    assert raised.value.is_permanent


def test_an_error_of_the_system_without_a_number_is_told_in_its_words() -> None:
    assert in_words(OSError("libbpf.so.1: cannot open shared object file")).startswith("libbpf.so.1")
