"""Whom a command asks, by what its user said."""

import os
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from pyflannel.assembly.network_client import NetworkClient, network_client
from pyflannel.assembly.places import Places
from pyflannel.doors.ctl.invocation import Invocation


def socket_of(invocation: Invocation, run_dir: Path) -> Path:
    """Return the socket of the daemon that has `run_dir`, unless another was given."""
    return invocation.socket or Places(run_dir=run_dir).control_socket


def network_of(invocation: Invocation, run_dir: Path) -> AbstractAsyncContextManager[NetworkClient]:
    """Return whom to ask about the network, for the length of a block."""
    return network_client(
        invocation.store_url,
        socket_of(invocation, run_dir),
        os.environ,
        only_daemon=invocation.socket is not None,
    )
