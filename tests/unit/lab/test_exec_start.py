"""The lab starts Docker as systemd does."""

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyflannel.lab.program import expand, read_environment_file

words = st.lists(st.text(st.characters(codec="ascii", categories=("L", "N", "P")), min_size=1))
DOCKER_OPTS = " --bip=10.100.15.1/24 --ip-masq=true --mtu=1472"


def test_options_of_mk_docker_opts_become_words() -> None:
    """Leading and double spaces in DOCKER_OPTS give no empty word."""
    text = f'DOCKER_OPTS="{DOCKER_OPTS}"\n'

    command = expand("dockerd $DOCKER_OPTS", read_environment_file(text))

    assert command == ["dockerd", "--bip=10.100.15.1/24", "--ip-masq=true", "--mtu=1472"]


def test_braced_variables_are_replaced_by_values_of_subnet_env() -> None:
    text = "FLANNEL_NETWORK=10.100.0.0/16\nFLANNEL_SUBNET=10.100.15.1/24\nFLANNEL_MTU=1472\n"

    command = expand("dockerd --bip=${FLANNEL_SUBNET} --mtu=${FLANNEL_MTU}", read_environment_file(text))

    assert command == ["dockerd", "--bip=10.100.15.1/24", "--mtu=1472"]


@pytest.mark.parametrize(
    ("exec_start", "command"),
    [
        ("a $UNSET b", ["a", "b"]),
        ("a ${UNSET} b", ["a", "", "b"]),
        ("a $TWO", ["a", "x", "y"]),
        ("a ${TWO}", ["a", "x y"]),
        ("a p${TWO}q", ["a", "px yq"]),
        ("a '$TWO'", ["a", "x", "y"]),  # systemd also removes quotes before it expands words
        ("a p$TWO", ["a", "p$TWO"]),
    ],
)
def test_the_form_of_a_variable_determines_its_expansion(exec_start: str, command: list[str]) -> None:
    """systemd.service(5): `$X` as a separate word is split, `${X}` is not, and an unset variable is empty."""
    assert expand(exec_start, {"TWO": "x y"}) == command


def test_comments_blank_lines_and_quotes_are_not_part_of_a_value() -> None:
    text = "# A=1\n; B=2\n\nC='3 4'\nD=5 \n  E = 6\nnot an assignment\nF=\"\n"

    assert read_environment_file(text) == {"C": "3 4", "D": "5", "F": '"'}


@given(words)
def test_quoted_words_stay_whole(arguments: list[str]) -> None:
    """A value that was quoted in a variable is read unchanged."""
    assert expand("$ALL", {"ALL": shlex.join(arguments)}) == arguments


@given(words)
def test_a_command_without_variables_is_a_shell_command(arguments: list[str]) -> None:
    plain = [argument for argument in arguments if "$" not in argument]

    assert expand(shlex.join(plain), {}) == plain
