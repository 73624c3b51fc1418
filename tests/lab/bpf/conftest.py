"""Two hosts with a container each on a common underlay, and the requested parts of the fast path."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from pyflannel.kernel.bpf.fast_path import FastPath
from pyflannel.kernel.bpf.hooks import TcxHooks
from pyflannel.kernel.bpf.layout import Outcome, Sender
from pyflannel.kernel.bpf.target import LOOK_S, BpfTarget
from pyflannel.lab.waiting import wait_until
from pyflannel.model.fast_path import BpfContainer, BpfPeer, BpfProgram, Role, Tunnel
from pyflannel.model.forwarder import Forwarder, ForwarderPeer, Stranger
from pyflannel.model.state import Add, Remove, Replace, State
from pyflannel.plan.diff import diff
from pyflannel.processes.forwarder import ForwarderTarget

DEADLINE_S = 60.0
MTU = 1472
_FORWARD = "sysctl -qw net.ipv4.ip_forward=1"
_ORDER = (BpfPeer, BpfContainer, BpfProgram)
_RECEIVED = re.compile(r"(\d+) packets transmitted, (\d+) received")


class Started(subprocess.Popen[str]):
    """A program in a namespace, with the interface of the programs that the lab starts."""

    name = "a program"
    log: Path

    def send(self, number: int) -> None:
        self.send_signal(number)


class Container:
    """A namespace on a bridge of a host.

    Attributes:
        directory: programs in the namespace write to `log/NAME.log` in this directory.
    """

    def __init__(self, host: "Host", namespace, address: str, link: str, mac: str) -> None:
        self.namespace = namespace
        self.address = address
        self.link = link
        host.namespace.ip(
            f"link add {link} type veth peer name eth0 address {mac} netns {namespace.name}",
            f"link set {link} master docker0 mtu {host.mtu} up",
        )
        namespace.ip(
            f"link set eth0 mtu {host.mtu} up",
            f"address add {address}/24 dev eth0",
            f"route add default via {host.gateway}",
        )
        self.mac = mac
        self.directory = host.run_dir

    def start_in_network(self, command: Sequence[str], *, name: str) -> Started:
        """Start a program in the background. The program writes to `log/NAME.log`."""
        path = self.directory / "log" / f"{name}.log"
        path.parent.mkdir(exist_ok=True)
        with path.open("w") as log:
            started = Started(["ip", "netns", "exec", self.namespace.name, *command], stdout=log)
        started.log = path
        return started

    @property
    def entry(self) -> BpfContainer:
        return BpfContainer(
            device="flannel0", address=IPv4Address(self.address), mac=self.mac, link=self.link
        )

    def ping(self, address: str, *words: str, count: int = 3) -> tuple[int, str]:
        """Ping `address`. Return the number of answers, and the output of ping."""
        said = self.namespace.attempt(
            "ping", "-n", "-c", str(count), "-i", "0.05", "-W", "30", *words, address
        )
        return int(_RECEIVED.search(said)[2]), said


class Host:
    """A host with an underlay, flannel0, docker0 and a container. The subnet of the host is
    10.100.NUMBER.0/24.

    Attributes:
        device: the device of the tunnel.
        hops: the number of hops between the containers of two hosts.
    """

    device = "flannel0"
    hops = 4
    mtu = MTU

    def __init__(self, number: int, make_namespace, run_dir: Path) -> None:
        run_dir.mkdir()
        self.run_dir = run_dir
        self.number = number
        self.make_namespace = make_namespace
        self.namespace = make_namespace()
        self.address = f"10.9.0.{number}"
        self.subnet = IPv4Network(f"10.100.{number}.0/24")
        self.gateway = f"10.100.{number}.1"
        self.caches_flows = False

    def equip(self) -> None:
        """Create device, bridge and container, as on a host whose packets pass user space."""
        ends = ("flannel0-gro", "flannel0-rx")
        self.namespace.ip(
            "tuntap add flannel0 mode tun",
            f"link set flannel0 mtu {MTU} up",
            f"address add {self.subnet.network_address}/16 dev flannel0",
            f"link add name {ends[0]} mtu 9000 type veth peer name {ends[1]} mtu 9000",
        )
        settings = [f"ethtool -K {end} tso off gro on" for end in ends]
        self.namespace.command("sh", "-ec", "; ".join([_FORWARD, *settings]))
        self.namespace.ip(*(f"link set {end} up" for end in ends))
        self.add_bridge()

    def add_bridge(self) -> None:
        """Create the bridge with a container."""
        self.namespace.ip(
            "link add docker0 type bridge forward_delay 0",
            f"link set docker0 address 02:42:0a:64:{self.number:02x}:01 mtu {self.mtu} up",
            f"address add {self.gateway}/24 dev docker0",
        )
        self.container = self.add_container()

    def add_container(self, last: int = 2, link: str = "") -> Container:
        """Start another container, with the address and the MAC address that Docker would assign."""
        return Container(
            self,
            self.make_namespace(),
            f"10.100.{self.number}.{last}",
            link or f"veth{last}",
            f"02:42:0a:64:{self.number:02x}:{last:02x}",
        )

    @property
    def tunnel(self) -> Tunnel:
        return Tunnel(
            device="flannel0",
            underlay="eth0",
            address=IPv4Address(self.address),
            subnet=self.subnet,
            port=8285,
            mtu=self.mtu,
            gro_link="flannel0-gro",
            caches_flows=self.caches_flows,
        )

    def program(self, role: Role) -> BpfProgram:
        """The program of a role, at its link."""
        links = {
            Role.ENCAPSULATE: "flannel0",
            Role.DECAPSULATE: "eth0",
            Role.REJOIN: "flannel0-rx",
            Role.LAST_HOP: "docker0",
            Role.SHORTCUT: self.container.link,
            Role.NEXT_HOP: "eth0",
        }
        return BpfProgram(link=links[role], role=role, tunnel=self.tunnel)

    def peer(self, is_direct: bool = True) -> BpfPeer:
        """Return the peer object of this host, for the tables of other hosts."""
        return BpfPeer(
            device="flannel0",
            subnet=self.subnet,
            address=IPv4Address(self.address),
            port=8285,
            is_direct=is_direct,
        )

    def plan(self, *peers: BpfPeer) -> State:
        """The complete fast path of this host."""
        programs = [self.program(role) for role in Role]
        return State.of(*peers, self.container.entry, *programs)

    def act(self, work: Callable, hooks=TcxHooks):
        """Run a coroutine function with a new target, like the target of a daemon that has just started."""

        async def with_target():
            async with make_target(hooks) as target:
                return await work(target)

        return self.namespace.run(with_target)

    def heal(self, desired: State, hooks=TcxHooks) -> list:
        """Make a pass and return its operations. No operation may be refused."""

        async def make_pass(target):
            operations = await heal(target, desired)
            if self.caches_flows:
                await target.snapshot(desired)
                await target.renew()
            return operations

        return self.act(make_pass, hooks)

    def snapshot(self, desired: State, hooks=TcxHooks) -> State:
        return self.act(lambda target: target.snapshot(desired), hooks)

    def counts(self, hooks=TcxHooks) -> dict[Outcome, int]:
        """Return the packets by outcome, without outcomes that did not occur."""

        async def count(target):
            await target.snapshot(State.of(self.peer()))
            return {
                outcome: packets for outcome, (packets, _) in target.counts("flannel0").items() if packets
            }

        return self.act(count, hooks)

    def received(self, hooks=TcxHooks) -> Mapping[Sender, int]:
        """Return the bytes that the programs decapsulated, by sender."""

        async def read() -> Mapping[Sender, int]:
            with closing(FastPath(choose_hooks=hooks)) as programs:
                return await programs.received("flannel0")

        return self.namespace.run(read)

    def strangers(self) -> list[Stranger]:
        """The senders of packets that the guard dropped."""

        async def look(target):
            await target.snapshot(State.of(self.peer()))
            return sorted(target.strangers("flannel0"), key=lambda one: (one.address, one.reason))

        return self.act(look)

    def start_forwarder(self, *peers: "Host") -> None:
        """Start the forwarder, for the packets that the programs do not carry."""
        forwarder = Forwarder(
            link="flannel0",
            tunnel_address=self.subnet.network_address,
            subnet=self.subnet,
            listen_address=IPv4Address(self.address),
            port=8285,
            mtu=MTU,
        )
        entries = [
            ForwarderPeer(link="flannel0", subnet=peer.subnet, address=IPv4Address(peer.address), port=8285)
            for peer in peers
        ]

        async def start():
            return await ForwarderTarget(self.run_dir).apply([Add(item) for item in (forwarder, *entries)])

        assert self.namespace.run(start) == []
        self.namespace.settle(flannel0="UP")

    def forwarder_counters(self) -> dict[str, int]:
        async def ask():
            return await ForwarderTarget(self.run_dir).counters()

        return self.namespace.run(ask)

    def stop(self) -> None:
        with suppress(OSError), closing(socket.socket(socket.AF_UNIX)) as probe:
            probe.connect(str(self.run_dir / "forwarder.sock"))
            credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            os.kill(int.from_bytes(credentials[:4], sys.byteorder), signal.SIGKILL)

    def add_route(self, subnet: IPv4Network, *words: str) -> None:
        """Add another route to the subnet of a peer."""
        self.namespace.ip(f"route add {subnet} dev flannel0 {' '.join(words)}")

    def packets_sent(self, link: str) -> int:
        """Return the number of packets that a link sent, as counted by the kernel."""
        shown = json.loads(self.namespace.ip(f"-json -statistics link show {link}"))
        return shown[0]["stats64"]["tx"]["packets"]


class VxlanHost(Host):
    """A host whose tunnel is the vxlan device of the kernel."""

    device = "flannel.1"
    hops = 2
    mtu = 1450

    def equip(self) -> None:
        """Create the device with the objects of the other host, bridge and container, as flanneld does."""
        other = 35 - self.number
        self.namespace.ip(
            f"link add flannel.1 mtu {self.mtu} address {_vtep(self.number)} type vxlan id 1"
            f" local {self.address} dev eth0 dstport 8472 nolearning",
            "link set flannel.1 up",
            f"address add {self.subnet.network_address}/32 dev flannel.1",
            f"neighbour add 10.100.{other}.0 lladdr {_vtep(other)} dev flannel.1 nud permanent",
            f"route add 10.100.{other}.0/24 via 10.100.{other}.0 dev flannel.1 onlink metric 2",
        )
        forwarding = f"bridge fdb add {_vtep(other)} dev flannel.1 dst 10.9.0.{other}"
        self.namespace.command("sh", "-ec", f"{_FORWARD}; {forwarding}")
        self.add_bridge()

    @property
    def tunnel(self) -> Tunnel:
        return Tunnel(
            device="flannel0",
            underlay="eth0",
            address=IPv4Address(self.address),
            subnet=self.subnet,
            port=8472,
            mtu=self.mtu,
            caches_flows=True,
            vxlan_link="flannel.1",
            vni=1,
        )

    def plan(self, *_: BpfPeer) -> State:
        """The complete fast path of this host, which needs no entries of peers."""
        roles = (Role.DECAPSULATE, Role.NEXT_HOP, Role.LAST_HOP, Role.SHORTCUT)
        return State.of(self.container.entry, *(self.program(role) for role in roles))

    def add_route(self, subnet: IPv4Network, *words: str) -> None:
        base = subnet.network_address
        self.namespace.ip(f"route add {subnet} via {base} dev flannel.1 onlink {' '.join(words)}")


def _vtep(number: int) -> str:
    return f"02:00:00:00:00:{number:02x}"


HOSTS = {"udp": Host, "vxlan": VxlanHost}


@pytest.fixture(name="make_target")
def give_make_target() -> Callable[..., BpfTarget]:
    """Return the function that makes a target like a daemon."""
    return make_target


def make_target(hooks=TcxHooks, look_s: float = LOOK_S, **changes) -> BpfTarget:
    return BpfTarget(FastPath(choose_hooks=hooks, **changes), look_s)


@pytest.fixture(name="heal")
def give_heal() -> Callable:
    """Return the function that makes a pass with a target."""
    return heal


async def heal(target: BpfTarget, desired: State) -> list:
    """Make a pass and return its operations. No operation may be refused."""
    found = await target.snapshot(desired)
    operations = sorted(diff(desired, found), key=_rank)
    assert list(await target.apply(operations)) == []
    return operations


def _rank(operation) -> int:
    match operation:
        case Remove(item):
            return -_ORDER.index(type(item))
        case Replace(_, item) | Add(item):
            return _ORDER.index(type(item))


@contextmanager
def two_hosts(make_namespace, tmp_path: Path, backend: str = "udp") -> Iterator[list[Host]]:
    """Yield two hosts on one underlay, each with a container, without a program."""
    made = [HOSTS[backend](number, make_namespace, tmp_path / f"run{number}") for number in (15, 20)]
    one, two = made
    one.namespace.ip(f"link add eth0 type veth peer name eth0 netns {two.namespace.name}")
    for host in made:
        host.namespace.ip(f"address add {host.address}/24 dev eth0", "link set eth0 up")
        host.equip()
    for host in made:
        host.namespace.settle(eth0="UP", docker0="UP")
    try:
        yield made
    finally:
        for host in made:
            host.stop()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test of two hosts in mode safe, and with `--long` also in mode flow."""
    if "mode" in metafunc.fixturenames:
        is_long = metafunc.config.getoption("--long")
        metafunc.parametrize("mode", ["safe", "flow"] if is_long else ["safe"], scope="session")


@pytest.fixture
def hosts(make_namespace, tmp_path, mode) -> Iterator[list[Host]]:
    """Two hosts on one underlay, each with a container, without a program."""
    with two_hosts(make_namespace, tmp_path) as made:
        for host in made:
            host.caches_flows = mode == "flow"
            if host.caches_flows:
                host.namespace.command("sysctl", "-qw", "net.netfilter.nf_conntrack_tcp_be_liberal=1")
        yield made


@pytest.fixture(scope="module")
def shared_hosts(make_shared_namespace, tmp_path_factory) -> Iterator[list[Host]]:
    """Two hosts as in `hosts`, shared by all tests of a module."""
    with two_hosts(make_shared_namespace, tmp_path_factory.mktemp("hosts")) as made:
        yield made


@pytest.fixture(scope="session")
def make_hosts() -> Callable:
    """Return the function that makes two further hosts."""
    return two_hosts


@pytest.fixture
def linked(hosts) -> list[Host]:
    """Two hosts with the peer in the tables of their programs. No process of pyflannel runs."""
    one, two = hosts
    one.heal(one.plan(two.peer()))
    two.heal(two.plan(one.peer()))
    return hosts


@pytest.fixture
def relayed(linked) -> list[Host]:
    """Two hosts as in `linked`, each with a running forwarder."""
    one, two = linked
    one.start_forwarder(two)
    two.start_forwarder(one)
    wait_until(
        lambda: one.container.ping(two.container.address, count=1)[0] == 1,
        what="the containers reach each other",
        deadline_s=DEADLINE_S,
    )
    return linked


@pytest.fixture(name="open_socket", scope="session")
def give_open_socket():
    """Return the function that opens a socket in a namespace."""
    return open_socket


def open_socket(namespace, kind: int, protocol: int = 0) -> socket.socket:
    """Return a socket of a namespace. The test can use the socket from outside of the namespace."""

    async def make() -> socket.socket:
        return socket.socket(socket.AF_INET, kind, protocol)

    made = namespace.run(make)
    made.settimeout(DEADLINE_S)
    return made


@pytest.fixture
def send_stream() -> Callable[..., bool]:
    """Return the function that sends random bytes by TCP and returns whether they arrived unchanged."""

    def send(source: Container, destination: Container, size: int = 8 << 20) -> bool:
        sent = os.urandom(size)
        with (
            open_socket(destination.namespace, socket.SOCK_STREAM) as listener,
            open_socket(source.namespace, socket.SOCK_STREAM) as client,
        ):
            listener.bind((destination.address, 0))
            listener.listen()
            client.connect(listener.getsockname())
            accepted, _ = listener.accept()
            accepted.settimeout(DEADLINE_S)
            sending = threading.Thread(target=_send_all, args=(client, sent))
            sending.start()
            with accepted, accepted.makefile("rb") as stream:
                received = stream.read()
            sending.join()
        return received == sent

    return send


def _send_all(client: socket.socket, data: bytes) -> None:
    with suppress(OSError):  # the receiver prints the digest of the received bytes
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
