"""Command lines and environments as Go's flag library reads them, and the value that counts for each flag."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pyflannel.errors import UsageError
from pyflannel.model.store_record import Secret

# Command lines and environments as Go's flag library reads them.
#
# `-name` and `--name` are one; `--name=value` and `--name value` are one, except that a boolean takes its
# value only after `=`; the first word that is no flag, or `--`, ends the flags. argparse reads other
# languages: there a value may not begin with a dash, a boolean takes the next word, and flags go on after
# arguments.
#
# Source: Go 1.19, package flag; numbers as strconv.ParseInt reads them with base 0.

_BOOLEANS = {
    **dict.fromkeys(("1", "t", "T", "true", "TRUE", "True"), True),
    **dict.fromkeys(("0", "f", "F", "false", "FALSE", "False"), False),
}
_OCTAL = re.compile(r"([+-]?)0_?([0-7]+(?:_[0-7]+)*)")
_INTEGER = re.compile(
    r"[+-]?(?:0[xX](?:_?[0-9a-fA-F])+|0[oO](?:_?[0-7])+|0[bB](?:_?[01])+|0|[1-9](?:_?[0-9])*)"
)
_LONGEST = 200
"""Characters: more than a number of 64 bits has, with a sign, a base and underscores."""

Value = str | int | bool | Secret


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """A flag there is.

    Attributes:
        name: without dashes.
        kind: what its value is read as; a secret is a text that is never shown.
        default: the value when it is not given, as it would be written.
        meaning: half a sentence for the usage.
        from_environment: False for a flag that only the command line can give.
    """

    name: str
    kind: Literal["text", "integer", "boolean", "secret"] = "text"
    default: str = ""
    meaning: str
    from_environment: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """A flag that was given.

    Attributes:
        origin: how it was written: `--iface`, or the variable's name.
    """

    flag: Flag
    value: Value
    origin: str

    @property
    def number(self) -> int:
        """The value, where the flag is of the kind integer."""
        return int(str(self.value))


def default_of(flag: Flag) -> Given:
    """Return the flag as if its default had been written."""
    origin = f"--{flag.name}"
    text = flag.default or {"integer": "0", "boolean": "false"}.get(flag.kind, "")
    return Given(flag=flag, value=_read(flag, text, origin), origin=origin)


def read_words(flags: Iterable[Flag], words: Sequence[str]) -> tuple[list[Given], list[str]]:
    """Return the flags that `words` give, in their order, and the words after them.

    Raises:
        UsageError: a flag that is not there, that has no value, or whose value does not suit its kind.
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
            raise UsageError(f"{word!r} is no flag", hint="Write --NAME=VALUE.")
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
    """Return the flags that variables such as `PREFIX_IP_MASQ` give; empty ones give nothing.

    Raises:
        UsageError: a value does not suit the flag's kind.
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
                    f"{origin}={text!r} is no boolean", hint=f"Write {origin}=true or {origin}=false."
                )
            return _BOOLEANS[text]
        case "integer":
            number = _read_integer(text)
            if number is None:
                raise UsageError(
                    f"{origin}={text[:60]!r} is no integer",
                    hint=f"Write {origin}={flag.default or 0}, for example.",
                )
            return number


def _read_integer(text: str) -> int | None:
    """Return the integer of at most 64 bits that Go reads in the text (strconv.ParseInt, base 0), or None."""
    if octal := _OCTAL.fullmatch(text):
        number = int(octal[1] + octal[2], 8)
    elif len(text) <= _LONGEST and _INTEGER.fullmatch(text):
        number = int(text, 0)
    else:
        return None
    return number if -(1 << 63) <= number < 1 << 63 else None


def _suggestion(name: str, names: Collection[str]) -> str:
    from difflib import get_close_matches  # not at the top: every daemon would keep 150 KiB for it

    close = get_close_matches(name.lower(), names, n=1)
    return f"Write --{close[0]}." if close else "See --help for the flags there are."


ENVIRONMENT_PREFIX = "FLANNELD"


class Settings:
    """The flags that were written and, for those that were not, their variables."""

    def __init__(
        self, flags: Sequence[Flag], written: Sequence[Given], environment: Mapping[str, str]
    ) -> None:
        self._flags = {flag.name: flag for flag in flags}
        self.on_command_line = {given.flag.name for given in written}
        others = [flag for flag in flags if flag.name not in self.on_command_line]
        self._given = [*written, *read_environment(others, environment, ENVIRONMENT_PREFIX)]

    def all(self, name: str) -> list[Given]:
        """Return everything given for the flag, in its order."""
        return [given for given in self._given if given.flag.name == name]

    def last(self, name: str) -> Given:
        """Return what counts for a flag that is not repeated; its default when it was not given."""
        return (self.all(name) or [default_of(self._flags[name])])[-1]
