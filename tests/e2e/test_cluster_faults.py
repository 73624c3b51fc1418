"""The reaction of hosts if their etcd cluster of three members loses members, its history or its data.

The data path is pinged a hundred times a second, and no ping may be lost. Most tests run only with --long.
"""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from ipaddress import IPv4Interface
from itertools import product
from typing import Any

import pytest

from pyflannel.errors import LabError
from pyflannel.lab.lab import CLIENT_PORT, PREFIX
from pyflannel.lab.program import Program
from pyflannel.lab.topology import LEFT, Host, HostPlace
from pyflannel.lab.traffic import ping
from pyflannel.lab.waiting import together, wait_until
from testlab.faults import partitioned, paused

SOON_S = 60.0
GUEST = f"{PREFIX}/subnets/10.100.250.0-24"
GUEST_LEASE = '{"PublicIP":"203.0.113.9"}'
CONFIG = '{"Network":"10.100.0.0/16","SubnetMin":"10.100.100.0","SubnetMax":"10.100.127.0"}'
"""No host chooses a subnet that a test writes manually."""
PLACES = tuple(
    HostPlace(f"store{number}", LEFT, IPv4Interface(f"10.10.10.{200 + number}/24")) for number in (1, 2, 3)
)

Pinging = Callable[[Any, str], AbstractContextManager[Any]]


class Member:
    """One etcd of the cluster, on a separate host."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.client = f"http://{host.address}:{CLIENT_PORT}"
        self.peer = f"http://{host.address}:2380"
        self.program: Program | None = None

    def start(self, cluster: str, state: str = "new") -> None:
        self.program = self.host.start_service(
            [
                "etcd",
                f"--name={self.host.name}",
                "--data-dir=/var/lib/etcd-lab",
                "--unsafe-no-fsync",
                f"--listen-client-urls=http://0.0.0.0:{CLIENT_PORT}",
                f"--advertise-client-urls={self.client}",
                f"--listen-peer-urls={self.peer}",
                f"--initial-advertise-peer-urls={self.peer}",
                f"--initial-cluster={cluster}",
                f"--initial-cluster-state={state}",
            ],
            name="etcd",
        )

    def kill(self) -> None:
        assert self.program is not None
        self.program.kill()

    def ctl(self, *argv: str) -> str:
        command = ["env", "ETCDCTL_API=3", "etcdctl", f"--endpoints={self.client}", *argv]
        return self.host.run(command).stdout

    def status(self) -> dict[str, Any]:
        """Wait until the member responds. Return the status of the member."""
        found: list[dict[str, Any]] = []
        wait_until(
            lambda: bool(found.append(self.ask()) or found[-1]),
            what=f"{self.host.name} answers",
            deadline_s=SOON_S,
        )
        return found[-1]

    def ask(self) -> dict[str, Any]:
        """Return the status of the member, or None if it does not respond immediately."""
        try:
            (said,) = json.loads(self.ctl("--command-timeout=1s", "endpoint", "status", "-w", "json"))
        except (LabError, ValueError):
            return {}
        status: dict[str, Any] = said["Status"]
        return status

    @property
    def number(self) -> str:
        """The ID of the member in etcdctl."""
        return f"{self.status()['header']['member_id']:x}"


class Cluster:
    """Three members. etcdctl uses the first member that responds and has a majority."""

    def __init__(self, hosts: list[Host]) -> None:
        self.members = [Member(host) for host in hosts]
        self.names = ",".join(f"{member.host.name}={member.peer}" for member in self.members)
        places = ",".join(f"{host.address}:{CLIENT_PORT}" for host in hosts)
        self.url = f"etcd://{places}{PREFIX}"

    def start(self) -> None:
        together([lambda member=member: member.start(self.names) for member in self.members])
        self.leader()

    def leader(self) -> Member:
        """Wait until the other members follow a leader. Return the leader."""
        found: list[Member] = []

        def look() -> bool:
            for member in self.members:
                status = member.ask()
                if status and status["header"]["member_id"] == status.get("leader"):
                    found.append(member)
            return bool(found)

        wait_until(look, what="the cluster has a leader", deadline_s=SOON_S)
        return found[0]

    def lead(self, member: Member) -> Member:
        """Make a member the leader, and return it."""
        wait_until(lambda: self._leads(member), what=f"{member.host.name} leads", deadline_s=SOON_S)
        return member

    def _leads(self, member: Member) -> bool:
        leader = self.leader()
        if leader is not member:
            succeeds(leader, "move-leader", member.number)
        return leader is member

    def others(self, member: Member) -> list[Member]:
        return [other for other in self.members if other is not member]

    def etcdctl(self, *argv: str) -> str:
        """Run etcdctl against the whole cluster until it succeeds."""
        endpoints = ",".join(member.client for member in self.members)
        said: list[str] = []

        def succeeds() -> bool:
            try:
                said.append(self.members[0].ctl(f"--endpoints={endpoints}", *argv))
            except LabError:
                return False
            return True

        wait_until(succeeds, what=f"etcdctl {argv[0]}", deadline_s=SOON_S)
        return said[-1]


@pytest.fixture(scope="module")
def network(network_of: Callable[..., AbstractContextManager[Any]]) -> Iterator[Any]:
    """Two ready hosts on a complete cluster of three, before and after each test."""
    with network_of("docker1", "docker4", config=None) as network:
        cluster = Cluster(network.lab.add_hosts(*PLACES))
        for place in PLACES:
            del network.hosts[place.name]  # without flanneld
        network.etcd, network.url = cluster, cluster.url
        cluster.start()
        network.put("config", CONFIG)
        network.daemons = dict(zip(network.hosts, network.start_all(), strict=True))
        for name in ("docker1", "docker4"):
            network.wait_status(name, lambda status: status["peers"] == 1, "knows its peer")
        yield network


@contextmanager
def cut_off(hosts: list[Host], port: int = CLIENT_PORT) -> Iterator[None]:
    """Drop all packets between these hosts and the store, but not between the hosts."""
    rules = "\n".join(
        f"chain {hook} {{ type filter hook {hook} priority 0; tcp {side} {port} drop; }}"
        for hook, side in (("input", "sport"), ("output", "dport"))
    )
    for host in hosts:
        host.run(["nft", "-f", "-"], text=f"table ip cut {{\n{rules}\n}}\n")
    try:
        yield
    finally:
        for host in hosts:
            host.run(["nft", "delete table ip cut"])


def connected_member(network: Any, name: str) -> Member:
    """Return the member to which a host is connected."""
    found: list[Member] = []

    def look() -> bool:
        shown = network.hosts[name].run(["ss", "-Htn", "state", "established"]).stdout
        found.extend(
            member
            for member in network.etcd.members
            if re.search(rf"{re.escape(str(member.host.address))}:{CLIENT_PORT}\b", shown)
        )
        return bool(found)

    wait_until(look, what=f"a connection from {name} to a member", deadline_s=SOON_S)
    return found[0]


def started_watches(network: Any) -> int:
    """Return the number of watches that the members have received since they started."""
    ask = f"exec 3<>/dev/tcp/$0/{CLIENT_PORT}; printf 'GET /metrics HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3"
    begun = re.compile(
        r'^grpc_server_started_total{.*grpc_service="etcdserverpb.Watch".*} (\d+)$', re.MULTILINE
    )
    count = 0
    for member in network.etcd.members:
        (number,) = begun.findall(member.host.run(["bash", "-c", ask, str(member.host.address)]).stdout)
        count += int(number)
    return count


def check_follows(network: Any, members: list[Member]) -> None:
    """Write and delete a lease at these members, and check that both hosts receive both changes."""
    endpoints = ",".join(member.client for member in members)

    def ask(*argv: str) -> None:
        wait_until(
            lambda: succeeds(members[0], f"--endpoints={endpoints}", *argv),
            what=f"etcdctl {argv[0]}",
            deadline_s=SOON_S,
        )

    for leases, argv in ((3, ("put", GUEST, GUEST_LEASE)), (2, ("del", GUEST))):
        ask(*argv)
        for name in network.hosts:
            wait_leases(network, name, leases)


def wait_leases(network: Any, name: str, count: int) -> None:
    """Wait until a host knows exactly this number of leases.

    After an absence of the store, the status still counts leases that disappeared, for a while.
    """
    wait_until(
        lambda: len(network.leases_known(name)) == count,
        what=f"{name} knows {count} leases",
        deadline_s=SOON_S,
    )


@pytest.fixture
def in_long_run(long_run: bool) -> None:
    """Skip tests that are too long for the default run: each waits for elections or timeouts."""
    if not long_run:
        pytest.skip("needs --long")


@pytest.fixture
def pings(network: Any, pinging: Pinging) -> Iterator[Any]:
    """The path between the two hosts. After the test, both hosts must be ready with their subnets."""
    before = {name: host.lease() for name, host in network.hosts.items()}
    with pinging(network.hosts["docker1"], network.overlay("docker4")) as pings:
        yield pings
        check_follows(network, network.etcd.members)
        for name in network.hosts:
            network.wait_ready(name)
    assert {name: host.lease() for name, host in network.hosts.items()} == before
    assert pings.lost == 0


def test_no_ping_is_lost_while_the_leader_is_killed_and_restarted(network: Any, pings: Any) -> None:
    """The leader is the member to which a host is connected."""
    cluster = network.etcd
    leader = cluster.lead(connected_member(network, "docker1"))

    leader.kill()
    check_follows(network, cluster.others(leader))
    leader.start(cluster.names)

    pings.wait_answered(more=50)


def test_no_ping_is_lost_while_a_minority_is_cut_off(in_long_run: None, network: Any, pings: Any) -> None:
    """The minority is the leader, and a host is connected to it.

    The leader does not learn that the other members elected another leader.
    """
    cluster = network.etcd
    leader = cluster.lead(connected_member(network, "docker1"))

    with ExitStack() as cuts:
        for other in cluster.others(leader):
            cuts.enter_context(partitioned(network.lab, leader.host, other.host))
        check_follows(network, cluster.others(leader))


def test_no_ping_is_lost_while_a_majority_is_cut_off(in_long_run: None, network: Any, pings: Any) -> None:
    """No write succeeds. The hosts report this, and continue."""
    one, two, three = (member.host for member in network.etcd.members)

    with ExitStack() as cuts:
        for pair in ((one, two), (two, three), (one, three)):
            cuts.enter_context(partitioned(network.lab, *pair))
        away = network.wait_status(
            "docker1", lambda status: not status["is_ready"], "reports it", deadline_s=SOON_S
        )
        pings.wait_answered(more=50)

    assert "the store" in away["waiting_for"]


@pytest.mark.parametrize("count", [1, 3], ids=["leader", "all"])
def test_no_ping_is_lost_while_members_are_stopped_and_continued(
    in_long_run: None, network: Any, pings: Any, count: int
) -> None:
    cluster = network.etcd
    leader = cluster.leader()

    with ExitStack() as pauses:
        for member in [leader, *cluster.others(leader)][:count]:
            assert member.program is not None
            pauses.enter_context(paused(member.program))
        if count == 1:
            check_follows(network, cluster.others(leader))
        else:
            network.wait_status(
                "docker1", lambda status: not status["is_ready"], "reports it", deadline_s=SOON_S
            )


def test_no_ping_is_lost_when_a_member_loses_its_data(in_long_run: None, network: Any, pings: Any) -> None:
    """The member leaves and joins again, as in etcd's manual. After the member has joined, the hosts reach
    only this member.
    """
    cluster = network.etcd
    lost = connected_member(network, "docker1")
    rest = cluster.others(lost)
    number = lost.number

    lost.kill()
    lost.host.run(["rm", "-r", "/var/lib/etcd-lab"])
    wait_until(lambda: succeeds(rest[0], "member", "remove", number), what="removed", deadline_s=SOON_S)
    added = ("member", "add", lost.host.name, f"--peer-urls={lost.peer}")
    wait_until(lambda: succeeds(rest[0], *added), what="added", deadline_s=SOON_S)
    check_follows(network, rest)
    lost.start(cluster.names, state="existing")
    wait_until(lambda: succeeds(lost, "endpoint", "health"), what="healthy", deadline_s=SOON_S)

    with ExitStack() as cuts:
        for host, other in product(network.hosts.values(), rest):
            cuts.enter_context(partitioned(network.lab, host, other.host))
        check_follows(network, [lost])


def test_no_ping_is_lost_when_the_cluster_loses_its_data(in_long_run: None, network: Any, pings: Any) -> None:
    """The cluster starts again with only the network config."""
    cluster = network.etcd
    keys = [network.lease_key(name) for name in network.hosts]

    for member in cluster.members:
        member.kill()
        member.host.run(["rm", "-r", "/var/lib/etcd-lab"])
    cluster.start()
    network.put("config", CONFIG)

    for key in keys:
        wait_written(network, key)


def wait_written(network: Any, key: str, since: int = 0) -> None:
    """Wait until the key was written after revision `since`."""

    def is_written() -> bool:
        record = network.record(key)
        return record is not None and record["mod_revision"] > since

    wait_until(is_written, what=f"{key} is written", deadline_s=SOON_S)


def test_a_lease_is_deleted(network: Any, pings: Any) -> None:
    """The host of the deleted lease acquires the lease again."""
    key = network.lease_key("docker1")
    was = network.record(key)

    network.etcdctl("del", f"{PREFIX}/{key}")

    wait_written(network, key, since=was["mod_revision"])
    assert network.record(key)["value"] == was["value"]


def test_all_leases_are_deleted(network: Any, pings: Any) -> None:
    keys = [network.lease_key(name) for name in network.hosts]
    last = max(network.record(key)["mod_revision"] for key in keys)

    network.etcdctl("del", "--prefix", f"{PREFIX}/subnets/")

    for key in keys:
        wait_written(network, key, since=last)


def test_a_lease_is_acquired_by_another_host(network: Any) -> None:
    """The previous host continues, reports the loss, and acquires the lease again when it is free.

    The test sends no pings, because peers send to the other host.
    """
    host, key = network.hosts["docker1"], network.lease_key("docker1")
    before = host.lease()

    network.put(key, GUEST_LEASE)
    taken = network.wait_status(
        "docker1", lambda status: status["lease"]["phase"] == "taken", "reports it", deadline_s=SOON_S
    )
    during = host.lease()
    network.etcdctl("del", f"{PREFIX}/{key}")
    network.wait_status(
        "docker1", lambda status: status["lease"]["phase"] == "held", "has it back", deadline_s=SOON_S
    )

    assert taken["lease"]["holder"].startswith("203.0.113.9")
    assert during == before == host.lease()
    wait_until(
        lambda: ping(network.hosts["docker4"], network.overlay("docker1"), count=1).is_reached,
        what="docker4 reaches docker1 again",
        deadline_s=SOON_S,
    )


@pytest.mark.parametrize("value", [None, "no JSON"])
def test_the_config_is_deleted_or_damaged(network: Any, pings: Any, value: str | None) -> None:
    """All hosts continue with the previous config, and report it until the config is valid again."""
    if value is None:
        network.etcdctl("del", f"{PREFIX}/config")
    else:
        network.put("config", value)
    for name in network.hosts:
        network.wait_status(name, misses_config, "reports it", deadline_s=SOON_S)
    pings.wait_answered(more=20)

    network.put("config", CONFIG)

    for name in network.hosts:
        network.wait_status(
            name, lambda status: not misses_config(status), "has a good one", deadline_s=SOON_S
        )


def misses_config(status: dict[str, Any]) -> bool:
    """Return whether a host reports that it waits for a valid network config."""
    return "network config" in " ".join(status["warnings"])


def succeeds(member: Member, *argv: str) -> bool:
    """Return whether etcdctl succeeded. The command fails while there is no leader."""
    try:
        member.ctl(*argv)
    except LabError:
        return False
    return True


def compact(network: Any) -> None:
    """Let the cluster remove all earlier revisions."""
    revision = network.etcd.leader().status()["header"]["revision"]
    network.etcdctl("compact", str(revision))


def test_compaction_while_connected(in_long_run: None, network: Any, pings: Any) -> None:
    """The compaction removes revisions that a stopped host has not read. Then the member is killed."""
    network.etcdctl("put", GUEST, GUEST_LEASE)
    wait_leases(network, "docker1", 3)
    member = connected_member(network, "docker1")

    with paused(network.daemons["docker1"]):
        member.kill()
        network.etcdctl("del", GUEST)
        compact(network)
        network.put("elsewhere", "1")
    member.start(network.etcd.names)

    wait_leases(network, "docker1", 2)


def test_compaction_while_cut_off(network: Any, pings: Any) -> None:
    """Changes during the outage appear only in a listing: new leases become peers, and deleted leases
    disappear.
    """
    host = network.hosts["docker1"]
    network.etcdctl("put", GUEST, GUEST_LEASE)
    wait_leases(network, "docker1", 3)

    with cut_off([host]):
        network.wait_status("docker1", lambda status: not status["is_ready"], "reports it", deadline_s=SOON_S)
        network.etcdctl("del", GUEST)
        compact(network)

    wait_leases(network, "docker1", 2)


def test_hosts_acquire_leases_again_that_ended_while_all_hosts_were_cut_off(network: Any, pings: Any) -> None:
    """The store is unreachable for longer than the TTL of the leases. Each host acquires its subnet again."""
    keys = [network.lease_key(name) for name in network.hosts]
    etcd_leases = [network.record(key)["lease"] for key in keys]

    with cut_off(list(network.hosts.values())):
        for name in network.hosts:
            network.wait_status(name, lambda status: not status["is_ready"], "reports it", deadline_s=SOON_S)
        for number in etcd_leases:
            network.etcdctl("lease", "revoke", f"{number:x}")
        gone = [network.record(key) for key in keys]
        pings.wait_answered(more=50)

    assert gone == [None, None]
    for key in keys:
        wait_until(lambda key=key: network.record(key) is not None, what=f"{key}", deadline_s=SOON_S)


def test_a_host_starts_after_a_compaction(in_long_run: None, network: Any, pings: Any) -> None:
    """The watch of the host begins at its listing, which is later than any compaction, and continues."""
    compact(network)
    network.daemons["docker4"].stop()
    network.daemons["docker4"] = network.start("docker4")

    check_follows(network, network.etcd.members)
    before = started_watches(network)
    for _ in range(5):
        check_follows(network, network.etcd.members)

    assert started_watches(network) - before < 5
    assert ping(network.hosts["docker4"], network.overlay("docker1"), count=1).is_reached
