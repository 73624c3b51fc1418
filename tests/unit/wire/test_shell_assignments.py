"""Assignments are read as by a shell; text that needs a shell is refused."""

import shlex
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyflannel.errors import WireError
from pyflannel.wire.subnet_env import parse_assignments

NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True)
VALUES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


@pytest.mark.parametrize(
    ("text", "assigned"),
    [
        ("", {}),
        ("A=1\nB=2\n", {"A": "1", "B": "2"}),
        ("A=1", {"A": "1"}),
        ("A=1\nA=2\n", {"A": "2"}),
        ("A=\n", {"A": ""}),
        ("  \tA=1  \n", {"A": "1"}),
        ("# A=1\n\nB=2 # C=3\n", {"B": "2"}),
        ("A=1#2\n", {"A": "1#2"}),
        ("A='1 2'\n", {"A": "1 2"}),
        ("A='\n'\nB=2", {"A": "\n", "B": "2"}),
        ('A="1 2"\n', {"A": "1 2"}),
        ('A="\\$x \\" \\\\ \\n \\\n."\n', {"A": '$x " \\ \\n .'}),
        ("A=1' '2\"3\"\\ 4\n", {"A": "1 23 4"}),
        ("A=a=b\n", {"A": "a=b"}),
        ("A=$\nB=\"$\"\nC='$x`'\n", {"A": "$", "B": "$", "C": "$x`"}),
        ("export A=1\n", {"A": "1"}),
        ("export A='1 2' B C=3\n", {"A": "1 2", "C": "3"}),
        ("A=1 B=2; C=3\n", {"A": "1", "B": "2", "C": "3"}),
        ("A=1 export B=2\n", {"A": "1", "B": "2"}),
        ("A=1\\\n2\nB\\\n=3", {"A": "12", "B": "3"}),
        ("A=\\\n#1\n", {"A": "#1"}),
        ("A=1472\r\n", {"A": "1472\r"}),
        ("A=b=~\nB='~'\nC=x~\n", {"A": "b=~", "B": "~", "C": "x~"}),
        ("A=*?[x]{1,2}!\n", {"A": "*?[x]{1,2}!"}),
    ],
)
def test_reads_the_same_assignments_as_a_shell(text: str, assigned: dict[str, str]) -> None:
    assert parse_assignments(text) == assigned


@pytest.mark.parametrize(
    "text",
    [
        "A=$B\n",
        'A="${B}"\n',
        "A=$((1500-50))\n",
        "A=$(id)\n",
        "A=`id`\n",
        'A="`id`"\n',
        "A = 1\n",
        "A=1 id\n",
        "exit 3\n",
        "export\n",
        "export -p\n",
        "export A-B=1\n",
        "'A'=1\n",
        "''A=1\n",
        "1A=1\n",
        "A+=1\n",
        "A=~\n",
        "A=b:~\n",
        "A=1 & B=2\n",
        "A=1 | B=2\n",
        "A=1 > B\n",
        "(A=1)\n",
        "A=1;;\n",
        "if A=1; then B=2; fi\n",
    ],
)
def test_text_for_a_shell_is_refused_with_its_line(text: str) -> None:
    with pytest.raises(WireError, match=r"^line 3: .* needs a shell"):
        parse_assignments("# first\nX=1\n" + text)


@pytest.mark.parametrize("text", ["A='x\n", 'A="x\n', "A=1\n\nB='"])
def test_refuses_a_quote_that_is_not_closed(text: str) -> None:
    with pytest.raises(WireError, match="is not closed"):
        parse_assignments(text)


@given(assigned=st.dictionaries(NAMES, VALUES), exported=st.booleans())
def test_reads_back_every_quoted_value(assigned: dict[str, str], exported: bool) -> None:
    prefix = "export " if exported else ""
    text = "".join(f"{prefix}{name}={shlex.quote(value)}\n" for name, value in assigned.items())

    assert parse_assignments(text) == assigned


@given(text=st.text("ABx=1 \t\n'\"\\$`#;~&|<>(){}:!\r", max_size=30))
def test_reads_or_refuses_any_text(text: str) -> None:
    try:
        assigned = parse_assignments(text)
    except WireError:
        return

    assert all(name.isidentifier() for name in assigned)


def test_the_time_is_linear_in_the_number_of_lines() -> None:
    """If the time were quadratic, the user of flanneld could delay the start of Docker, whose unit reads the
    file as root.
    """
    text = "FLANNEL_MTU=1472\n" * 30_000
    started = time.process_time()

    parse_assignments(text)

    assert time.process_time() - started < 3.0
