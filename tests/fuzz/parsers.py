"""The parsers of the property tests, by subject."""

from importlib import import_module

from doubles.hostile_inputs import Parser

SUBJECTS = ("store", "netlink", "packet", "host")


def parsers_of(subject: str) -> list[Parser]:
    """Return the parsers of one file of tests."""
    found: list[Parser] = import_module(f"property.test_{subject}_parsers").PARSERS
    return found
