"""flannelctl lab: several hosts on one machine, to see flannel work and to try things on."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator

import click
import msgspec

from pyflannel.cli.answers import print_json, print_table
from pyflannel.cli.invocation import Invocation, json_option
from pyflannel.lab.demo import DemoOptions, DemoReport, HostRow, bring_up, run_demo
from pyflannel.lab.lab import Lab, enter_host, remove_lab, standing_labs

DEFAULT_NAME = "demo"
_HOST_HEADINGS = ("HOST", "ADDRESS", "LEASE", "DEVICE", "MTU", "REACHED", "RTT")
_LAB_HEADINGS = ("LAB", "STATE", "HOSTS", "DIRECTORY")

_name_option = click.option("--name", default=DEFAULT_NAME, show_default=True, help="Name of the lab.")
_store_option = click.option(
    "--store",
    type=click.Choice(["sqlite", "etcd"]),
    default="sqlite",
    show_default=True,
    help="Where leases live: the embedded store, or a real etcd on the router.",
)
_docker_option = click.option(
    "--docker/--no-docker", default=True, help="Real Docker engines, or plain namespaces as containers."
)


@click.group(no_args_is_help=False)
def lab() -> None:
    """Several hosts on this machine, in namespaces of their own. Needs root."""


@lab.command()
@_name_option
@_store_option
@_docker_option
@click.option("--keep", is_flag=True, help="Leave the lab up, to look around in it.")
@json_option
@click.pass_context
def demo(context: click.Context, name: str, store: str, docker: bool, keep: bool) -> None:
    """Show four Docker hosts on one flannel network, with figures, and remove them again."""
    invocation: Invocation = context.obj
    options = DemoOptions(name=name, has_etcd=store == "etcd", has_docker=docker, is_kept=keep)
    with _one_failure(), _ending_as_by_interrupt():
        report = run_demo(options, _Narrator())
    if invocation.wants_json:
        print_json(_format(report))
    else:
        _print_report(report)
    if keep:
        _print_guide(options)
    if not report.is_good:
        context.exit(1)


@lab.command()
@_name_option
@_store_option
@_docker_option
@click.option("--bare", is_flag=True, help="The hosts alone: no store, no flanneld, no containers.")
def up(name: str, store: str, docker: bool, bare: bool) -> None:
    """Make the hosts of the demo and leave them up; a lab of the same name is replaced."""
    options = DemoOptions(name=name, has_etcd=store == "etcd", has_docker=docker)
    with _one_failure(), _ending_as_by_interrupt(), Lab(name) as hosts:
        if not bare:
            bring_up(hosts, options, _Narrator())
        hosts.keep()
    _print_guide(options, bare=bare)


@lab.command()
@_name_option
def down(name: str) -> None:
    """Remove a lab that was kept, or what a killed run left of one."""
    remove_lab(name)


@lab.command("list")
@json_option
@click.pass_obj
def list_labs(invocation: Invocation) -> None:
    """List the labs on this machine."""
    labs = standing_labs()
    if invocation.wants_json:
        print_json(msgspec.json.encode(labs))
    else:
        print_table(
            _LAB_HEADINGS, [(one.name, one.state, " ".join(one.hosts), one.directory) for one in labs]
        )


@lab.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@_name_option
@click.argument("host")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def execute(name: str, host: str, command: tuple[str, ...]) -> None:
    """Run COMMAND on HOST, which may be the `router`; a shell when none is given."""
    sandbox = enter_host(name, host)
    argv = sandbox.entering(command or ("bash",))
    os.execvpe(argv[0], argv, sandbox.environment)


class _Narrator:
    """Tells each step on standard error: when it began, what it is, how long it took."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    @contextlib.contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Say what begins, and when it has ended."""
        began = time.monotonic()
        click.echo(f"{began - self._start:6.1f} s  {what} … ", nl=False, err=True)
        try:
            yield
        except BaseException:
            click.echo("failed", err=True)
            raise
        click.echo(f"{time.monotonic() - began:.1f} s", err=True)


def _print_report(report: DemoReport) -> None:
    overlay, kernel = report.overlay.gbit_s, report.kernel.gbit_s
    click.echo()
    print_table(_HOST_HEADINGS, map(_row, report.rows))
    click.echo(f"\n{report.page_url} says: {report.page}")
    click.echo("\nOne TCP stream from the first container to the last:")
    click.echo(f"  {overlay:6.2f} Gbit/s over the overlay")
    click.echo(f"  {kernel:6.2f} Gbit/s over the kernel's own vxlan, laid by hand between two plain hosts")
    click.echo(f"  {report.ratio:6.2f} of the kernel's own")


def _row(row: HostRow) -> tuple[str, ...]:
    rtt = "-" if row.rtt_ms is None else f"{row.rtt_ms:.2f} ms"
    reached = f"{row.reached} of {row.others}"
    return row.host, str(row.address), str(row.lease), row.device, str(row.mtu), reached, rtt


def _format(report: DemoReport) -> bytes:
    """Return the report as a document: what it holds, whether it is good, and the ratio."""
    found = msgspec.to_builtins(report, enc_hook=str)
    return msgspec.json.encode({"ok": report.is_good, **found, "ratio": report.ratio})


def _print_guide(options: DemoOptions, *, bare: bool = False) -> None:
    option = "" if options.name == DEFAULT_NAME else f" --name {options.name}"
    examples = [
        (f"lab exec{option} docker1", "a shell on docker1"),
        (f"lab exec{option} docker1 ip route", "one command"),
    ]
    if not bare:
        examples.append((f"lab exec{option} docker4 flannelctl status", "what its flanneld says"))
    if options.has_docker and not bare:
        examples.append((f"lab exec{option} docker4 docker ps", "its containers"))
    examples.append((f"lab down{option}", "end it"))
    click.echo(f"\nThe lab {options.name} stands. Look around, and end it:", err=True)
    for command, meaning in examples:
        click.echo(f"  {sys.argv[0]} {command:<48} {meaning}", err=True)


@contextlib.contextmanager
def _one_failure() -> Iterator[None]:
    """Raise the first of several failures alone: the others, on other hosts, mostly say the same."""
    try:
        yield
    except ExceptionGroup as group:
        raise group.exceptions[0] from group


@contextlib.contextmanager
def _ending_as_by_interrupt() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the block as Ctrl-C does, so that the lab is removed."""
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signal.default_int_handler) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
