"""The options of flanneld for a command line, or the message that refuses it."""

from collections.abc import Mapping

import pytest

from pyflannel.assembly.options import FlanneldOptions, parse_flanneld
from pyflannel.errors import UsageError


def options(*arguments: str, environment: Mapping[str, str] | None = None) -> FlanneldOptions:
    parsed = parse_flanneld(arguments, environment or {})
    assert isinstance(parsed, FlanneldOptions)
    return parsed


def refusal(*arguments: str, environment: Mapping[str, str] | None = None) -> str:
    with pytest.raises(UsageError) as caught:
        parse_flanneld(arguments, environment or {})
    line = f"{caught.value}: {caught.value.hint}"
    assert len(line.splitlines()) == 1
    return line
