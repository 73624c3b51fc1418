"""`flannelctl lab`: several hosts on one machine, to try things and to look around."""

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict

import click
from rich.console import Console
from rich.table import Table

from pyflannel.lab.demo import DemoOptions, DemoReport, bring_up, run_demo
from pyflannel.lab.lab import Lab, enter_host, remove_lab, standing_labs

DEFAULT_NAME = "demo"

_name = click.option("--name", default=DEFAULT_NAME, show_default=True, help="Name of the lab.")
_store = click.option(
    "--store",
    type=click.Choice(["sqlite", "etcd"]),
    default="sqlite",
    show_default=True,
    help="Where leases live: the embedded store, or a real etcd on the router.",
)
_docker = click.option(
    "--docker/--no-docker", default=True, help="Real Docker engines, or plain namespaces as containers."
)
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


@click.group("lab")
def lab_group() -> None:
    """Several hosts on this machine, in namespaces: a network to try things on. Needs root."""


@lab_group.command("demo")
@_name
@_store
@_docker
@click.option("--keep", is_flag=True, help="Leave the lab up to look around in.")
@_json
@click.pass_context
def demo(ctx: click.Context, name: str, store: str, docker: bool, keep: bool, as_json: bool) -> None:
    """Show four Docker hosts on one flannel network, with figures, and remove them."""
    options = DemoOptions(name=name, has_etcd=store == "etcd", has_docker=docker, is_kept=keep)
    with _ending_by_interrupt():
        report = run_demo(options, _Teller())
    if _wants_json(ctx, as_json):
        click.echo(json.dumps(_as_document(report)))
    else:
        _print_report(report)
        if keep:
            _print_guide(name)
    if not report.is_good:
        ctx.exit(1)


@lab_group.command("up")
@_name
@_store
@_docker
@click.option("--bare", is_flag=True, help="The hosts alone: no store, no flanneld, no containers.")
def up(name: str, store: str, docker: bool, bare: bool) -> None:
    """Make the demo's hosts and leave them up; a lab of the same name is replaced."""
    options = DemoOptions(name=name, has_etcd=store == "etcd", has_docker=docker)
    with _ending_by_interrupt(), Lab(name) as lab:
        if not bare:
            bring_up(lab, options, _Teller())
        lab.keep()
    _print_guide(name)


@lab_group.command("down")
@_name
def down(name: str) -> None:
    """Remove a lab that was kept, or what a killed run left."""
    remove_lab(name)


@lab_group.command("list")
@_json
@click.pass_context
def list_labs(ctx: click.Context, as_json: bool) -> None:
    """List the labs on this machine."""
    labs = standing_labs()
    if _wants_json(ctx, as_json):
        click.echo(json.dumps([asdict(lab) for lab in labs]))
        return
    table = Table("lab", "state", "hosts", "directory", box=None)
    for lab in labs:
        table.add_row(lab.name, lab.state, " ".join(lab.hosts), lab.directory)
    Console().print(table if labs else "no lab stands")


@lab_group.command(
    "exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}
)
@_name
@click.argument("host")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def execute(name: str, host: str, command: tuple[str, ...]) -> None:
    """Run a COMMAND on a HOST of a lab (or on its `router`); a shell when none is given."""
    sandbox = enter_host(name, host)
    argv = sandbox.entering(command or ("bash",))
    os.execvpe(argv[0], argv, sandbox.environment)


class _Teller:
    """Tells each step on standard error, with the seconds since the start and the step's own."""

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
    table = Table("host", "address", "lease", "device", "MTU", "reached", "RTT", box=None)
    for row in report.rows:
        rtt = "-" if row.rtt_ms is None else f"{row.rtt_ms:.2f} ms"
        reached = f"{row.reached} of {row.others}"
        table.add_row(row.host, str(row.address), str(row.lease), row.device, str(row.mtu), reached, rtt)
    console = Console()
    console.print()
    console.print(table)
    console.print(f"\n{report.page_url} says: {report.page}")
    console.print(
        f"One TCP stream: {report.overlay.gbit_s:.2f} Gbit/s over the overlay,"
        f" {report.kernel.gbit_s:.2f} Gbit/s over the kernel's own vxlan laid by hand:"
        f" {report.ratio:.2f} of it."
    )


def _print_guide(name: str) -> None:
    option = "" if name == DEFAULT_NAME else f" --name {name}"
    click.echo(
        f"\nThe lab {name} stands. Look around:\n"
        f"  flannelctl lab exec{option} docker1                      a shell on docker1\n"
        f"  flannelctl lab exec{option} docker1 ip route             one command\n"
        f"  flannelctl lab exec{option} docker4 flannelctl status    what its flanneld says\n"
        f"  flannelctl lab exec{option} docker4 docker ps            its containers\n"
        f"End it:\n"
        f"  flannelctl lab down{option}"
    )


def _as_document(report: DemoReport) -> dict[str, object]:
    rows = [{**asdict(row), "address": str(row.address), "lease": str(row.lease)} for row in report.rows]
    return {
        "ok": report.is_good,
        "hosts": rows,
        "page": {"url": report.page_url, "text": report.page},
        "throughput_gbit_s": {"overlay": report.overlay.gbit_s, "kernel_vxlan": report.kernel.gbit_s},
        "ratio": report.ratio,
    }


def _wants_json(ctx: click.Context, here: bool) -> bool:
    """Whether `--json` was given to this command, or to flannelctl before it."""
    return here or bool(ctx.find_root().params.get("as_json"))


@contextlib.contextmanager
def _ending_by_interrupt() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the block as Ctrl-C does, so that the lab is removed."""
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signal.default_int_handler) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
