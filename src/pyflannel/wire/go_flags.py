"""Reads command lines and environments in the same way as Go's flag library, and selects the value of each
flag.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Literal

from msgspec import Struct

from pyflannel.errors import UsageError
from pyflannel.model.store_record import Secret

# Reads command lines and environments in the same way as Go's flag library.
#
# `-name` equals `--name`. `--name=value` equals `--name value`, but a boolean takes a value only after `=`.
# The first word that is not a flag, or `--`, ends the flags. argparse has other rules: a value cannot begin
# with a dash, a boolean takes the next word, and flags can follow arguments.
#
# Source: Go 1.19, package flag; numbers are read in the same way as by strconv.ParseInt with base 0.

_BOOLEANS = {
    **dict.fromkeys(("1", "t", "T", "true", "TRUE", "True"), True),
    **dict.fromkeys(("0", "f", "F", "false", "FALSE", "False"), False),
}
_OCTAL = re.compile(r"([+-]?)0_?([0-7]+(?:_[0-7]+)*)")
_INTEGER = re.compile(
    r"[+-]?(?:0[xX](?:_?[0-9a-fA-F])+|0[oO](?:_?[0-7])+|0[bB](?:_?[01])+|0|[1-9](?:_?[0-9])*)"
)
_LONGEST = 200
"""Maximum length in characters: enough for a number of 64 bits with sign, base and underscores."""

Value = str | int | bool | Secret


class Flag(Struct, frozen=True, kw_only=True):
    """The definition of a flag.

    Attributes:
        name: without dashes.
        kind: type of its value; the type for a secret is a text that is never shown.
        default: the value if the flag is not given, as text.
        meaning: the description in the help text, without a full stop.
        from_environment: False if only the command line can set the flag.
    """

    name: str
    kind: Literal["text", "integer", "boolean", "secret"] = "text"
    default: str = ""
    meaning: str
    from_environment: bool = True


class Given(Struct, frozen=True, kw_only=True):
    """A given flag.

    Attributes:
        origin: the name as the user wrote it: `--iface`, or the name of the variable.
    """

    flag: Flag
    value: Value
    origin: str

    @property
    def number(self) -> int:
        """The value of a flag of the kind integer."""
        return int(str(self.value))


def default_of(flag: Flag) -> Given:
    """Return the flag with its default value, as if it were given."""
    origin = f"--{flag.name}"
    text = flag.default or {"integer": "0", "boolean": "false"}.get(flag.kind, "")
    return Given(flag=flag, value=_read(flag, text, origin), origin=origin)


def read_words(flags: Iterable[Flag], words: Sequence[str]) -> tuple[list[Given], list[str]]:
    """Return the flags in `words`, in the same order, and the words after the flags.

    Raises:
        UsageError: a flag is unknown, has no value, or has a value of the wrong type.
    """
    by_name = {flag.name: flag for flag in flags}
    given: list[Given] = []
    rest = list(words)
    while rest and rest[0].startswith("-") and rest[0] != "-":
        word = rest.pop(0)
        if word == "--":
            break
        name, equals, text = word[2 if word.startswith("--") else 1 :].partition("=")
        if not name or name.startswith("-"):
            raise UsageError(f"{word!r} is not a flag", hint="Write --NAME=VALUE.")
        flag = by_name.get(name)
        if flag is None:
            raise UsageError(f"unknown flag --{name}", hint=_suggestion(name, by_name))
        if not equals and flag.kind == "boolean":
            text = "true"
        elif not equals and not rest:
            raise UsageError(f"--{name} needs a value", hint=f"Write --{name}=VALUE.")
        elif not equals:
            text = rest.pop(0)
        given.append(Given(flag=flag, value=_read(flag, text, f"--{name}"), origin=f"--{name}"))
    return given, rest


def read_environment(flags: Iterable[Flag], environment: Mapping[str, str], prefix: str) -> list[Given]:
    """Return the flags from variables such as `PREFIX_IP_MASQ`. Empty variables are ignored.

    Raises:
        UsageError: a value has the wrong type.
    """
    given = []
    for flag in flags:
        variable = f"{prefix}_{flag.name.upper().replace('-', '_')}"
        if flag.from_environment and (text := environment.get(variable)):
            given.append(Given(flag=flag, value=_read(flag, text, variable), origin=variable))
    return given


def _read(flag: Flag, text: str, origin: str) -> Value:
    match flag.kind:
        case "text":
            return text
        case "secret":
            return Secret(text)
        case "boolean":
            if text not in _BOOLEANS:
                raise UsageError(
                    f"{origin}={text!r} is not a boolean", hint=f"Write {origin}=true or {origin}=false."
                )
            return _BOOLEANS[text]
        case "integer":
            number = _read_integer(text)
            if number is None:
                raise UsageError(
                    f"{origin}={text[:60]!r} is not an integer",
                    hint=f"Write {origin}={flag.default or 0}, for example.",
                )
            return number


def _read_integer(text: str) -> int | None:
    """Return the integer of at most 64 bits in the text, or None, in the same way as Go (strconv.ParseInt,
    base 0).
    """
    if octal := _OCTAL.fullmatch(text):
        number = int(octal[1] + octal[2], 8)
    elif len(text) <= _LONGEST and _INTEGER.fullmatch(text):
        number = int(text, 0)
    else:
        return None
    return number if -(1 << 63) <= number < 1 << 63 else None


def _suggestion(name: str, names: Collection[str]) -> str:
    from difflib import (
        get_close_matches,  # imported here, because at the top it would use 150 KiB in every daemon
    )

    close = get_close_matches(name.lower(), names, n=1)
    return f"Write --{close[0]}." if close else "See --help for all flags."


ENVIRONMENT_PREFIX = "FLANNELD"


class Settings:
    """The flags of the command line and the flags of the environment that the command line does not
    contain.
    """

    def __init__(
        self, flags: Sequence[Flag], written: Sequence[Given], environment: Mapping[str, str]
    ) -> None:
        self._flags = {flag.name: flag for flag in flags}
        self.on_command_line = {given.flag.name for given in written}
        others = [flag for flag in flags if flag.name not in self.on_command_line]
        self._given = [*written, *read_environment(others, environment, ENVIRONMENT_PREFIX)]

    def all(self, name: str) -> list[Given]:
        """Return all given values of the flag, in order."""
        return [given for given in self._given if given.flag.name == name]

    def last(self, name: str) -> Given:
        """Return the value of a flag that is not repeatable; the default if the flag was not given."""
        return (self.all(name) or [default_of(self._flags[name])])[-1]
