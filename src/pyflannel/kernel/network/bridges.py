"""The host's bridges and who is behind them, as the kernel of the process's network namespace shows them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from ipaddress import IPv4Address, IPv4Interface

from pyflannel.errors import TargetError
from pyflannel.kernel.network.netlink_socket import NotificationSocket, RequestSocket
from pyflannel.model.bridge import Bridge, BridgedContainer
from pyflannel.wire.netlink import addresses, bridges, links, neighbours, nftables
from pyflannel.wire.netlink.bridges import BridgeLink
from pyflannel.wire.netlink.message import Message

_GROUPS = 0x1 | 0x4 | 0x10
"""RTMGRP_LINK, RTMGRP_NEIGH, RTMGRP_IPV4_IFADDR (linux/rtnetlink.h)."""

_COALESCE_S = 0.02

_PLAIN_QUEUEING = ("", "noqueue")


class KernelBridges:
    """A BridgeSource.

    Raises:
        TargetError: the kernel gives no netlink socket.
    """

    def __init__(self) -> None:
        self._requests = RequestSocket()
        self._filter_requests = RequestSocket(nftables.PROTOCOL)
        self._notifications = NotificationSocket(_GROUPS)
        self._filter_notifications: NotificationSocket | None = None
        with contextlib.suppress(TargetError):  # they want CAP_NET_ADMIN
            self._filter_notifications = NotificationSocket(nftables.CHANGES, nftables.PROTOCOL)
        self._bridges: frozenset[int] = frozenset()

    def close(self) -> None:
        """Let go of the sockets."""
        for each in (
            self._requests,
            self._filter_requests,
            self._notifications,
            self._filter_notifications,
        ):
            if each is not None:
                each.close()

    async def observe(self) -> tuple[Bridge, ...]:
        """Return the bridges that have IPv4 addresses, in the order of their names."""
        found = await self._requests.dump(links.dump_links(), bridges.parse_bridge_link)
        by_index = {link.index: link for link in found}
        self._bridges = frozenset(link.index for link in found if link.kind == "bridge")
        if not self._bridges:
            return ()
        addressed = await self._addresses()
        filtered = await self._has_bridge_rules()
        return tuple(
            [
                Bridge(
                    name=link.name,
                    addresses=addressed[link.index],
                    obstacles=tuple(_obstacles(link, filtered)),
                    containers=await self._containers(link.index, by_index),
                )
                for link in sorted(found, key=lambda link: link.name)
                if link.index in self._bridges and link.index in addressed
            ]
        )

    async def changes(self) -> AsyncIterator[None]:
        """Yield after each burst of changes to bridges, their ports and what is behind them."""
        changed = asyncio.Event()

        async def hear(socket: NotificationSocket) -> None:
            while True:
                await socket.wait(self._concerns)
                changed.set()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(hear(self._notifications), name="bridges")
            if self._filter_notifications is not None:
                tasks.create_task(hear(self._filter_notifications), name="bridge rules")
            while True:
                await changed.wait()
                await asyncio.sleep(_COALESCE_S)
                changed.clear()
                yield

    def _concerns(self, message: Message) -> bool:
        """Return whether a notification may change the answer: most neighbours are not behind a bridge."""
        if message.kind not in (neighbours.NEW, neighbours.DELETE):
            return True
        learned = bridges.parse_learned(message.body)
        return learned is not None or neighbours.entry_index(message.body) in self._bridges

    async def _addresses(self) -> dict[int, tuple[IPv4Interface, ...]]:
        held: dict[int, tuple[IPv4Interface, ...]] = {}
        for record in await self._requests.dump(addresses.dump_addresses(), addresses.parse_address_message):
            if isinstance(record.address, IPv4Interface):
                held[record.index] = (*held.get(record.index, ()), record.address)
        return held

    async def _containers(self, bridge: int, by_index: dict[int, BridgeLink]) -> tuple[BridgedContainer, ...]:
        ports = {
            mac: by_index[port]
            for of, port, mac in await self._requests.dump(
                bridges.dump_learned(bridge), bridges.parse_learned
            )
            if of == bridge and port in by_index and by_index[port].is_forwarding
        }
        near = await self._requests.dump(neighbours.dump_neighbours(bridge), neighbours.parse_neighbour)
        return tuple(
            BridgedContainer(address=one.address, mac=one.mac, port=ports[one.mac].name)
            for one in sorted(near, key=lambda one: int(one.address))
            if one.index == bridge and isinstance(one.address, IPv4Address) and one.mac in ports
        )

    async def _has_bridge_rules(self) -> bool:
        if self._filter_notifications is None:
            return True  # nobody would tell us of them
        try:
            return bool(await self._filter_requests.dump(nftables.dump_tables(nftables.BRIDGE), len))
        except TargetError:
            return True  # it cannot be told: the ordinary way is always right


def _obstacles(bridge: BridgeLink, has_rules: bool) -> list[str]:
    found = []
    if bridge.filters_vlans:
        found.append("it filters VLANs")
    if bridge.queueing not in _PLAIN_QUEUEING:
        found.append(f"it has the queueing discipline {bridge.queueing}")
    if has_rules:
        found.append("nftables has tables of the bridge family")
    return found
