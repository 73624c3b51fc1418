"""flannelctl rotate-key: a new WireGuard key for this host."""

from pathlib import Path

import click

from pyflannel.cli.answers import answer, print_json, socket_of
from pyflannel.cli.invocation import Invocation, run_dir_option, say, shared_options
from pyflannel.commands.network_client import ControlClient
from pyflannel.wire.control_json import format_public_key


@click.command("rotate-key")
@run_dir_option
@shared_options("socket", "json")
@click.pass_obj
def rotate_key(invocation: Invocation, run_dir: Path | None) -> None:
    """Replace the WireGuard key of this host, without losing a packet.

    The command needs a running flanneld with the wireguard backend, and its store. flannelctl prints the new
    public key.
    """
    daemon = ControlClient(socket_of(invocation, run_dir))
    public_key = answer(invocation, daemon.rotate_key(), writes=True)
    if invocation.wants_json:
        print_json(format_public_key(public_key))
    else:
        say(public_key)
