"""Hosts that consist only of a lease in etcd: to a real host they look like a network."""

import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from itertools import islice

from grpclib.client import Channel

from pyflannel.lab.lab import CLIENT_PORT, PREFIX
from pyflannel.lab.topology import Segment
from pyflannel.model.lease import LEASE_TTL_S, Lease, LeaseAttributes, Vtep
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
"""A prefix with all existing hosts on the link of the real one, as host-gw needs it."""

NETWORK = IPv4Network("10.0.0.0/8")
SUBNET_LENGTH = 24
MOST = 60_000
"""Maximum number of hosts with a separate subnet and address."""

_FIRST_SUBNET = 256  # 10.1.0.0/24
_FIRST_ADDRESS = IPv4Address("172.17.0.0")
_AT_ONCE = 100
"""Writes in one transaction. etcd allows 128."""


def network_config(backend: str) -> str:
    """Return the network config that all of them share."""
    return json.dumps({"Network": str(NETWORK), "SubnetLen": SUBNET_LENGTH, "Backend": {"Type": backend}})


def existing_lease(number: int, backend: str, *, address: IPv4Address | None = None) -> Lease:
    """Return the lease of host `number`, below MOST; `address` replaces its usual address."""
    vtep = Vtep(mac=(0x02_00_00_00_00_00 + number).to_bytes(6).hex(":"), vni=1)
    has_vtep = backend == "vxlan"
    return Lease(
        subnet=IPv4Network(
            (int(NETWORK.network_address) + ((_FIRST_SUBNET + number) << (32 - SUBNET_LENGTH)), SUBNET_LENGTH)
        ),
        attributes=LeaseAttributes(
            public_ip=address or _FIRST_ADDRESS + number,
            backend_type="" if backend == "udp" else backend,
            vtep=vtep if has_vtep else None,
            owner=f"{number:032x}",
            port=8285 if backend == "udp" else None,
        ),
    )


@dataclass(frozen=True, slots=True)
class LeaseWriter:
    """Writes leases like their hosts, with one connection to etcd.

    Attributes:
        lease_id: the etcd lease of all of them.
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
