"""flannelctl: shows, checks and changes a flannel network."""

import contextlib
import errno
import importlib
import itertools
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click
from msgspec.structs import replace

from pyflannel import VERSION
from pyflannel.cli.invocation import Invocation, VerbGroup, print_help, print_object, say, shared_options
from pyflannel.errors import (
    ConfigError,
    FlannelError,
    NotReadyError,
    StoreTimeoutError,
    UsageError,
    one_line,
)

_TRACEBACK = "FLANNELCTL_TRACEBACK"
"""The variable that makes an unexpected error show its traceback instead of one line."""

_INTERRUPTED = 130
"""The exit code of a program that SIGINT ended, as shells report it."""


COMMANDS = {
    "allow-list": "Sign, publish and show the list of the keys whose leases are accepted.",
    "bench": "Measure round-trip times to a host: underlay, tunnel and container path, and their ratios.",
    "bugreport": "Write one archive with the state of this host, without secrets.",
    "cleanup": "Remove flannel from this host.",
    "cni": "Install or remove the CNI plugin.",
    "config": "Show, check and write the network config.",
    "doctor": "List the problems of this host, with cause and remedy.",
    "events": "List the repairs, changes and refusals on this host.",
    "lab": "Run several flannel hosts on this machine, for a demo or a trial.",
    "leases": "List, reserve and release the leases of the network.",
    "network": "List, create and remove the networks of a store.",
    "peers": "List the other hosts, and the reason if one is not reachable.",
    "ping": "Probe the path to a host or a container, and show where packets stop.",
    "plan": "Show the changes that flanneld would make now, or with another network config.",
    "rotate-key": "Replace the WireGuard key of this host, without losing a packet.",
    "status": "Show the state of flanneld on this host.",
    "top": "Watch this host on the whole screen: peers, traffic, repairs and store, live.",
    "trace": "Follow a packet step by step, and show the first step that stops it.",
    "whois": "Show the host and the container that have an address.",
}
"""Each listed command with its help. The texts are here, so that `--help` imports no command."""

_UNLISTED = ("bundle", "explain", "pins", "prepare")
"""Commands for the systemd unit, not for operators, and alternative names of `bugreport` and `trace`."""

_MODULES = {
    "bench": "paths",
    "bugreport": "diagnosis",
    "bundle": "diagnosis",
    "doctor": "status",
    "explain": "diagnosis",
    "network": "networks",
    "ping": "paths",
    "pins": "cleanup",
    "plan": "config",
    "prepare": "cleanup",
    "rotate-key": "rotate_key",
    "trace": "diagnosis",
    "whois": "diagnosis",
}
"""The modules of the commands whose module does not have the name of the command."""


class LazyGroup(VerbGroup):
    """The commands in COMMANDS and _UNLISTED. The module of a command is imported when the command runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the listed commands, in the order of the help."""
        return sorted([*COMMANDS, *self.commands])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; None if it does not exist."""
        if cmd_name not in (*COMMANDS, *_UNLISTED):
            return super().get_command(ctx, cmd_name)
        name = cmd_name.replace("-", "_")
        module = importlib.import_module(f"pyflannel.cli.{_MODULES.get(cmd_name, name)}")
        command = getattr(module, name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing any command."""
        texts = COMMANDS | {name: command.get_short_help_str() for name, command in self.commands.items()}
        with formatter.section("Commands"):
            formatter.write_dl(sorted(texts.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--store", "store_url", metavar="URL", help="Read this store instead of asking flanneld.")
@click.option(
    "--socket", metavar="PATH", type=click.Path(path_type=Path), help="Ask flanneld on this control socket."
)
@click.option("--json", "wants_json", is_flag=True, help="Print JSON documents instead of text.")
@click.version_option(VERSION, message="%(prog)s %(version)s")
@click.pass_context
def flannelctl(context: click.Context, store_url: str | None, socket: Path | None, wants_json: bool) -> None:
    """Show, check and change a flannel network.

    flannelctl asks the running flanneld. If no flanneld runs, flannelctl reads the store that the FLANNELD_
    variables select. --store, --socket and --json may be written before or after the command.

    Exit codes:
      0  success
      1  a problem was found, or the action failed
      2  incorrect use, or an invalid network config
      3  not ready, or no answer in time

    Examples:
      flannelctl status
      flannelctl --store etcd://10.0.0.1:2379/coreos.com/network leases
      flannelctl config set '{"Network": "10.100.0.0/16"}'
    """
    if os.environ.get("NO_COLOR"):
        context.color = False
    given = context.obj or Invocation()
    context.obj = replace(given, store_url=store_url, socket=socket, wants_json=wants_json)


def _complete_command(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    return [name for name in flannelctl.list_commands(context) if name.startswith(incomplete)]


@flannelctl.command("help")
@click.argument("command", nargs=-1, shell_complete=_complete_command)
@shared_options()
@click.pass_context
def help_(context: click.Context, command: tuple[str, ...]) -> None:
    """Show the help of a command."""
    assert context.parent is not None
    at = context.parent
    for name in command:
        if not isinstance(at.command, click.Group):
            at.fail(f"{at.command_path} has no command {name!r}.")
        _, found, _ = at.command.resolve_command(at, [name])
        assert found is not None
        at = click.Context(found, info_name=name, parent=at)
    print_help(at)


@flannelctl.command()
@shared_options("json")
@click.pass_obj
def version(invocation: Invocation) -> None:
    """Show the version of flannelctl."""
    if invocation.wants_json:
        print_object({"version": VERSION})
    else:
        say(f"flannelctl {VERSION}")


class _Formatter(logging.Formatter):
    """Logs are written as one line for each record, because parts of a record may come from the store."""

    def format(self, record: logging.LogRecord) -> str:
        return one_line(super().format(record))


def main() -> None:
    """Run flannelctl with the arguments of this process, and exit."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("flannelctl: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    sys.exit(run(sys.argv[1:], began=process_start()))


def process_start() -> float:
    """Return the start of this process, in seconds of CLOCK_BOOTTIME (proc_pid_stat(5), starttime)."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


def run(arguments: Sequence[str], *, began: float | None = None) -> int:
    """Run one command and return its exit code. `began`: see `Invocation`.

    An error is one line on standard error, with the remedy in a second line. With --json the error is also a
    document on standard output.
    """
    # The words after `exec` belong to the command that runs in the lab.
    own = itertools.takewhile(lambda word: word not in ("exec", "--"), arguments)
    wants_json = "--json" in own
    try:
        code = flannelctl.main(
            list(arguments), prog_name="flannelctl", standalone_mode=False, obj=Invocation(began=began)
        )
    except click.Abort:
        return _fail("interrupted", "", _INTERRUPTED, wants_json)
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "flannelctl"
        return _fail(error.format_message(), f"Try '{path} --help'.", error.exit_code, wants_json)
    except Exception as raised:
        first = _first(raised)
        if isinstance(first, FlannelError):
            return _fail(str(first), first.hint, _exit_code(first), wants_json)
        if os.environ.get(_TRACEBACK):
            raise
        if isinstance(first, PermissionError) and os.geteuid() != 0:
            return _fail(f"no permission to use {first.filename}", "Run flannelctl as root.", 1, wants_json)
        if isinstance(first, OSError) and first.errno in (errno.ENOSPC, errno.EDQUOT):
            return _without_output(first)
        hint = f"This is a defect: set {_TRACEBACK}=1 to see the traceback, and report it."
        return _fail(f"{type(first).__name__}: {first}", hint, 1, wants_json)
    return code if isinstance(code, int) else 0


def _without_output(error: OSError) -> int:
    """Report that standard output cannot be written, and return the exit code. Python does not write the rest
    of the output when it exits.
    """
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    hint = "Delete files, or write the output to another file system."
    return _fail(f"the output cannot be written: {(error.strerror or '').lower()}", hint, 1, wants_json=False)


def _first(error: Exception) -> Exception:
    """Return the first error of a group of errors, or the error itself."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


def _fail(message: str, hint: str, code: int, wants_json: bool) -> int:
    if wants_json:
        print_object({"error": {"message": message, "hint": hint, "code": code}})
    say(f"flannelctl: {message}", err=True)
    if hint:
        say(f"  {hint}", err=True)
    return code


def _exit_code(error: FlannelError) -> int:
    if isinstance(error, UsageError | ConfigError):
        return 2
    if isinstance(error, NotReadyError | StoreTimeoutError):
        return 3
    return 1


if __name__ == "__main__":
    main()
