"""flannelctl lab: several flannel hosts on one machine, for a demo or a trial."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from typing import Literal

import click
import msgspec
from msgspec.structs import replace

from pyflannel.cli.answers import print_json, print_table
from pyflannel.cli.invocation import Invocation, VerbGroup, json_option, warn_of_ignored
from pyflannel.errors import UsageError
from pyflannel.lab.demo import DemoOptions, DemoReport, HostRow, bring_up, run_demo
from pyflannel.lab.lab import Lab, enter_host, remove_lab, standing_labs
from pyflannel.lab.lab_directory import LabDirectory, lab_names

DEFAULT_NAME = "demo"
_HOST_HEADINGS = ("HOST", "ADDRESS", "LEASE", "DEVICE", "MTU", "REACHED", "RTT")
_LAB_HEADINGS = ("LAB", "STATE", "HOSTS", "DIRECTORY")

_USED: dict[str, tuple[Literal["json"]]] = {"demo": ("json",), "list": ("json",)}
"""The global options that the commands use; the other commands use none."""


def _complete_lab(_: click.Context, __: click.Parameter, incomplete: str) -> list[str]:
    return [name for name in lab_names() if name.startswith(incomplete)]


def _complete_host(context: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Return the running hosts of a lab whose names begin with this text; empty for an invalid lab."""
    try:
        hosts = LabDirectory(context.params["name"]).hosts()
    except UsageError:
        return []
    return sorted(host for host in hosts if host.startswith(incomplete))


_name_option = click.option(
    "--name", default=DEFAULT_NAME, show_default=True, help="Name of the lab.", shell_complete=_complete_lab
)
_store_option = click.option(
    "--store",
    type=click.Choice(["sqlite", "etcd"]),
    default="sqlite",
    show_default=True,
    help="Store of the leases: the embedded store, or an etcd on the router.",
)
_docker_option = click.option(
    "--docker/--no-docker", default=True, help="Run containers with Docker, or as network namespaces."
)


_plugin_option = click.option(
    "--plugin",
    is_flag=True,
    help="Connect the containers by flanneld's Docker plugin. dockerd then needs no options for flannel.",
)


def _options(name: str, store: str, docker: bool, plugin: bool) -> DemoOptions:
    if plugin and not docker:
        raise UsageError("--plugin needs Docker", hint="Omit --no-docker.")
    return DemoOptions(name=name, has_etcd=store == "etcd", has_docker=docker, has_plugin=plugin)


@click.group(cls=VerbGroup)
@click.pass_context
def lab(context: click.Context) -> None:
    """Run several flannel hosts on this machine, for a demo or a trial.

    Each host has network, process and mount namespaces separate from the machine. The commands need root.
    """
    verb = context.invoked_subcommand or ""
    warn_of_ignored(context.obj, f"{context.command_path} {verb}".rstrip(), *_USED.get(verb, ()))


@lab.command()
@_name_option
@_store_option
@_docker_option
@_plugin_option
@click.option("--keep", is_flag=True, help="Keep the lab at the end, so that you can examine it.")
@json_option
@click.pass_context
def demo(context: click.Context, name: str, store: str, docker: bool, plugin: bool, keep: bool) -> None:
    """Set up four Docker hosts with one flannel network, measure the network, and remove the lab.

    The demo prints lease, device and MTU of each host, the number of containers that its container reaches,
    the round-trip time, and the TCP throughput. For comparison, the demo also prints the TCP throughput of
    the kernel's vxlan. The exit code is 1 if a container is not reachable.
    """
    invocation: Invocation = context.obj
    options = replace(_options(name, store, docker, plugin), is_kept=keep)
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
@_plugin_option
@click.option("--bare", is_flag=True, help="Create only the hosts, without a store, flanneld or containers.")
def up(name: str, store: str, docker: bool, plugin: bool, bare: bool) -> None:
    """Set up the hosts of the demo and keep them. The new lab replaces a lab of the same name."""
    options = _options(name, store, docker, plugin)
    with _one_failure(), _ending_as_by_interrupt(), Lab(name) as hosts:
        if not bare:
            bring_up(hosts, options, _Narrator())
        hosts.keep()
    _print_guide(options, bare=bare)


@lab.command()
@_name_option
def down(name: str) -> None:
    """Remove a lab, or the objects that remain after a killed run."""
    remove_lab(name)


@lab.command("list")
@json_option
@click.pass_obj
def list_labs(invocation: Invocation) -> None:
    """List the labs on this machine."""
    labs = standing_labs()
    if invocation.wants_json:
        print_json(msgspec.json.encode({"labs": labs}))
    else:
        print_table(
            _LAB_HEADINGS, [(one.name, one.state, " ".join(one.hosts), one.directory) for one in labs]
        )


@lab.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@_name_option
@click.argument("host", shell_complete=_complete_host)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def execute(name: str, host: str, command: tuple[str, ...]) -> None:
    """Run COMMAND on HOST. Without COMMAND, run a shell. HOST may be `router`."""
    sandbox = enter_host(name, host)
    argv = sandbox.entering(command or ("bash",))
    os.execvpe(argv[0], argv, sandbox.environment)


class _Narrator:
    """Prints each step on standard error: its name when it starts, and its duration when it ends."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Print the name of a step, and its duration at the end of the block."""
        began = time.monotonic()
        click.echo(f"{began - self._start:6.1f} s  {name} … ", nl=False, err=True)
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
    click.echo(f"\nThe page at {report.page_url}: {report.page}")
    click.echo("\nOne TCP stream from the first container to the last:")
    click.echo(f"  {overlay:6.2f} Gbit/s over the overlay")
    click.echo(f"  {kernel:6.2f} Gbit/s over the kernel's vxlan, configured manually between two plain hosts")
    click.echo(f"  {report.ratio:6.2f} times the throughput of the kernel's vxlan")


def _row(row: HostRow) -> tuple[str, ...]:
    rtt = "-" if row.rtt_ms is None else f"{row.rtt_ms:.2f} ms"
    reached = f"{row.reached} of {row.others}"
    return row.host, str(row.address), str(row.lease), row.device, str(row.mtu), reached, rtt


def _format(report: DemoReport) -> bytes:
    """Return the report as JSON, with `ok` and `ratio` added."""
    found = msgspec.to_builtins(report, enc_hook=str)
    return msgspec.json.encode({"ok": report.is_good, **found, "ratio": report.ratio})


def _print_guide(options: DemoOptions, *, bare: bool = False) -> None:
    option = "" if options.name == DEFAULT_NAME else f" --name {options.name}"
    examples = [
        (f"lab exec{option} docker1", "a shell on docker1"),
        (f"lab exec{option} docker1 ip route", "one command"),
    ]
    if not bare:
        examples.append((f"lab exec{option} docker4 flannelctl status", "the state of flanneld on docker4"))
    if options.has_docker and not bare:
        examples.append((f"lab exec{option} docker4 docker ps", "its containers"))
    examples.append((f"lab down{option}", "remove the lab"))
    click.echo(f"\nThe lab {options.name} is up. Commands to use and to remove the lab:", err=True)
    width = max(len(command) for command, _ in examples)
    for command, meaning in examples:
        click.echo(f"  {sys.argv[0]} {command:<{width}}  {meaning}", err=True)


@contextlib.contextmanager
def _one_failure() -> Iterator[None]:
    """Raise only the first of several failures, because the failures of the hosts mostly have one cause."""
    try:
        yield
    except ExceptionGroup as group:
        raise group.exceptions[0] from group


@contextlib.contextmanager
def _ending_as_by_interrupt() -> Iterator[None]:
    """Make SIGTERM and SIGHUP end the block in the same way as Ctrl-C, so that the lab is removed."""
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signal.default_int_handler) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
