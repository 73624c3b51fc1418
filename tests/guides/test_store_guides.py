"""Each command of the guides on etcd, on reservations and on the replacement of hosts runs as printed.

`ETCD` in the guides is the name of the etcd server, and `etcd1` to `etcd3` are the names of the members of a
cluster.
"""

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from ipaddress import IPv4Interface, IPv4Network

import pytest

from pyflannel.lab.lab import CLIENT_PORT, PREFIX, EtcdServer, Lab
from pyflannel.lab.program import Program
from pyflannel.lab.topology import COOKBOOK, LEFT, Host, HostPlace, Topology
from pyflannel.lab.waiting import together, wait_until
from testlab.console import command_blocks, shape
from testlab.pinging import pinging

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: namespaces and mounts")

SOON_S = 60.0
CONFIG = '{"Network":"10.100.0.0/16"}'
PLACES = {place.name: place for place in COOKBOOK.hosts}
SHOWN = {
    "reserved": "10.100.150.0/24",
    "freed": "10.100.226.0-24",
    "address": "10.10.10.101",
    "identity": "be3c31e7af534a0897cfb0acfb502070",
}
"""The values of the guides that are different in each run."""

NetworkOf = Callable[..., "Network"]


class Network:
    """Hosts of a lab, and an etcd beside the router that contains the network config."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.etcd = EtcdServer(lab.router, str(LEFT.gateway.ip))
        self.etcd_program = self.etcd.start()
        self.etcd.etcdctl("put", f"{PREFIX}/config", CONFIG)
        for place in (lab.router, *lab.hosts.values()):
            place.run(["tee", "--append", "/etc/hosts"], text=f"{LEFT.gateway.ip} ETCD\n")

    def start(self, host: Host) -> Program:
        """Start flanneld on a host, and wait until it is ready."""
        return host.start_flanneld(f"--etcd-endpoints={self.etcd.endpoint}")

    def lease(self, subnet: IPv4Network) -> dict[str, object]:
        """Return the record of a lease; {} without a lease."""
        value = self.etcd.etcdctl("get", "--print-value-only", f"{PREFIX}/subnets/{in_key(subnet)}")
        return json.loads(value or "{}")


@pytest.fixture
def network_of() -> Iterator[NetworkOf]:
    """Create a network with these hosts, which is removed after the test."""
    with ExitStack() as stack:

        def make(*names: str) -> Network:
            topology = Topology(COOKBOOK.segments, tuple(PLACES[name] for name in names))
            return Network(stack.enter_context(Lab(f"guide-{os.getpid()}", topology)))

        yield make


def in_this_run(block: str, **values: object) -> str:
    """Return a block with the values of this run."""
    for name, value in values.items():
        assert SHOWN[name] in block
        block = block.replace(SHOWN[name], str(value))
    return block


def run(host: Host, block: str) -> str:
    """Run a block on a host and return its output."""
    return host.run(["bash", "-ec", block]).stdout


def start(host: Host, block: str) -> Program:
    """Start the flanneld of a block, and wait until it is ready."""
    return host.start_service(["bash", "-ec", f"exec {block}"], name="flanneld")


def in_key(subnet: IPv4Network) -> str:
    """Return a subnet as in the key of its lease."""
    return str(subnet).replace("/", "-")


def line_of(table: str, subnet: IPv4Network) -> str:
    """Return the line of a subnet."""
    return next(line for line in table.splitlines() if line.startswith(str(subnet)))


def wait_removed(host: Host, subnet: IPv4Network) -> None:
    """Wait until a host has no peer with this subnet."""
    wait_until(lambda: str(subnet) not in run(host, "flannelctl peers"), what="no peer", deadline_s=SOON_S)


class TestReservations:
    def test_hosts_keep_and_get_reserved_subnets(self, network_of: NetworkOf) -> None:
        network = network_of("docker2", "docker3")
        reserve, reserve_new, remove = command_blocks("docs/guides/reservations.md")
        new, host = network.lab.hosts.values()

        network.lab.router.run(["bash", "-ec", in_this_run(reserve_new, address=new.address)])
        network.start(new)
        network.start(host)
        assert new.lease() == IPv4Network("10.100.5.0/24")

        shown = run(host, in_this_run(reserve, reserved=host.lease()))
        assert "never (reserved)" in line_of(shown, host.lease())

        with pinging(host, str(new.lease().network_address)) as pings:
            run(host, remove)
            wait_until(lambda: network.lease(new.lease()) != {}, what="the lease", deadline_s=SOON_S)
        assert pings.lost == 0
        assert "never" not in line_of(run(host, "flannelctl leases"), new.lease())


class TestReplacement:
    """docker3 leaves the network or is dead, and docker1 remains."""

    @staticmethod
    def blocks(section: str) -> list[str]:
        return command_blocks("docs/guides/replacing-a-host.md", section)

    @pytest.fixture
    def network(self, network_of: NetworkOf) -> Network:
        network = network_of("docker1", "docker3")
        network.start(network.lab.hosts["docker1"])
        return network

    @pytest.fixture
    def remaining(self, network: Network) -> Host:
        return network.lab.hosts["docker1"]

    @pytest.fixture
    def dead(self, network: Network) -> Host:
        """A host that had a lease. The host no longer has a flanneld or a link."""
        host = network.lab.hosts["docker3"]
        network.start(host).kill()
        host.run(["ip", "link", "delete", "eth0"])
        return host

    def test_a_running_host_leaves(self, network: Network, remaining: Host) -> None:
        host = network.lab.hosts["docker3"]
        (leave,) = self.blocks("Planned: the old host still runs")
        network.start(host)
        subnet = host.lease()

        run(host, leave)

        assert network.lease(subnet) == {}
        wait_removed(remaining, subnet)

    def test_the_subnet_of_a_dead_host_is_freed(self, network: Network, remaining: Host, dead: Host) -> None:
        (free,) = self.blocks("The old host is dead, and the new host may have any subnet")

        shown = run(remaining, in_this_run(free, freed=in_key(dead.lease())))

        assert str(dead.address) in line_of(shown, dead.lease())
        wait_removed(remaining, dead.lease())

    def test_a_host_with_the_address_of_a_dead_host_gets_its_subnet(
        self, network: Network, remaining: Host, dead: Host
    ) -> None:
        (log,) = self.blocks("The old host is dead, and the new host has the same address")
        (check,) = self.blocks("Check the result")
        (new,) = network.lab.add_hosts(HostPlace("docker3b", dead.place.segment, dead.place.address))

        network.start(new)

        assert new.lease() == dead.lease()
        logged = shape((new.directory / "log/flanneld.log").read_text())
        assert [line for line in map(shape, log.splitlines()) if line not in logged] == []
        leases, peers = run(remaining, check).split("STATE")
        assert str(new.address) in line_of(leases, new.lease())
        assert "answers in" in line_of(peers, new.lease())

    def test_a_host_with_the_identity_of_a_dead_host_gets_its_subnet(
        self, network: Network, remaining: Host, dead: Host
    ) -> None:
        (command,) = self.blocks("The old host is dead, and the new host needs its subnet at another address")
        listed = line_of(run(remaining, "flannelctl leases --wide"), dead.lease())
        (identity,) = re.findall(r"[0-9a-f]{32}", listed)
        (new,) = network.lab.add_hosts(PLACES["docker4"])
        new.run(["tee", "--append", "/etc/hosts"], text=f"{LEFT.gateway.ip} ETCD\n")

        start(new, in_this_run(command, identity=identity))

        assert new.lease() == dead.lease()
        assert network.lease(new.lease())["PublicIP"] == str(new.address)
        with pinging(remaining, str(new.lease().network_address)) as pings:
            pings.wait_answered(more=10)


MEMBERS = tuple(HostPlace(f"etcd{n}", LEFT, IPv4Interface(f"10.10.10.{200 + n}/24")) for n in (1, 2, 3))


def start_member(host: Host) -> Program:
    """Start one member of the cluster."""
    cluster = ",".join(f"{place.name}=http://{place.address.ip}:2380" for place in MEMBERS)
    return host.start_service(
        [
            *("etcd", f"--name={host.name}", "--data-dir=/var/lib/etcd", "--unsafe-no-fsync"),
            f"--listen-client-urls=http://0.0.0.0:{CLIENT_PORT}",
            f"--advertise-client-urls=http://{host.address}:{CLIENT_PORT}",
            f"--listen-peer-urls=http://{host.address}:2380",
            f"--initial-advertise-peer-urls=http://{host.address}:2380",
            f"--initial-cluster={cluster}",
        ],
        name="etcd",
    )


class TestEtcd:
    GUIDE = "docs/guides/etcd-operation.md"

    def test_hosts_use_the_members_that_run(self, network_of: NetworkOf) -> None:
        network = network_of("docker1", "docker3")
        (command,) = command_blocks(self.GUIDE, "Use several members")
        first, second = network.lab.hosts.values()
        names = "".join(f"{place.address.ip} {place.name}\n" for place in MEMBERS)
        for host in (first, second):
            host.run(["tee", "--append", "/etc/hosts"], text=names)
        members = network.lab.add_hosts(*MEMBERS)
        programs = together([partial(start_member, member) for member in members])
        members[0].run(["etcdctl", "put", f"{PREFIX}/config", CONFIG])
        start(first, command)

        programs[0].kill()
        start(second, command)

        wait_until(
            lambda: str(second.lease()) in run(first, "flannelctl peers"), what="a peer", deadline_s=SOON_S
        )

    def test_a_restored_backup_contains_the_leases_again(self, network_of: NetworkOf) -> None:
        """docker4 joins after the backup, so the restored etcd does not contain its lease."""
        network = network_of("docker1", "docker3", "docker4")
        (backup,) = command_blocks(self.GUIDE, "Back up")
        restore, check = command_blocks(self.GUIDE, "Restore")
        router = network.lab.router
        first, second, late = network.lab.hosts.values()
        network.start(first)
        network.start(second)
        router.run(["mount", "-t", "tmpfs", "tmpfs", "/var/backups"])
        router.run(["bash", "-ec", backup])
        network.start(late)

        with pinging(first, str(second.lease().network_address)) as pings:
            network.etcd_program.kill()
            router.run(["bash", "-ec", restore])
            urls = ("--listen-client-urls=http://0.0.0.0:2379", "--advertise-client-urls=http://ETCD:2379")
            router.start_service(["etcd", "--data-dir=/var/lib/etcd-restored", *urls], name="etcd")
            wait_until(lambda: network.lease(late.lease()) != {}, what="the lease", deadline_s=SOON_S)

        assert pings.lost == 0
        for host in (first, second, late):
            shown = run(host, check)
            assert [line_of(shown, one.lease()) for one in (first, second, late)]
            assert "error" not in shown
