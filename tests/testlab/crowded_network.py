"""A real host and a real etcd in a network with many existing leases."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Interface, IPv6Interface

from pyflannel.lab.kernel_path import PeerObjects, objects_of, objects_on
from pyflannel.lab.lab import PREFIX, EtcdServer, Lab
from pyflannel.lab.program import Program
from pyflannel.lab.topology import Host, HostPlace, Topology
from pyflannel.lab.waiting import wait_until
from pyflannel.model.lease import Lease
from pyflannel.model.network_config import Family
from testlab.inside import run_inside
from testlab.lease_events import Churn, EventTimes, churn, time_events
from testlab.standing_leases import (
    UNDERLAY,
    existing_lease,
    families_of,
    network_config,
    remove_leases,
    write_leases,
)

ADDRESS = IPv4Interface("172.16.0.2/12")
BARE_ADDRESS = IPv4Interface("172.16.0.3/12")
ADDRESSES_V6 = IPv6Interface("fd07::2/64"), IPv6Interface("fd07::3/64")
"""IPv6 addresses of the host and of the bare host, if the backend carries both families."""

_ETCD = str(UNDERLAY.gateway.ip)


@dataclass(frozen=True, slots=True, kw_only=True)
class CrowdedNetwork:
    """A host in a network with existing leases. The flanneld of the host is not started yet.

    Attributes:
        leases: the leases of the other hosts.
        host: the host that runs flanneld after `start`.
        bare: another host on the underlay without programs.
        endpoint: the endpoint of etcd.
        deadline_s: maximum time of any action, in seconds.
    """

    backend: str
    leases: Sequence[Lease]
    host: Host
    bare: Host
    endpoint: str
    deadline_s: float

    def start(self) -> Program:
        """Start flanneld, and wait until it is ready."""
        return self.host.start_flanneld(f"--etcd-endpoints={self.endpoint}", deadline_s=self.deadline_s)

    def newcomers(self, count: int) -> list[Lease]:
        """Return leases of further hosts. No further host has the subnet of the real host, which has
        started.
        """
        first, own = len(self.leases), self.host.lease()
        further = (existing_lease(number, self.backend) for number in range(first, first + count + 1))
        return [lease for lease in further if lease.subnet != own][:count]

    def time_events(self, newcomers: Sequence[Lease]) -> list[EventTimes]:
        """Let these hosts join and leave, and measure the time until the kernel follows."""
        return run_inside(self.host, lambda: time_events(_ETCD, newcomers))

    def churn(self, newcomers: Sequence[Lease], *, per_s: int, standing: int) -> Churn:
        """Let these hosts join, `per_s` of them a second, and leave, except for the last `standing` hosts."""
        return run_inside(self.host, lambda: churn(_ETCD, newcomers, per_s=per_s, existing=standing))

    def remove(self, newcomers: Sequence[Lease]) -> None:
        """Let these hosts leave."""
        run_inside(self.host, lambda: remove_leases(_ETCD, newcomers))

    def wait_right(self, newcomers: Sequence[Lease] = ()) -> None:
        """Wait until the kernel has the objects of the existing leases and of the given leases, and no
        others.
        """
        for family in families_of(self.backend):
            wanted = self.objects(newcomers, family)
            wait_until(
                partial(self._is_right, wanted, family),
                what=f"the kernel has the {len(wanted)} objects of the peers, and no others",
                deadline_s=self.deadline_s,
            )

    def _is_right(self, wanted: PeerObjects, family: Family) -> bool:
        return objects_on(self.host, self.backend, family=family) == wanted

    def objects(self, newcomers: Sequence[Lease] = (), family: Family = 4) -> PeerObjects:
        """Return the objects of the existing leases and of the given leases in an address family."""
        return objects_of([*self.leases, *newcomers], self.backend, family=family)


@contextmanager
def crowded_network(
    name: str, backend: str, count: int, *, deadline_s: float = 300.0
) -> Iterator[CrowdedNetwork]:
    """Create a lab of this name, with this number of leases in its etcd."""
    places = HostPlace("host", UNDERLAY, ADDRESS), HostPlace("bare", UNDERLAY, BARE_ADDRESS)
    leases = [existing_lease(number, backend) for number in range(count)]
    with Lab(name, Topology((UNDERLAY,), places)) as lab:
        etcd = EtcdServer(lab.router, _ETCD)
        etcd.start()
        if 6 in families_of(backend):
            for host, address in zip(lab.hosts.values(), ADDRESSES_V6, strict=True):
                host.run(["ip", "address", "add", str(address), "dev", "eth0", "nodad"])
        etcd.etcdctl("put", f"{PREFIX}/config", network_config(backend))
        run_inside(lab.router, partial(write_leases, _ETCD, leases))
        yield CrowdedNetwork(
            backend=backend,
            leases=leases,
            host=lab.hosts["host"],
            bare=lab.hosts["bare"],
            endpoint=etcd.endpoint,
            deadline_s=deadline_s,
        )
