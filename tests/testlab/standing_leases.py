"""Hosts that consist only of a lease in etcd. A real host treats them as peers."""

import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Network
from itertools import islice

from grpclib.client import Channel

from pyflannel.lab.lab import CLIENT_PORT, PREFIX
from pyflannel.lab.topology import Segment
from pyflannel.model.lease import LEASE_TTL_S, Lease, LeaseAttributes, Vtep
from pyflannel.model.network_config import BOTH_FAMILIES, IPV4_ONLY, Family
from pyflannel.stores.etcd.keys import KeySpace
from pyflannel.stores.etcd.rpc_grpc import KVStub, LeaseStub
from pyflannel.stores.etcd.rpc_pb2 import (
    DeleteRangeRequest,
    LeaseGrantRequest,
    PutRequest,
    RequestOp,
    TxnRequest,
)
from pyflannel.wire.lease_record import lease_key, lease_value

UNDERLAY = Segment("wide", IPv4Interface("172.16.0.1/12"))
"""A prefix with all existing hosts on the link of the real host, because host-gw requires this."""

NETWORK = IPv4Network("10.0.0.0/8")
NETWORK_V6 = IPv6Network("fd00:5::/48")
SUBNET_LENGTH = 24
MOST = 60_000
"""Maximum number of hosts with a separate subnet and address."""

_FIRST_SUBNET = 256  # 10.1.0.0/24
_FIRST_ADDRESS = IPv4Address("172.17.0.0")
_FIRST_ADDRESS_V6 = IPv6Address("fd07::1:0")
_AT_ONCE = 100
"""Writes in one transaction. etcd allows 128."""


DUAL_STACK = "-dual"
"""Suffix of a backend that carries both families."""


def families_of(backend: str) -> tuple[Family, ...]:
    """Return the families of a backend: `vxlan`, `vxlan-dual`."""
    return BOTH_FAMILIES if backend.endswith(DUAL_STACK) else IPV4_ONLY


def network_config(backend: str) -> str:
    """Return the network config of all these hosts."""
    config = {"Network": str(NETWORK), "SubnetLen": SUBNET_LENGTH}
    if 6 in families_of(backend):
        config |= {"EnableIPv6": True, "IPv6Network": str(NETWORK_V6)}
    return json.dumps({**config, "Backend": {"Type": backend.removesuffix(DUAL_STACK)}})


def existing_lease(number: int, backend: str, *, address: IPv4Address | None = None) -> Lease:
    """Return the lease of host `number`, which is less than MOST. `address` replaces its usual address."""
    is_dual, backend = 6 in families_of(backend), backend.removesuffix(DUAL_STACK)
    vtep = Vtep(mac=(0x02_00_00_00_00_00 + number).to_bytes(6).hex(":"), vni=1)
    vtep_v6 = Vtep(mac=(0x06_00_00_00_00_00 + number).to_bytes(6).hex(":"), vni=1)
    has_vtep = backend == "vxlan"
    subnet_v6 = IPv6Network((int(NETWORK_V6.network_address) + (_FIRST_SUBNET + number << 64), 64))
    return Lease(
        ipv6_subnet=subnet_v6 if is_dual else None,
        subnet=IPv4Network(
            (int(NETWORK.network_address) + ((_FIRST_SUBNET + number) << (32 - SUBNET_LENGTH)), SUBNET_LENGTH)
        ),
        attributes=LeaseAttributes(
            public_ip=address or _FIRST_ADDRESS + number,
            backend_type="" if backend == "udp" else backend,
            public_ipv6=_FIRST_ADDRESS_V6 + number if is_dual else None,
            vtep=vtep if has_vtep else None,
            vtep_v6=vtep_v6 if has_vtep and is_dual else None,
            owner=f"{number:032x}",
            port=8285 if backend == "udp" else None,
        ),
    )


@dataclass(frozen=True, slots=True)
class LeaseWriter:
    """Writes leases like their hosts, with one connection to etcd.

    Attributes:
        lease_id: the lease of etcd to which all written keys belong.
    """

    channel: Channel
    keys: KeySpace
    lease_id: int

    async def put(self, leases: Iterable[Lease]) -> None:
        """Write these leases, a hundred in one transaction."""
        await self._write(
            RequestOp(
                request_put=PutRequest(
                    key=self.keys.full(lease_key(lease)), value=lease_value(lease), lease=self.lease_id
                )
            )
            for lease in leases
        )

    async def remove(self, leases: Iterable[Lease]) -> None:
        """Delete these leases, a hundred in one transaction."""
        await self._write(
            RequestOp(request_delete_range=DeleteRangeRequest(key=self.keys.full(lease_key(lease))))
            for lease in leases
        )

    async def _write(self, operations: Iterable[RequestOp]) -> None:
        rest = iter(operations)
        while batch := list(islice(rest, _AT_ONCE)):
            await KVStub(self.channel).Txn(TxnRequest(success=batch))


@asynccontextmanager
async def lease_writer(address: str) -> AsyncIterator[LeaseWriter]:
    """Connect to the lab's etcd at an address in the network of the calling thread."""
    async with Channel(address, CLIENT_PORT) as channel:
        granted = await LeaseStub(channel).LeaseGrant(LeaseGrantRequest(TTL=LEASE_TTL_S))
        yield LeaseWriter(channel, KeySpace(PREFIX), granted.ID)


async def write_leases(address: str, leases: Iterable[Lease]) -> None:
    """Write these leases to the lab's etcd at an address."""
    async with lease_writer(address) as writer:
        await writer.put(leases)


async def remove_leases(address: str, leases: Iterable[Lease]) -> None:
    """Delete these leases from the lab's etcd at an address."""
    async with lease_writer(address) as writer:
        await writer.remove(leases)
