"""A Kubernetes cluster with IPv6 alone, on a double of the API server: its hosts have no IPv4 address."""

import asyncio
import json
import sys
import threading
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from ipaddress import IPv6Address, IPv6Interface, IPv6Network
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, Self

from doubles.fake_api_server import FakeApiServer
from pyflannel.lab.lab import PREFIX
from pyflannel.lab.program import Program
from pyflannel.lab.sandbox import Sandbox
from pyflannel.lab.topology import Host
from pyflannel.lab.waiting import together
from testlab.inside import enter_network
from testlab.overlay import CHANGED_FLANNELD, Overlay, ipv6_underlay
from testlab.pinging import wait_each_reaches

SOON_S = 30.0
NETWORK = IPv6Network("fd00:5::/48")
NAMES = ("docker1", "docker2", "docker3")


class ApiServer:
    """A FakeApiServer in the network of a host, on a thread of its own."""

    def __init__(self, place: Sandbox, address: IPv6Address) -> None:
        self.server = FakeApiServer(str(address))
        self._place = place
        self._loop = asyncio.new_event_loop()
        self._is_up, self._end = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._is_up.wait(SOON_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(SOON_S)

    def do(self, work: Coroutine[Any, Any, None]) -> None:
        """Perform a call of the server."""
        asyncio.run_coroutine_threadsafe(work, self._loop).result(SOON_S)

    def _run(self) -> None:
        enter_network(f"/proc/{self._place.init_pid}/ns/net")
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        async with self.server.serving():
            self._is_up.set()
            await self._end.wait()


class Cluster:
    """The API server on the router, and the flanneld of each host."""

    def __init__(self, overlay: Overlay, api: ApiServer, directory: Path) -> None:
        self.overlay = overlay
        self.api = api
        self.config = directory / "net-conf.json"
        self.kubeconfig = directory / "kubeconfig"
        self.kubeconfig.write_text(
            json.dumps(
                {
                    "current-context": "c",
                    "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
                    "clusters": [{"name": "k", "cluster": {"server": api.server.url}}],
                    "users": [{"name": "u", "user": {"token": "good"}}],
                }
            )
        )

    def configure(self, kind: str, *, nftables: bool = False, **options: object) -> None:
        self.config.write_text(
            json.dumps(
                {
                    "EnableIPv4": False,
                    "EnableIPv6": True,
                    "IPv6Network": str(NETWORK),
                    "EnableNFTables": nftables,
                    "Backend": {"Type": kind, **options},
                }
            )
        )

    def join(self, *hosts: Host, program: Sequence[str] = ("flanneld",)) -> None:
        """Start flanneld on the hosts, and give each a bridge with the address of subnet.env."""

        def start(host: Host) -> None:
            flags = [f"--kubeconfig-file={self.kubeconfig}", f"--net-config-path={self.config}", "--ip-masq"]
            self.overlay.daemons[host.name] = host.start_service(
                [*program, "--kube-subnet-mgr", *flags],
                name="flanneld",
                environment={"NODE_NAME": host.name},
            )
            give_bridge(host)

        together([partial(start, host) for host in hosts])

    def join_with(self, *hosts: Host, module: str, constant: str, value: float) -> None:
        """Start flanneld with another value of a constant of an engine module."""
        changed = CHANGED_FLANNELD.format(module=module, constant=constant, value=value)
        self.join(*hosts, program=(sys.executable, "-c", changed))

    def stop(self, host: Host) -> None:
        """Stop flanneld on a host, whose next start does not continue with the present backend."""
        self.overlay.daemons[host.name].kill()
        host.run(["rm", "/var/lib/flannel/last-known.json"])


def bridge(host: Host) -> IPv6Interface:
    """Return the address for the bridge of the containers, from subnet.env."""
    return IPv6Interface(host.subnet_env()["FLANNEL_IPV6_SUBNET"])


def create_bridge(host: Host) -> None:
    """Create br7, without address and ports."""
    host.run(["ip", "-batch", "-"], text="link add br7 type bridge\nlink set br7 up\n")


def give_bridge(host: Host) -> None:
    """Give br7 the address of subnet.env. An address that br7 has already remains, so that no packet is
    lost.
    """
    if f" {bridge(host)} " in host.run(["ip", "-6", "-o", "address", "show", "dev", "br7"]).stdout:
        return
    batch = f"address flush dev br7 scope global\naddress add {bridge(host)} dev br7 nodad\n"
    host.run(["ip", "-batch", "-"], text=batch)


def reaches(host: Host, other: Host) -> bool:
    command = ["ping", "-n", "-c1", "-W1", "-I", str(bridge(host).ip), str(bridge(other).ip)]
    return host.run(command, check=False).returncode == 0


def wait_reached(*hosts: Host) -> None:
    wait_each_reaches(hosts, reaches, SOON_S)


class Ipv6Container:
    """A network namespace with eth0 on br7, with an address of the host's IPv6 subnet alone."""

    def __init__(self, host: Host, name: str, *, number: int = 2, mtu: int = 1400) -> None:
        gateway = bridge(host)
        self.name = name
        self.address = gateway.network[number]
        self._host = host
        self._into = ["nsenter", f"--net=/run/netns/{name}", "--"]
        host.run(["ip", "netns", "add", name])
        cable = f"link add c-{name} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {name}\n"
        host.run(["ip", "-batch", "-"], text=f"{cable}link set c-{name} master br7 up\n")
        inside = (
            "link set lo up\nlink set eth0 up\n"
            f"address add {self.address}/{gateway.network.prefixlen} dev eth0 nodad\n"
            f"route add default via {gateway.ip}\n"
        )
        host.run(["ip", "-netns", name, "-batch", "-"], text=inside)

    def run(self, argv: Sequence[str], *, check: bool = True) -> CompletedProcess[str]:
        """Run a command in the container."""
        return self._host.run([*self._into, *argv], check=check)

    def start_in_network(self, argv: Sequence[str], *, name: str) -> Program:
        """Start a program of the machine in the network of the container."""
        return self._host.start([*self._into, *argv], name=name)


@contextmanager
def cluster_in(overlay: Overlay) -> Iterator[Cluster]:
    """Two hosts on one segment and one behind the router, with IPv6 addresses alone."""
    hosts = [overlay.hosts[name] for name in NAMES]
    overlay.give_ipv6(*hosts)
    for host in hosts:
        host.run(["ip", "address", "flush", "dev", "eth0", "scope", "global", "to", "0.0.0.0/0"])
        create_bridge(host)
    with ApiServer(overlay.lab.router, ipv6_underlay(hosts[0]).network[0xFE]) as api:
        for number, name in enumerate(NAMES, start=1):
            api.do(api.server.put(name, f"fd00:5:0:{number}::/64"))
        yield Cluster(overlay, api, overlay.lab.directory)


def join_dual_stack(overlay: Overlay, hosts: Sequence[Host]) -> None:
    """Let hosts join a vxlan network with both families. The bridge of each host gets its IPv6 address."""
    overlay.give_ipv6(*hosts)
    config = Overlay.config(EnableIPv6=True, IPv6Network=str(NETWORK), Backend={"Type": "vxlan"})
    overlay.etcd.etcdctl("put", f"{PREFIX}/config", config)
    for host in hosts:
        create_bridge(host)
    together([partial(overlay.join, host) for host in hosts])
    for host in hosts:
        give_bridge(host)
    wait_reached(*hosts)
