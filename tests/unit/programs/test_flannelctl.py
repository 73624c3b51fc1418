"""Each command that flannelctl lists can be run."""

import click
import pytest

from pyflannel.programs.flannelctl import COMMANDS, LazyGroup


@pytest.mark.parametrize("name", COMMANDS)
def test_each_listed_command_is_found_in_its_module(name: str) -> None:
    """A command is imported only when it runs, so that no other test sees a module that was renamed."""
    group = LazyGroup()

    command = group.get_command(click.Context(group), name)

    assert command is not None
    assert command.name == name
