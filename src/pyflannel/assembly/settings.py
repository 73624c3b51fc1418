"""What was given for each flag: on the command line, or else in the environment."""

from collections.abc import Mapping, Sequence

from pyflannel.wire.go_flags import Flag, Given, default_of, read_environment

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
