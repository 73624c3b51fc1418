"""A daemon for the page, without a kernel. A test adds, disconnects and repairs its hosts."""

import asyncio
import ctypes
import random
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Network, ip_address
from pathlib import Path

from pyflannel.api.page.access import Access
from pyflannel.api.page.routes import page_routes
from pyflannel.http.server import HttpServer
from pyflannel.http.sockets import listen_tcp
from pyflannel.model.lease import Lease, LeaseAttributes, PeerEntry
from pyflannel.model.network_config import IpNetwork
from pyflannel.model.probe import SILENT, Echo, EchoResult
from pyflannel.model.status import (
    BackendStatus,
    JournalEntry,
    LeaseStatus,
    NetworkStatus,
    Notice,
    PlannedChange,
    PlanPreview,
    ReconcileStatus,
    RefusedPeer,
    Status,
    StoreStatus,
    UnderlayStatus,
)

CONFIG = '{"Network": "10.100.0.0/14", "Backend": {"Type": "vxlan"}}'
_START = 1_790_000_000.0
_CLONE_NEWNET = 0x40000000


class ShownHosts:
    """A network with this number of peers, which answer."""

    def __init__(self, peers: int, config: str = CONFIG) -> None:
        self.config: str | None = config
        self.peers = [lease(number) for number in range(2, peers + 2)]
        self.cut: set[IpNetwork] = set()
        self.refused: dict[IpNetwork, str] = {}
        self.is_probed = True
        self.probe_trouble: Notice | None = None
        self.warnings: tuple[str, ...] = ()
        self.findings = b'{"ok": true, "findings": [], "fixed": []}'
        self.examinations = 0
        self.statuses = 0
        self._traffic = [0, 0]
        self._received: dict[IpNetwork, int] = {}
        self._random = random.Random(7)

    def add(self) -> Lease:
        """Let a host join."""
        self.peers.append(lease(len(self.peers) + 2))
        return self.peers[-1]

    async def status(self) -> Status:
        self.statuses += 1
        for way, most in enumerate((2_600_000, 900_000)):
            self._traffic[way] += self._random.randint(most // 2, most)
        own = lease(1)
        return Status(
            version="1.0.0",
            owner="2e2f4be01e1b4f8a8d0b6d9f",
            host_name="docker1",
            is_ready=True,
            network=NetworkStatus(text=self.config, network=IPv4Network("10.100.0.0/14")),
            lease=LeaseStatus(phase="held", subnet=own.subnet, expires_in_s=82_000.0, since_s=4_400.0),
            underlay=UnderlayStatus(
                link="eth0",
                address=own.attributes.public_ip,
                public_ip=own.attributes.public_ip,
                mtu=1500,
            ),
            backend=BackendStatus(
                type="vxlan",
                link="flannel.1",
                mtu=1450,
                port=8472,
                received=self._traffic[0],
                sent=self._traffic[1],
            ),
            store=StoreStatus(
                url="etcd://10.10.10.1:2379/coreos.com/network", is_connected=True, since_s=4_400.0
            ),
            peers=len(self.peers),
            leases=len(self.peers) + 1,
            refused_peers=tuple(
                RefusedPeer(
                    subnet=one.subnet, public_ip=one.attributes.public_ip, reason=self.refused[one.subnet]
                )
                for one in self.peers
                if one.subnet in self.refused
            ),
            reconcile=ReconcileStatus(
                passes=147, duration_s=0.01, repairs=3, last_repair="link flannel.1: mtu 1300, wanted 1450"
            ),
            warnings=self.warnings,
        )

    def leases(self, most: int | None = None) -> Sequence[Lease]:
        return [lease(1), *self.peers]

    def change_ages(self) -> Mapping[IpNetwork, float]:
        return {}

    async def bytes_from_peers(self, status: Status, peers: Sequence[PeerEntry]) -> Mapping[IpNetwork, int]:
        for place, peer in enumerate(peers):
            most = 2_000_000 if place % 5 == 0 else 50_000
            before = self._received.get(peer.subnet, 0)
            self._received[peer.subnet] = before + self._random.randint(most // 2, most)
        return dict(self._received)

    def events(self) -> Sequence[JournalEntry]:
        return [
            JournalEntry(at=_START, event="planned", found="route 10.100.7.0/24: missing"),
            JournalEntry(at=_START + 1, event="repaired", found="link flannel.1: mtu 1300, wanted 1450"),
        ]

    def config_text(self) -> str | None:
        return self.config

    def probe(self, echoes: Mapping[IpNetwork, Echo]) -> Mapping[IpNetwork, EchoResult]:
        if not self.is_probed:
            return {}
        return {
            subnet: SILENT
            if subnet in self.cut
            else EchoResult(state="reached", rtt_s=self._random.uniform(0.0002, 0.0016))
            for subnet in echoes
        }

    async def preview(self, text: str | None) -> PlanPreview:
        return PlanPreview(changes=(PlannedChange(action="remove", kind="link", text=f"flannel.1 {text}"),))

    async def examine(self) -> bytes:
        self.examinations += 1
        return self.findings


class ShownHost:
    """A daemon with these networks."""

    def __init__(self, **networks: ShownHosts) -> None:
        self.networks: Mapping[str, ShownHosts] = {name.strip("_"): one for name, one in networks.items()}


def lease(number: int) -> Lease:
    """Return the lease of a host."""
    return Lease(
        subnet=IPv4Network((int(IPv4Address("10.100.0.0")) + number * 256, 24)),
        attributes=LeaseAttributes(
            public_ip=IPv4Address("10.10.0.100") + number,
            backend_type="vxlan",
            owner=f"{number:024x}",
            host_name=f"docker{number}",
        ),
    )


def classes_of(subnet: IpNetwork) -> str:
    """Return the expression of JavaScript for the classes of a peer on the map, such as `peer reached`."""
    name = str(subnet).translate(str.maketrans("./", "--"))
    return f"document.getElementById('peer-{name}')?.classList.value"


def _leave_network() -> None:
    """Move this thread into a network namespace without links, so that its probes reach no host."""
    ctypes.CDLL(None).unshare(_CLONE_NEWNET)


@contextmanager
def served(daemon: ShownHost, ip: str = "127.0.0.1", token_file: Path | None = None) -> Iterator[str]:
    """Serve the page in a thread during the block. Yield the URL of the page."""
    address = ip_address(ip)
    listener = listen_tcp(address, 0)
    port = listener.getsockname()[1]
    loop = asyncio.new_event_loop()
    server = HttpServer(page_routes(daemon, Access(address, token_file)))
    task = loop.create_task(server.serve(listener))

    def run() -> None:
        _leave_network()
        try:
            loop.run_until_complete(task)
        except asyncio.CancelledError:
            loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}/"
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join(20)
