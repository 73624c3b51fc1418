"""The reaction of a host to faults of its store, its lease or a neighbour, on a real etcd and kernel.

The data path is pinged a hundred times a second, and no ping may be lost.
"""

import json
import re
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from itertools import product
from typing import Any

import pytest

from pyflannel.lab.program import Program
from pyflannel.lab.traffic import ping
from pyflannel.lab.waiting import together, wait_until
from testlab.faults import paused

SOON_S = 60.0
"""Deadline in seconds. Usually, a lost lease is acquired again immediately, and a store found in seconds."""

NewNetwork = Callable[..., Any]
NetworkOf = Callable[..., AbstractContextManager[Any]]
Pinging = Callable[[Any, str], AbstractContextManager[Any]]

BACK_S = 90.0
"""Deadline in seconds for a host that waits for its store, and retries at least every 5 s."""

CONFIG = '{"Network":"10.100.0.0/16","SubnetMin":"10.100.100.0","SubnetMax":"10.100.127.0"}'
"""No host chooses a subnet that a test writes manually."""
TTL_S = 5
"""The minimum TTL of a lease."""

ENV = "/run/flannel/subnet.env"
FOREIGN = '{"PublicIP":"203.0.113.9","PublicIPv6":null,"Pyflannel":{"Owner":"other-host"}}'
"""A lease of a host that does not exist."""


def end_like_a_reboot(host: Any, daemon: Program) -> None:
    """End all programs, and remove everything that is not on a disk."""
    daemon.kill()
    found: list[dict[str, Any]] = []

    def answers() -> bool:
        found[:] = [json.loads(host.flannelctl("status", "--json", check=False))["forwarder"] or {}]
        return "pid" in found[0]

    wait_until(answers, what="the forwarder answers", deadline_s=SOON_S)
    host.run(["kill", "-KILL", str(found[0]["pid"])])
    host.run(["ip", "link", "delete", "flannel0"])
    host.run(["rm", "-r", "/run/flannel"])


def is_held(status: dict[str, Any]) -> bool:
    return bool(status["is_ready"]) and status["lease"]["phase"] == "held"


def has_run_out(status: dict[str, Any]) -> bool:
    return bool(status["lease"]["expires_in_s"] == 0)


@contextmanager
def gone(network: Any, etcd: Program, how: str) -> Iterator[None]:
    """Stop the store for the duration of a block."""
    if how == "stopped":
        with paused(etcd):
            yield
        return
    etcd.kill()
    yield
    if how == "loses its data":
        start_without_data(network)
    else:
        network.etcd.start()


def start_without_data(network: Any) -> None:
    """Start an etcd without its previous data, and write the network config again."""
    network.lab.router.run(["rm", "-r", "/var/lib/etcd-lab"])
    network.etcd.start()
    network.put("config", CONFIG)


def revision_of(network: Any) -> int:
    (said,) = json.loads(network.etcdctl("endpoint", "status", "--write-out=json"))
    return int(said["Status"]["header"]["revision"])


@contextmanager
def cut_off(*hosts: Any, hooks: Collection[str] = ("input", "output")) -> Iterator[None]:
    """Drop all packets between these hosts and the store: requests and responses."""
    ports = {"input": "sport", "output": "dport"}
    rules = "\n".join(
        f"chain {hook} {{ type filter hook {hook} priority 0; tcp {ports[hook]} 2379 drop; }}"
        for hook in hooks
    )
    for host in hosts:
        host.run(["nft", "-f", "-"], text=f"table ip cut {{\n{rules}\n}}\n")
    yield
    for host in hosts:
        host.run(["nft", "delete table ip cut"])


def wait_all_known(network: Any, name: str, leases: dict[str, Any]) -> None:
    """Wait until a host's daemon knows exactly these leases."""
    wait_until(
        lambda: network.leases_known(name) == {str(subnet) for subnet in leases.values()},
        what=f"{name} knows all leases",
        deadline_s=BACK_S,
    )


@pytest.fixture(scope="module")
def network(network_of: NetworkOf) -> Iterator[Any]:
    """Three ready hosts. Each test leaves docker1 and docker4 ready with their subnets."""
    with network_of("docker1", "docker2", "docker4", config=CONFIG) as network:
        network.start_all()
        yield network


class TestStoreAway:
    def test_a_host_waits_for_a_store_that_is_unreachable_at_its_start(self, new_network: NewNetwork) -> None:
        """The failure is logged once. The host retries after increasing pauses until the store starts."""
        network = new_network("docker1", config=None)
        starting = partial(network.start, "docker1")

        def come_late() -> None:
            network.wait_logged("docker1", "Trying again in ")
            network.wait_status(
                "docker1", lambda status: "the store" in (status["waiting_for"] or ""), "waits"
            )
            network.etcd.start()
            network.put("config", CONFIG)

        together([starting, come_late])

        network.wait_status("docker1", is_held, "holds its lease")
        said = re.findall("Couldn't fetch network config: (.*)", network.log("docker1"))
        assert len([text for text in said if "etcd does not respond" in text]) == 1
        assert network.log("docker1").count("Restored the store connection") == 1

    def test_a_store_that_is_unreachable_for_a_while_interrupts_no_path(
        self, new_network: NewNetwork, pinging: Pinging
    ) -> None:
        network = new_network("docker1", "docker4", config=None)
        etcd = network.etcd.start()
        network.put("config", CONFIG)
        network.start_all()

        with pinging(network.hosts["docker1"], network.overlay("docker4")) as pings:
            etcd.kill()
            away = network.wait_status("docker1", lambda status: not status["is_ready"], "reports it")
            pings.wait_answered(more=100)
            network.etcd.start()
            back = network.wait_ready("docker1")
        network.wait_logged("docker1", "Restored the store connection")

        assert pings.lost == 0
        assert "the store" in away["waiting_for"]
        assert (away["store"]["is_connected"], away["lease"]["phase"]) == (False, "held")
        assert back["store"]["is_connected"]
        log = network.log("docker1")
        assert log.count("Lost the store connection, data path") == 1
        assert log.count("Restored the store connection") == 1

    @pytest.mark.parametrize("how", ["stopped", "killed", "loses its data"])
    def test_a_store_that_is_unreachable_for_longer_than_the_ttl_interrupts_no_path(
        self, new_network: NewNetwork, pinging: Pinging, long_run: bool, how: str
    ) -> None:
        """Each host has its subnet again, changes arrive, and the path between the hosts was never
        interrupted.
        """
        if how == "killed" and not long_run:
            pytest.skip("needs --long")  # in the short form, etcd would renew all TTLs
        network = new_network("docker1", "docker4", config=None)
        etcd = network.etcd.start()
        network.put("config", CONFIG)
        network.start_all(f"--subnet-lease-ttl={TTL_S}")
        before = {name: host.lease() for name, host in network.hosts.items()}
        for name in network.hosts:
            wait_all_known(network, name, before)

        with pinging(network.hosts["docker1"], network.overlay("docker4")) as pings:
            with gone(network, etcd, how):
                for name in network.hosts:
                    network.wait_status(name, has_run_out, "knows that its lease has run out")
                pings.wait_answered(more=50)
            for name in network.hosts:
                network.wait_status(
                    name,
                    lambda status: is_held(status) and not has_run_out(status),
                    "has a lease again",
                    deadline_s=BACK_S,
                )
            for name in network.hosts:
                wait_all_known(network, name, before)
            network.put("subnets/10.100.250.0-24", FOREIGN)
            for name in network.hosts:
                wait_all_known(network, name, before | {"a guest": "10.100.250.0/24"})
            pings.wait_answered(more=50)

        assert {name: host.lease() for name, host in network.hosts.items()} == before
        assert pings.lost == 0

    @pytest.mark.parametrize("names", [("docker1",), ("docker1", "docker4")])
    def test_dropped_responses_for_longer_than_the_ttl_interrupt_no_path(
        self, new_network: NewNetwork, pinging: Pinging, names: tuple[str, ...]
    ) -> None:
        """Requests arrive and responses do not: leases expire before the failure is detected."""
        network = new_network("docker1", "docker4")
        network.start_all(f"--subnet-lease-ttl={TTL_S}")
        before = {name: host.lease() for name, host in network.hosts.items()}
        for name in network.hosts:
            wait_all_known(network, name, before)
        keys = [network.lease_key(name) for name in names]

        with pinging(network.hosts["docker1"], network.overlay("docker4")) as pings:
            with cut_off(*(network.hosts[name] for name in names), hooks=("input",)):
                for key in keys:
                    wait_until(
                        lambda key=key: network.record(key) is None,
                        what=f"{key} expires",
                        deadline_s=BACK_S,
                    )
                for name in names:
                    network.wait_status(
                        name, lambda status: not status["is_ready"], "reports it", deadline_s=BACK_S
                    )
                pings.wait_answered(more=50)
            for name in network.hosts:
                wait_all_known(network, name, before)
            pings.wait_answered(more=50)

        assert pings.lost == 0

    def test_hosts_follow_a_store_that_is_restored_with_a_later_revision(
        self, new_network: NewNetwork, pinging: Pinging, long_run: bool
    ) -> None:
        """The store lost its data, and its revision exceeds that of the hosts when they reach it again."""
        if not long_run:
            pytest.skip("needs --long")
        network = new_network("docker1", "docker4", config=None)
        etcd = network.etcd.start()
        network.put("config", CONFIG)
        network.start_all()
        before = {name: host.lease() for name, host in network.hosts.items()}
        for name in network.hosts:
            wait_all_known(network, name, before)

        with pinging(network.hosts["docker1"], network.overlay("docker4")) as pings:
            with cut_off(*network.hosts.values()):
                seen = revision_of(network)
                etcd.kill()
                start_without_data(network)
                while revision_of(network) <= seen:
                    network.put("elsewhere", "1")
                for name in network.hosts:
                    network.wait_status(
                        name, lambda status: not status["is_ready"], "reports it", deadline_s=BACK_S
                    )
            for name in network.hosts:
                key = network.lease_key(name)
                wait_until(
                    lambda key=key: network.record(key) is not None,
                    what=f"{key}",
                    deadline_s=BACK_S,
                )
            pings.wait_answered(more=50)

        for name in network.hosts:
            wait_all_known(network, name, before)
            assert is_held(network.wait_ready(name))
        assert pings.lost == 0

    def test_hosts_that_join_during_an_outage_become_peers_after_the_outage(
        self, new_network: NewNetwork
    ) -> None:
        """A host that joined during the outage becomes a peer as soon as the store is reachable."""
        network = new_network("docker1", "docker2", "docker4")
        together([partial(network.start, name) for name in ("docker1", "docker4")])
        host = network.hosts["docker1"]

        with cut_off(host):
            network.start("docker2")
            address = network.overlay("docker2")
            missed = ping(host, address, count=1)

        assert not missed.is_reached
        wait_until(
            lambda: ping(host, address, count=1).is_reached,
            what="docker1 reaches the new host",
            deadline_s=SOON_S,
        )

    def test_a_restart_during_an_outage_uses_the_last_known_state(self, new_network: NewNetwork) -> None:
        """After a boot of the host, device and forwarder are created again, for all known peers."""
        network = new_network("docker1", "docker4", config=None)
        etcd = network.etcd.start()
        network.put("config", CONFIG)
        daemon, _ = network.start_all()
        host, address = network.hosts["docker1"], network.overlay("docker4")
        before, kept = host.lease(), host.directory / "var/lib/flannel/last-known.json"
        for name in network.hosts:
            network.wait_status(name, lambda status: status["peers"] == 1, "knows its peer")
        wait_until(
            lambda: str(network.hosts["docker4"].address) in kept.read_text(),
            what="the peer",
            deadline_s=SOON_S,
        )

        etcd.kill()
        end_like_a_reboot(host, daemon)
        network.launch("docker1")
        wait_until(
            lambda: ping(host, address, count=1).is_reached,
            what="docker1 reaches docker4 without a store",
            deadline_s=SOON_S,
        )
        stale = network.wait_status(
            "docker1",
            # The first pass may still be running when the leases of the previous run are known.
            lambda status: (
                "stale" in " ".join(status["warnings"]) and status["waiting_for"] != "the first pass"
            ),
            "reports it",
        )
        shown = host.flannelctl("status", check=False)
        network.etcd.start()
        back = network.wait_status(
            "docker1",
            lambda status: is_held(status) and "stale" not in " ".join(status["warnings"]),
            "is back",
        )

        assert host.lease() == before
        assert not stale["is_ready"]
        assert "the store" in stale["waiting_for"]
        assert "stale" in shown
        assert back["lease"]["subnet"] == str(before)


class TestLeaseLost:
    def test_a_deleted_lease_is_reacquired(self, network: Any, pinging: Pinging) -> None:
        key, before = network.lease_key("docker1"), network.hosts["docker1"].lease()
        was = network.record(key)
        losses = network.wait_status("docker1", is_held, "holds its lease")["lease"]["losses"]

        with pinging(network.hosts["docker1"], network.overlay("docker4")) as pings:
            network.etcdctl("del", f"/coreos.com/network/{key}")
            wait_until(lambda: network.record(key) is not None, what="another lease", deadline_s=SOON_S)
            pings.wait_answered(more=20)

        now = network.record(key)
        assert pings.lost == 0
        assert now["value"] == was["value"]
        assert now["create_revision"] > was["create_revision"]
        assert network.hosts["docker1"].lease() == before
        network.wait_logged("docker1", f"Lease acquired again: {before}")
        held = network.wait_status("docker1", is_held, "holds its lease")
        assert held["lease"]["losses"] == losses + 1

    def test_all_deleted_leases_are_acquired_again(self, network: Any, pinging: Pinging) -> None:
        before = {name: host.lease() for name, host in network.hosts.items()}
        keys = [network.lease_key(name) for name in network.hosts]

        with pinging(network.hosts["docker2"], network.overlay("docker4")) as pings:
            network.etcdctl("del", "--prefix", "/coreos.com/network/subnets/")
            for key in keys:
                wait_until(lambda key=key: network.record(key), what=f"{key}", deadline_s=SOON_S)
            pings.wait_answered(more=20)

        assert {name: host.lease() for name, host in network.hosts.items()} == before
        for name in network.hosts:
            network.wait_status(name, is_held, "holds its lease")
        assert pings.lost == 0

    def test_a_lease_that_another_host_took_stays_in_use_and_is_acquired_again(self, network: Any) -> None:
        host, other = network.hosts["docker1"], network.hosts["docker4"]
        key, before, text = network.lease_key("docker1"), host.lease(), host.run(["cat", ENV]).stdout

        network.put(key, FOREIGN)
        taken = network.wait_status(
            "docker1", lambda status: status["lease"]["phase"] == "taken", "reports that its subnet was taken"
        )
        during = host.run(["cat", ENV]).stdout, host.run(["ip", "address", "show", "flannel0"]).stdout
        network.etcdctl("del", f"/coreos.com/network/{key}")
        back = network.wait_status("docker1", is_held, "holds its lease")

        assert not taken["is_ready"]
        assert taken["lease"]["holder"] == "203.0.113.9 (other-host)"
        assert "203.0.113.9" in taken["waiting_for"]
        assert during[0] == text
        assert f"inet {before.network_address}/16" in during[1]
        assert back["lease"]["holder"] is None
        assert host.lease() == before
        assert network.log("docker1").count("Lost the subnet to 203.0.113.9 (other-host)") == 1
        wait_until(
            lambda: ping(other, network.overlay("docker1"), count=1).is_reached,
            what="docker4 reaches docker1 again",
            deadline_s=SOON_S,
        )

    def test_a_lease_that_became_a_reservation_remains_a_reservation(self, network: Any) -> None:
        """Another program writes the host's key again, without TTL."""
        key = network.lease_key("docker2")
        network.put(key, network.record(key)["value"])

        status = network.wait_status(
            "docker2",
            lambda status: status["is_ready"] and status["lease"]["is_reservation"],
            "holds a reservation",
        )

        assert status["lease"]["expires_in_s"] is None
        assert "lease" not in network.record(key)

    def test_the_lease_of_a_running_host_is_released_only_with_force(self, network: Any) -> None:
        """A running flanneld answers. After a forced release it acquires the same subnet."""
        host, key = network.hosts["docker2"], network.lease_key("docker2")
        subnet = str(host.lease())

        host.flannelctl("leases", "reserve", subnet)
        refused = host.flannelctl("leases", "release", subnet, "--json", check=False)
        reserved = "lease" not in network.record(key)
        host.flannelctl("leases", "release", subnet, "--force")

        assert "is alive" in json.loads(refused)["error"]["message"]
        assert reserved
        network.wait_status(
            "docker2",
            lambda status: status["is_ready"] and not status["lease"]["is_reservation"],
            "holds a lease again",
        )
        assert str(host.lease()) == subnet


def test_invalid_keys_are_skipped(network: Any, pinging: Pinging) -> None:
    """Each invalid key causes one warning. Peers are not changed, and a starting host is not delayed."""
    bad = {
        "subnets/nonsense": FOREIGN,
        "subnets/10.100.300.0-24": FOREIGN,
        "subnets/10.100.200.0-24": "no JSON",
        "subnets/10.100.201.0-24": '{"PublicIP":"300.1.1.1"}',
        "subnets/10.100.202.0-24": "[]",
        "subnets/10.100.203.0-24": "",
    }

    with pinging(network.hosts["docker1"], network.overlay("docker4")) as pings:
        for key, value in bad.items():
            network.put(key, value)
        for name, key in product(("docker1", "docker4"), bad):
            network.wait_logged(name, f"Skipped {key}: ")
        pings.wait_answered(more=20)
    network.hosts["docker2"].flannelctl("cleanup")
    network.start("docker2")
    ready = network.wait_ready("docker2")
    for key in bad:
        network.etcdctl("del", f"/coreos.com/network/{key}")

    assert pings.lost == 0
    assert all(
        network.log(name).count(f"Skipped {key}: ") == 1 for name in ("docker1", "docker4") for key in bad
    )
    assert not re.search("Traceback|^[EF]", network.log("docker4"), re.MULTILINE)
    assert ready["peers"] == 2


@pytest.fixture
def newcomer(network: Any) -> Any:
    """docker2, which has left the network. docker2 has no flanneld and no lease."""
    network.hosts["docker2"].flannelctl("cleanup")
    return network.hosts["docker2"]


def test_a_reservation_is_used_and_remains_without_ttl(network: Any, newcomer: Any) -> None:
    """The reservation remains after a start and a restart."""
    held = {str(network.hosts[name].lease()) for name in ("docker1", "docker4")}
    subnet = next(
        each for each in (f"10.100.{number}.0/24" for number in range(100, 128)) if each not in held
    )
    key = f"subnets/{subnet.replace('/', '-')}"
    network.put(key, '{"PublicIP":"10.10.10.102"}')

    network.start("docker2").stop()
    first = network.record(key), newcomer.lease()
    network.start("docker2")
    again = network.record(key), network.status("docker2")["lease"]

    network.wait_logged("docker2", f"Found lease ({subnet}) for current IP (10.10.10.102), reusing")
    assert str(first[1]) == subnet
    assert "lease" not in first[0]
    assert "lease" not in again[0]
    assert (again[1]["subnet"], again[1]["is_reservation"]) == (subnet, True)
    network.etcdctl("del", f"/coreos.com/network/{key}")


def test_a_lost_subnet_is_released_on_request(network: Any, newcomer: Any) -> None:
    network.start("docker2", "--on-subnet-lost=renumber")
    key, before = network.lease_key("docker2"), network.overlay("docker2")

    network.put(key, FOREIGN)
    wait_until(lambda: network.overlay("docker2") != before, what="docker2 renumbers", deadline_s=SOON_S)

    now = network.overlay("docker2")
    network.wait_status("docker2", is_held, "holds its new lease")
    assert json.loads(network.record(key)["value"])["PublicIP"] == "203.0.113.9"
    shown = newcomer.run(["ip", "address"]).stdout
    assert f"inet {now}/16" in shown
    assert f"inet {before}/16" not in shown
    wait_until(
        lambda: ping(network.hosts["docker4"], now, count=1).is_reached,
        what="docker4 reaches docker2 at its new subnet",
        deadline_s=SOON_S,
    )
    network.etcdctl("del", f"/coreos.com/network/{key}")


def test_two_running_hosts_with_one_address_keep_separate_subnets(
    network: Any, newcomer: Any, pinging: Pinging
) -> None:
    """The running owner keeps its subnet, the new host acquires another subnet, and each host names the other
    host.
    """
    before, owner = network.hosts["docker1"].lease(), network.status("docker1")["owner"]

    with pinging(network.hosts["docker4"], network.overlay("docker1")) as pings:
        network.start("docker2", "--public-ip=10.10.10.101", "--iface=eth0")
    ids = {"docker1": owner, "docker2": network.status("docker2")["owner"]}

    assert pings.lost == 0
    assert network.hosts["docker1"].lease() == before
    assert newcomer.lease() != before
    shared = (
        "two living hosts share an address or identity: the other is {} at {} (10.10.10.101); {} lease {}"
    )
    for name, peer, holder in (
        ("docker1", "docker2", "this host keeps"),
        ("docker2", "docker1", "the other host holds"),
    ):
        other = ids[peer]
        network.wait_logged(name, shared.format(other, peer, holder, before))
        network.wait_status(
            name, lambda status, other=other: other in " ".join(status["warnings"]), "names the other"
        )


def test_a_dead_owners_lease_is_taken_over(network: Any, newcomer: Any) -> None:
    """Another host has the address of the dead host. No host answers the claim within ten seconds."""
    dead = network.hosts["docker1"]
    dead.run(["kill", "-KILL", dead.run(["cat", "/run/flannel/flanneld.lock"]).stdout.split()[0]])

    began = time.monotonic()
    network.start("docker2", "--public-ip=10.10.10.101", "--iface=eth0")

    assert time.monotonic() - began > 9
    assert newcomer.lease() == dead.lease()
    network.wait_logged("docker2", "asking whether that host is alive")
    owner = json.loads(network.record(network.lease_key("docker2"))["value"])["Pyflannel"]["Owner"]
    assert owner == network.status("docker2")["owner"]
    claims = ("get", "--prefix", "/coreos.com/network/claims/")
    wait_until(lambda: not network.etcdctl(*claims), what="the claim expires", deadline_s=BACK_S)
