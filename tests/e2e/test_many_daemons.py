"""Many hosts that start at the same time: each gets a separate subnet, and knows all others."""

import asyncio
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from ipaddress import IPv4Interface
from typing import Any

import pytest

from pyflannel.commands.network_client import ControlClient
from pyflannel.lab.lab import PREFIX, EtcdServer, Lab
from pyflannel.lab.program import Program
from pyflannel.lab.topology import Host, HostPlace, Segment, Topology
from pyflannel.lab.traffic import ping
from pyflannel.lab.waiting import together, wait_until
from pyflannel.wire.network_config_json import parse_network_config
from testlab.joining import Crowd, join_at_once

CONFIG = '{"Network":"10.0.0.0/12"}'
SEGMENT = Segment("wide", IPv4Interface("172.30.0.1/16"))
START_S = 120.0
KNOWN_S = 60.0
"""Deadline in seconds until the hosts know each other on a busy machine; usually 5 s."""


@contextmanager
def hosts_on_one_segment(count: int) -> Iterator[tuple[Lab, list[Host], EtcdServer]]:
    """Create this number of hosts on one segment, and an etcd beside its router with the network config."""
    places = tuple(
        HostPlace(f"host{number}", SEGMENT, IPv4Interface(f"172.30.1.{number}/16"))
        for number in range(1, count + 1)
    )
    with Lab(f"m{os.getpid()}", Topology((SEGMENT,), places)) as lab:
        etcd = EtcdServer(lab.router, str(SEGMENT.gateway.ip))
        etcd.start()
        etcd.etcdctl("put", f"{PREFIX}/config", CONFIG)
        yield lab, list(lab.hosts.values()), etcd


def start_at_once(count: int) -> tuple[float, float]:
    """Start the daemons at once.

    Return the seconds until the last lease, and until all hosts know all others.
    """
    with hosts_on_one_segment(count) as (_, hosts, etcd):
        began = datetime.now(UTC)
        daemons = together(
            [partial(host.start_flanneld, "--store", etcd.url, deadline_s=START_S) for host in hosts]
        )
        wait_until(
            lambda: all(time_of_peers(daemon, count - 1) is not None for daemon in daemons),
            what="all hosts know all others",
            deadline_s=KNOWN_S,
        )
        leased = max(time_of_lease(daemon) for daemon in daemons)
        known = max(time_of_peers(daemon, count - 1) or began for daemon in daemons)
        for host in hosts:
            wait_known(host, count - 1)

        assert len({host.lease() for host in hosts}) == count
        leases = etcd.etcdctl("get", "--prefix", "--keys-only", f"{PREFIX}/subnets/").split()
        assert len(leases) == count
        first, last = hosts[0], hosts[-1]
        wait_until(
            lambda: ping(first, last.lease().network_address).is_reached,
            what="the first reaches the last",
            deadline_s=KNOWN_S,
        )
    return (leased - began).total_seconds(), (known - leased).total_seconds()


def said(daemon: Program, pattern: str) -> list[tuple[datetime, re.Match[str]]]:
    """Return the entry of this form in a daemon's log, and its time."""
    assert daemon.log is not None
    lines = re.findall(r"^I(\d{4} [\d:.]+) .*?\] (.*)$", daemon.log.read_text(), re.MULTILINE)
    year = datetime.now(UTC).year
    return [
        (datetime.strptime(f"{year}{when}", "%Y%m%d %H:%M:%S.%f").astimezone(), found)
        for when, text in lines
        if (found := re.match(pattern, text))
    ]


def time_of_lease(daemon: Program) -> datetime:
    return said(daemon, "Lease acquired: ")[0][0]


def time_of_peers(daemon: Program, peers: int) -> datetime | None:
    """Return the time at which a daemon logged this number of peers; None before. No peer leaves."""
    known = 0
    for when, found in said(daemon, r"Subnets? added: (?:(\d+)$)?"):
        known += int(found[1] or 1)
        if known == peers:
            return when
    return None


def wait_known(host: Host, peers: int) -> None:
    """Wait until a host's status counts this number of peers."""
    client = ControlClient(host.directory / "run/flannel/flanneld.sock")
    wait_until(
        lambda: asyncio.run(client.status()).peers == peers,
        what=f"{host.name} knows {peers} peers",
        deadline_s=KNOWN_S,
    )


@pytest.mark.timeout(3600)
def test_forty_daemons_that_start_at_once_get_separate_subnets(
    long_run: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """The daemons start once, or ten times with --long. The durations are printed."""
    for _ in range(10 if long_run else 1):
        leased_s, known_s = start_at_once(40)
        with capsys.disabled():
            print(
                f"\n40 daemons at once: last lease after {leased_s:.1f} s, all knew all {known_s:.1f} s later"
            )


@pytest.mark.timeout(300)
def test_two_hundred_hosts_join_at_once(
    new_etcd: Callable[[], Any], long_run: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --long, a thousand hosts join. The hosts use the real lease protocol and etcd, but no kernel."""
    etcd, hosts = new_etcd(), 1000 if long_run else 200
    etcd.start()

    joining = join_at_once(
        Crowd(
            url=f"etcd://{etcd.endpoint}{PREFIX}",
            network=parse_network_config(CONFIG),
            hosts=hosts,
            processes=hosts // 50,
            watchers=hosts,
            deadline_s=240,
        )
    )

    with capsys.disabled():
        print(
            f"\n{hosts} hosts joined: last lease after {joining.last_lease_s:.1f} s, all known after"
            f" {joining.all_known_s:.1f} s, {joining.lost_races} races lost"
        )
    assert joining.lost == ()
    assert len({host.subnet for host in joining.hosts}) == hosts
    assert all(host.known_s is not None for host in joining.hosts)
    keys = etcd.ctl("get", "--prefix", "--keys-only", f"{PREFIX}/subnets/").stdout.split()
    assert len(keys) == hosts
