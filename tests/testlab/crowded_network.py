"""A real host and a real etcd in a network of very many standing leases."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Interface

from pyflannel.lab.kernel_path import objects_of, objects_on
from pyflannel.lab.lab import PREFIX, EtcdServer, Lab
from pyflannel.lab.program import Program
from pyflannel.lab.topology import Host, HostPlace, Topology
from pyflannel.lab.waiting import wait_until
from pyflannel.model.lease import Lease
from testlab.inside import run_inside
from testlab.lease_events import Churn, EventTimes, churn, time_events
from testlab.standing_leases import (
    UNDERLAY,
    network_config,
    remove_leases,
    standing_lease,
    write_leases,
)

ADDRESS = IPv4Interface("172.16.0.2/12")
BARE_ADDRESS = IPv4Interface("172.16.0.3/12")
_ETCD = str(UNDERLAY.gateway.ip)


@dataclass(frozen=True, slots=True, kw_only=True)
class CrowdedNetwork:
    """A host among standing leases, not yet started.

    Attributes:
        leases: of the others.
        host: runs flanneld once it is started.
        bare: another host on the underlay, on which nothing runs.
        endpoint: of etcd.
        deadline_s: how long anything may take.
    """

    backend: str
    leases: Sequence[Lease]
    host: Host
    bare: Host
    endpoint: str
    deadline_s: float

    def start(self) -> Program:
        """Start flanneld and return when it is ready."""
        return self.host.start_flanneld(f"--etcd-endpoints={self.endpoint}", deadline_s=self.deadline_s)

    def newcomers(self, count: int) -> list[Lease]:
        """Return leases of further hosts, none with the subnet of the real one, which has started."""
        first, own = len(self.leases), self.host.lease()
        further = (standing_lease(number, self.backend) for number in range(first, first + count + 1))
        return [lease for lease in further if lease.subnet != own][:count]

    def time_events(self, newcomers: Sequence[Lease]) -> list[EventTimes]:
        """Let these hosts come and go, and time how long the kernel takes to follow."""
        return run_inside(self.host, lambda: time_events(_ETCD, newcomers))

    def churn(self, newcomers: Sequence[Lease], *, per_s: int, standing: int) -> Churn:
        """Let these hosts come, `per_s` of them a second, and go, but for the last `standing`."""
        return run_inside(self.host, lambda: churn(_ETCD, newcomers, per_s=per_s, standing=standing))

    def remove(self, newcomers: Sequence[Lease]) -> None:
        """Let these hosts go."""
        run_inside(self.host, lambda: remove_leases(_ETCD, newcomers))

    def wait_right(self, newcomers: Sequence[Lease] = ()) -> None:
        """Return once the kernel has the objects of the standing leases and of these, and no other of ours.

        Raises:
            LabError: it has not in time.
        """
        wanted = objects_of([*self.leases, *newcomers], self.backend)
        wait_until(
            lambda: objects_on(self.host, self.backend) == wanted,
            what=f"the kernel has the {len(wanted)} objects of the peers, and no others",
            deadline_s=self.deadline_s,
        )


@contextmanager
def crowded_network(
    name: str, backend: str, count: int, *, deadline_s: float = 300.0
) -> Iterator[CrowdedNetwork]:
    """Lay a lab of this name, and let so many leases stand in its etcd."""
    places = HostPlace("host", UNDERLAY, ADDRESS), HostPlace("bare", UNDERLAY, BARE_ADDRESS)
    leases = [standing_lease(number, backend) for number in range(count)]
    with Lab(name, Topology((UNDERLAY,), places)) as lab:
        etcd = EtcdServer(lab.router, _ETCD)
        etcd.start()
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
