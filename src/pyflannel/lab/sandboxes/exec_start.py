"""How systemd turns a unit's EnvironmentFile and ExecStart into a command.

Source: systemd.exec(5), EnvironmentFile; systemd.service(5), Command lines.
"""

import re
import shlex
from collections.abc import Mapping

_ASSIGNMENT = re.compile(r"\s*(?P<name>[A-Za-z_][A-Za-z0-9_]*)=(?P<value>.*)")
_BRACED = re.compile(r"\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)\}")
_WHOLE_WORD = re.compile(r"\$(?P<name>[A-Za-z_][A-Za-z0-9_]*)")


def read_environment_file(text: str) -> dict[str, str]:
    """Return the variables of an EnvironmentFile: quotes are taken off, nothing is expanded.

    Comments and whatever else is no assignment are passed over.
    """
    variables = {}
    for line in text.splitlines():
        if match := _ASSIGNMENT.fullmatch(line):
            variables[match["name"]] = _unquoted(match["value"].strip())
    return variables


def expand(exec_start: str, variables: Mapping[str, str]) -> list[str]:
    """Return the words of a command line.

    `${NAME}` stands for the value as it is, also within a word. `$NAME` as a word of its own is split at
    white space into none, one or several words. A variable that is not set is empty.
    """
    words = []
    for word in shlex.split(exec_start):
        if match := _WHOLE_WORD.fullmatch(word):
            words += shlex.split(variables.get(match["name"], ""))
        else:
            words.append(_BRACED.sub(lambda found: variables.get(found["name"], ""), word))
    return words


def _unquoted(value: str) -> str:
    if len(value) >= 2 and value[0] == value[-1] and value[0] in "'\"":
        return value[1:-1]
    return value
