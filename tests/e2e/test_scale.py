"""A host with a thousand peers: its kernel matches etcd, while peers join and leave."""

import asyncio
import json
import os

import pytest

from pyflannel.assembly.directories import Places
from pyflannel.commands.network_client import ControlClient
from testlab.crowded_network import crowded_network
from testlab.overlay import run_dir

STANDING = 1000
NEWCOMERS = 300
PER_S = 100
"""Number of hosts that join each second. The same number leaves."""

STAY = 50
"""Number of new hosts that are present at any moment, and at the end."""

DEADLINE_S = 60.0


@pytest.mark.parametrize(
    ("backend", "damage"),
    [
        ("vxlan", ["ip", "link", "delete", "flannel.1"]),
        ("vxlan-dual", ["ip", "link", "delete", "flannel-v6.1"]),
        ("host-gw", ["ip", "route", "flush", "protocol", "80"]),
        ("host-gw-dual", ["ip", "-6", "route", "flush", "protocol", "80"]),
    ],
)
def test_a_host_among_a_thousand_follows_joins_leaves_and_damage(backend: str, damage: list[str]) -> None:
    """The host has the objects of all peers after its start, after joins and leaves, and after damage."""
    with crowded_network(f"c{os.getpid()}", backend, STANDING, deadline_s=DEADLINE_S) as network:
        network.start()
        network.wait_right()
        newcomers = network.newcomers(NEWCOMERS)

        storm = network.churn(newcomers, per_s=PER_S, standing=STAY)

        assert storm.written == 2 * NEWCOMERS - STAY
        network.wait_right(newcomers[-STAY:])
        status = json.loads(network.host.flannelctl("status", "--json"))
        assert status["peers"] == STANDING + STAY
        assert status["reconcile"]["repairs"] == 0  # only the daemon changed objects
        client = ControlClient(run_dir(network.host) / Places().control_socket.name)
        sample = [lease.subnet for lease in asyncio.run(client.leases(64))]
        assert len(set(sample)) == 65
        assert network.host.lease() in sample

        network.host.run(damage)

        network.wait_right(newcomers[-STAY:])
