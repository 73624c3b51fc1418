"""Shared parts of flannelctl's verbs: options, groups, and printing of text.

`--help` imports this module, so it must import few modules.
"""

import functools
import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import click
from click.shell_completion import CompletionItem
from msgspec import Struct
from msgspec.structs import replace

from pyflannel.errors import FlannelError, one_line, printable

_Command = Callable[..., Any]
_Shared = Literal["store", "socket", "json"]


class Invocation(Struct, frozen=True, kw_only=True):
    """The options that are accepted before and after the verb.

    Attributes:
        store_url: URL of the store to read instead of asking flanneld; None if it was not given.
        socket: control socket of flanneld; None to use the socket in the run directory.
        wants_json: True to print JSON documents instead of text.
        began: start of the process, in seconds of CLOCK_BOOTTIME; None if the time limit starts now.
    """

    store_url: str | None = None
    socket: Path | None = None
    wants_json: bool = False
    began: float | None = None

    def left_s(self, *, is_limited: bool = False) -> float:
        """Return how many seconds the command may still work, so that it answers within 5 s of its start.

        `is_limited`: each part of the work that may hang has a short deadline of its own. With `is_limited`,
        the deadline of the whole work is longer, because only a busy host can delay the work.
        """
        age_s = 0.0 if self.began is None else time.clock_gettime(time.CLOCK_BOOTTIME) - self.began
        return max(_LEAST_S, (_BUSY_S if is_limited else _ANSWER_S) - age_s)


_ANSWER_S, _BUSY_S, _LEAST_S = 4.2, 15.0, 2.3
"""Times in seconds. _ANSWER_S: maximum time from the start of the process to the end of the work, without
printing. _BUSY_S: this maximum if each part of the work has its own deadline. _LEAST_S: minimum time for the
work."""


def say(text: str, *, label: str = "", err: bool = False) -> None:
    """Print a text as one line, escaped and cut, because parts of it may come from the store.

    Args:
        text: the text.
        label: prefix that is printed before the text with a colon, without escaping; it may be styled.
        err: True to print on standard error.
    """
    click.echo(f"{label}: {one_line(text)}" if label else one_line(text), err=err)


def print_warning(text: str) -> None:
    """Print a warning on standard error."""
    say(f"flannelctl: warning: {text}", err=True)


def is_interactive() -> bool:
    """Return whether flannelctl can ask a person, which is true if standard input and standard error are
    terminals.
    """
    return sys.stdin.isatty() and sys.stderr.isatty()


def confirm(invocation: Invocation, question: str) -> Invocation:
    """Ask a yes-or-no question on standard error. Return an invocation whose time limit starts after the
    answer.

    Raises:
        FlannelError: the answer is not yes.
    """
    if not click.confirm(question, err=True):
        raise FlannelError("nothing was changed", hint="")
    return replace(invocation, began=None)


def print_object(document: Mapping[str, object]) -> None:
    """Print a small JSON document. Unlike `answers.print_json`, this function loads no library."""
    click.echo(printable(json.dumps(document, indent=2), keep="\n"))


def print_help(context: click.Context) -> None:
    """Print the help of a command."""
    click.echo(context.get_help())


_LISTS = re.compile(r"^( *)(Exit codes:|Examples:)$", re.MULTILINE)
"""The headings of the lists in a help text. The line breaks of these lists are kept."""


def _with_line_breaks(settings: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a command, with a help text whose lists keep their line breaks. click keeps the
    line breaks of a paragraph that begins with a backspace character.
    """
    text = settings.get("help")
    return settings if text is None else settings | {"help": _LISTS.sub("\\1\b\n\\1\\2", text)}


class Verb(click.Command):
    """A command with lists of exit codes and examples in its help."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **_with_line_breaks(settings))


class VerbGroup(click.Group):
    """A group of verbs. Without a verb, the group prints its help. For an unknown verb, the group suggests a
    similar verb.
    """

    command_class = Verb

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **{"invoke_without_command": True, **_with_line_breaks(settings)})

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb, or print the help if no verb was given."""
        result = super().invoke(ctx)
        if ctx.invoked_subcommand is None:
            print_help(ctx)
        return result

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the verb in `args`.

        Raises:
            click.UsageError: the verb is unknown; the message names a similar verb.
        """
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            similar = get_close_matches(name.lower(), self.list_commands(ctx), n=1)
            question = f" Did you mean {similar[0]!r}?" if similar else ""
            ctx.fail(f"unknown command {_full_name(ctx, name)!r}.{question}")
        return super().resolve_command(ctx, args)


class ListGroup(VerbGroup):
    """A group of verbs whose verb `ls` may be omitted. Options may be written before the verb."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Move the verb before the options. Without a verb, insert `ls`, unless only help is requested."""
        place = next(_positions(args), len(args))
        is_verb = place < len(args) and args[place] in self.commands
        asks_help = not is_verb and any(word in ctx.help_option_names for word in args)
        if is_verb:
            args = [args[place], *args[:place], *args[place + 1 :]]
        elif not (asks_help or (ctx.resilient_parsing and not args)):
            args = ["ls", *args]
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete a verb, or an argument or option of `ls`."""
        if incomplete.startswith("-"):
            return self.commands["ls"].shell_complete(ctx, incomplete)
        found = super().shell_complete(ctx, incomplete)
        arguments = [one for one in self.commands["ls"].params if isinstance(one, click.Argument)]
        return [*found, *(item for one in arguments for item in one.shell_complete(ctx, incomplete))]


def _positions(args: Sequence[str]) -> Iterator[int]:
    """Yield the positions of the arguments that are neither options nor their values."""
    place = 0
    while place < len(args) and args[place] != "--":
        if args[place] in _WITH_VALUE:
            place += 1
        elif not args[place].startswith("-"):
            yield place
        place += 1


def _full_name(context: click.Context, name: str) -> str:
    _, *groups = context.command_path.split()
    return " ".join([*groups, name])


def shared_options(*used: _Shared) -> Callable[[_Command], _Command]:
    """Accept --store, --socket and --json also after the verb, and warn if one of these options has no
    effect.
    """

    def decorate(command: _Command) -> _Command:
        @functools.wraps(command)
        def checked(*arguments: Any, **options: Any) -> Any:
            context = click.get_current_context()
            warn_of_ignored(context.obj, context.command_path, *used)
            return command(*arguments, **options)

        with_json = _shared(*_JSON, is_hidden="json" not in used)(checked)
        with_socket = _shared(*_SOCKET, is_hidden="socket" not in used)(with_json)
        return _shared(*_STORE, is_hidden="store" not in used)(with_socket)

    return decorate


def warn_of_ignored(invocation: Invocation, verb: str, *used: _Shared) -> None:
    """Warn on standard error about --store, --socket and --json if they were given but have no effect."""
    if invocation.wants_json and "json" not in used:
        print_warning(f"--json has no effect on '{verb}'")
    if invocation.store_url is not None and "store" not in used:
        print_warning(f"--store has no effect on '{verb}'")
    if invocation.socket is not None and "socket" not in used:
        print_warning(f"--socket has no effect on '{verb}'")
    elif invocation.socket is not None and invocation.store_url is not None and "store" in used:
        print_warning("--socket has no effect, because --store is given")


def json_option(command: _Command) -> _Command:
    """Also accept --json after the verb."""
    return _shared(*_JSON, is_hidden=False)(command)


_STORE = (
    "--store",
    "store_url",
    {"metavar": "URL", "help": "Read this store instead of asking flanneld."},
)
_SOCKET = (
    "--socket",
    "socket",
    {
        "metavar": "PATH",
        "type": click.Path(path_type=Path),
        "help": "Ask flanneld on this control socket.",
    },
)
_JSON = ("--json", "wants_json", {"is_flag": True, "help": "Print a JSON document instead of text."})


_WITH_VALUE = ("--store", "--socket", "--run-dir")
"""The options with a value that may be written before the verb of a group."""


def _shared(
    option: str, field: str, settings: Mapping[str, Any], *, is_hidden: bool
) -> Callable[[_Command], _Command]:
    def keep(context: click.Context, _: click.Parameter, value: Any) -> None:
        if value:  # during completion, there is no invocation yet
            context.obj = replace(context.obj or Invocation(), **{field: value})

    return click.option(option, field, expose_value=False, callback=keep, hidden=is_hidden, **settings)


def wide_option(command: _Command) -> _Command:
    """Add --wide."""
    return click.option("--wide", is_flag=True, help="Also show the identities of hosts.")(command)


def run_dir_option(command: _Command) -> _Command:
    """Add --run-dir, with flanneld's environment variable. Without --run-dir, `places_of` finds the
    directory.
    """
    return _directory("--run-dir", f"/run/flannel{_OF_PREFIX}", "Run directory of flanneld.")(command)


def state_options(command: _Command) -> _Command:
    """Add --state-dir and --subnet-file, with flanneld's environment variables."""
    command = subnet_file_option(command)
    return _directory("--state-dir", f"/var/lib/flannel{_OF_PREFIX}", "State directory of flanneld.")(command)


def subnet_file_option(command: _Command) -> _Command:
    """Add --subnet-file, with flanneld's environment variable."""
    return _directory("--subnet-file", "/run/flannel/subnet.env", "Subnet file of flanneld.")(command)


_OF_PREFIX = ", or its subdirectory for FLANNELD_ETCD_PREFIX"


def _directory(name: str, default: str, text: str) -> Callable[[_Command], _Command]:
    return click.option(
        name,
        type=click.Path(path_type=Path),
        show_default=default,
        envvar="FLANNELD" + name.removeprefix("-").replace("-", "_").upper(),
        show_envvar=True,
        help=text,
    )
