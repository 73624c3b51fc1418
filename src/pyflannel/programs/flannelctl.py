"""flannelctl: what an operator asks and tells a flannel network."""

import importlib
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from pyflannel.cli.invocation import Invocation, say
from pyflannel.errors import ConfigError, FlannelError, NotReadyError, UsageError, one_line

_TRACEBACK = "FLANNELCTL_TRACEBACK"
"""The variable that shows where a defect of ours struck, which otherwise takes one line."""

_INTERRUPTED = 130
"""What a shell reports of a program that SIGINT ended."""


COMMANDS = {
    "cleanup": "Take everything of flannel off this host.",
    "config": "Read, check and write the network config.",
    "doctor": "Say what is wrong with this host, why, and what to type.",
    "events": "List what flanneld found on this host, and did about it.",
    "lab": "Several hosts on this machine, in namespaces of their own.",
    "leases": "List the leases of the network.",
    "peers": "List the other hosts, and why some are not sent to.",
    "pins": "Let a flanneld without CAP_SYS_ADMIN find its eBPF programs again.",
    "status": "Show what flanneld on this host is doing.",
}
"""Each command with its help. The text is here, so that `--help` imports no command."""

_MODULES = {
    "doctor": "status",
    "events": "network",
    "leases": "network",
    "peers": "network",
    "pins": "cleanup",
}
"""The module of each command that has no module of its own name."""


class LazyGroup(click.Group):
    """The commands above; the module of a command is imported when the command runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, in the order of the help."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; None when there is no such one."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"pyflannel.cli.{_MODULES.get(cmd_name, cmd_name)}")
        command = getattr(module, cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl(sorted(COMMANDS.items()))


@click.group(cls=LazyGroup, no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--store", "store_url", metavar="URL", help="Ask this store, not the daemon.")
@click.option(
    "--socket", metavar="PATH", type=click.Path(path_type=Path), help="Ask the daemon behind this socket."
)
@click.option("--json", "wants_json", is_flag=True, help="Print JSON documents instead of text for people.")
@click.version_option(package_name="pyflannel", message="%(prog)s %(version)s")
@click.pass_context
def flannelctl(context: click.Context, store_url: str | None, socket: Path | None, wants_json: bool) -> None:
    """See and steer a flannel network.

    Without --store the running daemon is asked; when none runs, the store that the FLANNELD_ variables name.

    Exit codes: 0 fine; 1 a problem was found, or the act failed; 2 wrong use or a bad config; 3 not ready, or
    no answer in time.
    """
    context.obj = Invocation(store_url=store_url, socket=socket, wants_json=wants_json)


class _Formatter(logging.Formatter):
    """One line for each record: parts of it may come from the store."""

    def format(self, record: logging.LogRecord) -> str:
        return one_line(super().format(record))


def main() -> None:
    """Run flannelctl with the arguments of this process, and exit."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("flannelctl: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command and return its exit code; what failed is one line on standard error, and what to do."""
    try:
        code = flannelctl.main(list(arguments), prog_name="flannelctl", standalone_mode=False)
    except click.Abort:
        return _INTERRUPTED
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "flannelctl"
        return _fail(error.format_message(), f"Try '{path} --help'.", error.exit_code)
    except FlannelError as error:
        return _fail(str(error), error.hint, _exit_code(error))
    except Exception as error:
        if os.environ.get(_TRACEBACK):
            raise
        return _fail(
            f"{type(error).__name__}: {error}", f"Set {_TRACEBACK}=1 to see where, and report it.", 1
        )
    return code if isinstance(code, int) else 0


def _fail(message: str, hint: str, code: int) -> int:
    say(f"flannelctl: {message}", err=True)
    if hint:
        say(f"  {hint}", err=True)
    return code


def _exit_code(error: FlannelError) -> int:
    if isinstance(error, UsageError | ConfigError):
        return 2
    if isinstance(error, NotReadyError):
        return 3
    return 1


if __name__ == "__main__":
    main()
