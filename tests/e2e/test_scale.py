"""A host among a thousand: its kernel has what etcd says, whoever comes and goes meanwhile."""

import json
import os

import pytest

from testlab.crowded_network import crowded_network

STANDING = 1000
NEWCOMERS = 300
PER_S = 100
"""Hosts that come each second; as many go."""

STAY = 50
"""So many of the newcomers stand at any moment, and at the end."""

DEADLINE_S = 60.0


@pytest.mark.parametrize(
    ("backend", "damage"),
    [
        ("vxlan", ["ip", "link", "delete", "flannel.1"]),
        ("host-gw", ["ip", "route", "flush", "protocol", "80"]),
    ],
)
def test_a_host_among_a_thousand(backend: str, damage: list[str]) -> None:
    """From the start on, after three seconds of coming and going, and after all of it was damaged at once."""
    with crowded_network(f"c{os.getpid()}", backend, STANDING, deadline_s=DEADLINE_S) as network:
        network.start()
        network.wait_right()
        newcomers = network.newcomers(NEWCOMERS)

        storm = network.churn(newcomers, per_s=PER_S, standing=STAY)

        assert storm.written == 2 * NEWCOMERS - STAY
        network.wait_right(newcomers[-STAY:])
        status = json.loads(network.host.flannelctl("status", "--json"))
        assert status["peers"] == STANDING + STAY
        assert status["reconcile"]["repairs"] == 0  # nobody but the daemon changed anything

        network.host.run(damage)

        network.wait_right(newcomers[-STAY:])
