"""Hosts that start at the same time always get a lease each, and reach each other."""

import os
import statistics
import time
from functools import partial

import pytest

from pyflannel.lab.containers import NamespaceContainer
from pyflannel.lab.lab import EtcdServer, Lab
from pyflannel.lab.topology import Host
from pyflannel.lab.traffic import ping_all, wait_reached
from pyflannel.lab.waiting import together

REACHED_S = 60.0
WIDE = '{"Network":"10.100.0.0/16"}'
NARROW = '{"Network":"10.100.0.0/16","SubnetMin":"10.100.1.0","SubnetMax":"10.100.4.0"}'
"""A network with as many subnets as hosts, so that hosts choose the same subnets."""


@pytest.mark.parametrize(
    ("store", "config"),
    [("etcd", WIDE), ("etcd", NARROW), ("sqlite", NARROW)],
    ids=["etcd", "etcd-narrow", "sqlite-narrow"],
)
@pytest.mark.timeout(600)
def test_four_hosts_that_start_at_once_reach_each_other(
    store: str, config: str, long_run: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """The test has three rounds, or twenty with --long, which also prints the durations."""
    seconds = [start_at_once(store, config) for _ in range(20 if long_run else 3)]

    if long_run:
        median, most = statistics.median(seconds), max(seconds)
        with capsys.disabled():
            print(
                f"\n{store}: {len(seconds)} rounds; ready after {median:.2f} s (median), {most:.2f} s (most)"
            )


def start_at_once(store: str, config: str) -> float:
    """Start four hosts in a new lab, check them, and return the seconds until the last host was ready."""
    with Lab(f"t{os.getpid()}-once") as lab:
        hosts = list(lab.hosts.values())
        flag = open_store(lab, store, config)

        began = time.monotonic()
        lab.each(lambda host: host.start_flanneld(flag))
        taken = time.monotonic() - began
        containers = together([partial(add_container, host) for host in hosts])
        wait_reached(containers, deadline_s=REACHED_S)
        results = ping_all(containers, count=5)

        assert len({host.lease() for host in hosts}) == 4
        assert [pair for pair, result in results.items() if not result.is_reached] == []
    return taken


def open_store(lab: Lab, store: str, config: str) -> str:
    if store == "etcd":
        etcd = EtcdServer(lab.router, "10.10.10.1")
        etcd.start()
        etcd.etcdctl("put", "/coreos.com/network/config", config)
        return f"--etcd-endpoints={etcd.endpoint}"
    lab.hosts["docker1"].flannelctl("--store", lab.sqlite_url, "config", "set", config)
    return f"--store={lab.sqlite_url}"


def add_container(host: Host) -> NamespaceContainer:
    return host.container(f"on-{host.name}", gateway=host.gateway(), mtu=1472)
