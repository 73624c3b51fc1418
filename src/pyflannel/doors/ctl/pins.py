"""flannelctl pins: what the service's daemon cannot do for itself."""

import asyncio
from pathlib import Path

import click

from pyflannel.assembly.pins import lay_pins
from pyflannel.assembly.places import Places
from pyflannel.doors.ctl.invocation import run_dir_option


@click.command()
@run_dir_option
def pins(run_dir: Path) -> None:
    """Let a flanneld without CAP_SYS_ADMIN find its eBPF programs again.

    Mounts a bpffs at `.bpf` in the run directory, and pins there what stands at this host's links. It takes
    root, and the mount namespace of the host.
    """
    click.echo(asyncio.run(lay_pins(Places(run_dir=run_dir))))
