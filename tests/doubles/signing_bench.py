"""Hosts that sign their leases, on a store to which an adversary writes."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from msgspec.structs import replace

from doubles.fake_clock import FakeClock
from doubles.fake_store import FakeStore
from pyflannel.engine.allowed_keys import AllowedKeys, AllowList, SignedKeys
from pyflannel.engine.lease_keeper import LeaseKeeper
from pyflannel.engine.lease_signing import LeaseSigning
from pyflannel.engine.list_watch import StoreLog
from pyflannel.errors import TargetError
from pyflannel.model.lease import Lease, LeaseAttributes, LeaseKey
from pyflannel.model.lease_protocol import Wanted
from pyflannel.model.network_config import NetworkConfig
from pyflannel.model.store_record import Delete, Put, Record, Secret
from pyflannel.ports import Announce, ChangeChannel, Changes
from pyflannel.wire.lease_record import ALLOW_LIST, lease_of
from pyflannel.wire.lease_signature import format_signed_list, is_authentic, sign, sign_list

PREFIX = "/coreos.com/network"
NETWORK = NetworkConfig(
    network=IPv4Network("10.100.0.0/16"),
    subnet_length=24,
    subnet_min=IPv4Address("10.100.1.0"),
    subnet_max=IPv4Address("10.100.255.0"),
)


def make_key() -> LeaseKey:
    pair = Ed25519PrivateKey.generate()
    return LeaseKey(pair.public_key().public_bytes_raw(), Secret(pair.private_bytes_raw().hex()))


class MemoryDouble:
    """A file in memory."""

    def __init__(self) -> None:
        self.content: bytes | None = None

    async def load(self) -> bytes | None:
        return self.content

    async def save(self, parts: Iterable[bytes]) -> bool:
        self.content = b"".join(parts)
        return True


class KeyFileDouble:
    """A file of keys in memory."""

    name = "/etc/flannel/lease-keys"

    def __init__(self) -> None:
        self.text: str | None = None
        self._written: list[Announce] = []

    def write(self, text: str | None) -> None:
        self.text = text
        for announce in self._written:
            announce()

    async def read(self) -> str:
        if self.text is None:
            raise TargetError("cannot be read: no such file", hint="Write it.")
        return self.text

    @asynccontextmanager
    async def changes(self) -> AsyncIterator[Changes]:
        async def read(announce: Announce) -> None:
            self._written.append(announce)
            await asyncio.Event().wait()

        async with ChangeChannel(read) as changes:
            yield changes


class Bench:
    """A store, and the hosts a and b, whose keys are allowed; eve has a key too."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.store = FakeStore(self.clock)
        self.keys = {name: make_key() for name in ("a", "b", "eve", "new")}
        self.reidentified = 0
        self.memories = {name: MemoryDouble() for name in self.keys}
        self.signings: dict[str, LeaseSigning] = {}
        self.file, self.operator_file = KeyFileDouble(), KeyFileDouble()
        self.operator = make_key()
        self.operator_file.write(self.operator.public.hex())
        self.lists = {name: MemoryDouble() for name in self.keys}
        self.allow("a", "b")

    def keeper(
        self,
        name: str,
        *,
        requires: bool = True,
        pins: bool = False,
        operated: bool = False,
        previous: str | None = None,
    ) -> LeaseKeeper:
        allowed = frozenset({self.keys["a"].public, self.keys["b"].public})
        allow_list: AllowList = AllowedKeys(self.file, self.clock, allowed)
        if operated:
            operators = AllowedKeys(self.operator_file, self.clock, frozenset({self.operator.public}))
            allow_list = SignedKeys(operators, PREFIX, self.lists[name], self.clock)
        self.signings[name] = LeaseSigning(
            requires=requires,
            prefix=PREFIX,
            key_of=lambda owner: self.keys[owner],
            allowed=None if pins else allow_list,
            memory=self.memories[name],
            clock=self.clock,
        )
        attributes = LeaseAttributes(
            public_ip=IPv4Address(f"192.0.2.{ord(name[0])}"), owner=name, signing_key=self.keys[name].public
        )
        return LeaseKeeper(
            store=self.store.client(),
            clock=self.clock,
            draw=lambda n: n // 2,
            store_log=StoreLog(self.clock),
            wanted=Wanted(
                network=NETWORK,
                attributes=attributes,
                ttl_s=3600,
                previous=None if previous is None else IPv4Network(previous),
            ),
            held=None,
            report=lambda report: None,
            leases_changed=lambda leases: None,
            reidentify=self.reidentify,
            signing=self.signings[name],
        )

    def reidentify(self, attributes: LeaseAttributes) -> LeaseAttributes:
        self.reidentified += 1
        return replace(attributes, owner="new", signing_key=self.keys["new"].public)

    def allow(self, *names: str) -> None:
        self.file.write(self.list_of(*names))

    def list_of(self, *names: str) -> str:
        return "".join(f"{self.keys[name].public.hex()} {name}\n" for name in names)

    async def publish(
        self, counter: int, *names: str, key: LeaseKey | None = None, prefix: str = PREFIX
    ) -> None:
        """Write a list that an operator signed."""
        signed = sign_list(prefix, self.list_of(*names), counter, key or self.operator)
        await self.put(ALLOW_LIST, format_signed_list(signed))
        await self.clock.advance(5)

    def trouble(self, name: str) -> str:
        trouble = self.signings[name].status().trouble
        return "" if trouble is None else trouble.text

    async def record(self, key: str) -> Record:
        record = await self.store.get(key)
        assert record is not None
        return record

    async def put(self, key: str, value: bytes) -> None:
        """Write as the adversary, regardless of the current value."""
        await self.store.write(Put(key=key, value=value, ttl_s=3600, expected=None))
        await self.clock.advance(0.5)

    async def delete(self, key: str) -> None:
        await self.store.write(Delete(key=key, expected=(await self.record(key)).revision))
        await self.clock.advance(0.5)


@asynccontextmanager
async def running(bench: Bench, *keepers: LeaseKeeper) -> AsyncIterator[None]:
    runs = [keeper.run() for keeper in keepers] + [signing.run() for signing in bench.signings.values()]
    tasks = [asyncio.ensure_future(each) for each in runs]
    try:
        await bench.clock.advance(60)
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def own(keeper: LeaseKeeper) -> Lease:
    assert keeper.state.held is not None
    return keeper.state.held.lease


def known(keeper: LeaseKeeper, subnet: IPv4Network) -> LeaseAttributes | None:
    lease = keeper.leases.by_subnet.get(subnet)
    return None if lease is None else lease.attributes


def is_signed(record: Record) -> bool:
    return is_authentic(PREFIX, lease_of(record), record.value)


def run(check: Callable[[Bench], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(check(Bench()))


def signed_by_eve(bench: Bench, subnet: str, counter: int = 1, owner: str = "eve") -> Lease:
    attributes = LeaseAttributes(public_ip=IPv4Address("192.0.2.250"), host_name="eve1", owner=owner)
    return sign(PREFIX, Lease(subnet=IPv4Network(subnet), attributes=attributes), counter, bench.keys["eve"])
