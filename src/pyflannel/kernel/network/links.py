"""Creates, changes and deletes links in the network namespace of the process."""

import errno
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing

from pyflannel.errors import TargetError
from pyflannel.kernel.host.machine import is_ipv6_on, set_accept_ra, set_ipv6
from pyflannel.kernel.network.device_ioctls import create_tun, link_index, set_checksum_offload, set_gro
from pyflannel.kernel.network.netlink_socket import RequestSocket
from pyflannel.kernel.network.requests import GONE, refusal, refusal_of
from pyflannel.model.link import Link, Veth, Vxlan, join_alias
from pyflannel.model.state import Add, Operation, Refusal, Remove, Replace
from pyflannel.ports import refused_by
from pyflannel.wire.netlink import links
from pyflannel.wire.netlink.links import VxlanRecord
from pyflannel.wire.netlink.message import Request


async def has_wireguard() -> bool:
    """Return whether the kernel supports WireGuard; it loads the module if necessary.

    Raises:
        TargetError: the kernel did not answer, or refuses devices to this user.
    """
    with closing(RequestSocket()) as requests:
        (answer,) = await requests.transact([links.probe_wireguard()])
    if answer.errno == errno.EPERM:
        raise TargetError(
            "the kernel refuses network devices to this user",
            hint="Give flanneld CAP_NET_ADMIN.",
            is_permanent=True,
        )
    return answer.errno != errno.EOPNOTSUPP


def is_link_operation(operation: Operation) -> bool:
    """Return whether the operation is on a link."""
    match operation:
        case Add(Link()) | Replace(_, Link()) | Remove(Link()):
            return True
        case _:
            return False


class LinkWriter:
    """Performs operations on links, one at a time, because each of them consists of several dependent
    system calls.
    """

    def __init__(self, requests: RequestSocket) -> None:
        self._requests = requests
        self._begun: dict[str, Vxlan] = {}  # devices that may exist although their creation was refused

    async def perform(self, operation: Operation) -> list[Refusal]:
        """Perform one operation. If the kernel refuses a part of the operation, the other parts are still
        performed.

        Returns:
            The refusal of the first refused part; empty without a refusal.
        """
        try:
            match operation:
                case Add(Link() as new):
                    refusals = await self._create(operation, new)
                case Replace(Link() as old, Link() as new) if not old.becomes(new):
                    refusals = await self._delete(operation, old.name)
                    refusals = refusals or await self._create(operation, new)
                case Replace(Link() as old, Link() as new):
                    refusals = await self._change(operation, old, new)
                case Remove(Link() as old):
                    refusals = await self._delete(operation, old.name)
                case _:
                    raise TypeError(f"not an operation on a link: {operation!r}")
        except OSError as error:
            return [refusal_of(operation, error)]
        except TargetError as error:
            return [refused_by(operation, error)]
        return refusals[:1]

    async def _create(self, operation: Operation, link: Link) -> list[Refusal]:
        match link:
            case Link(kind="tun"):
                create_tun(link.name)
            case Link(kind="vxlan", vxlan=Vxlan() as vxlan):
                request = links.create_vxlan(link.name, link.mac, _record(vxlan))
                begun, self._begun[link.name] = self._begun.get(link.name), vxlan
                is_begun = begun is not None and begun.becomes(vxlan)
                if refusals := await self._ask(operation, [request], (errno.EEXIST,) if is_begun else ()):
                    del self._begun[link.name]
                    return refusals
            case Link(kind="bridge"):
                if refusals := await self._ask(operation, [links.create_bridge(link.name, link.mac)]):
                    return refusals
            case Link(kind="wireguard"):
                if refusals := await self._ask(operation, [links.create_wireguard(link.name)]):
                    return refusals
            case Link(kind="veth", veth=Veth(peer=peer)):
                # The kernel creates both ends at once, so the second end already exists when its own
                # operation follows. One queue for each processor keeps packets on the processor that the
                # network card selected.
                request = links.create_veth(link.name, peer, queues=os.cpu_count() or 1)
                if refusals := await self._ask(operation, [request], tolerated=(errno.EEXIST,)):
                    return refusals
            case _:
                raise OSError(errno.EOPNOTSUPP, f"cannot create links of kind {link.kind}")
        if not (refusals := await self._change(operation, None, link)):
            self._begun.pop(link.name, None)
        return refusals

    async def _change(self, operation: Operation, old: Link | None, new: Link) -> list[Refusal]:
        """Change a link in place; `old` is None for a link that was just created."""
        index = link_index(new.name)
        refusals = await self._ask(operation, list(_changed_attributes(index, old, new)))
        if new.vxlan is not None and (old is None or old.vxlan != new.vxlan):
            refusals += self._settle(operation, set_checksum_offload, new.name, new.vxlan.offloads_checksums)
        if new.veth is not None and (old is None or old.veth != new.veth):
            refusals += self._settle(operation, set_gro, new.name, new.veth.has_gro)
        # This step must follow the change of the MTU and precede setting the link up. A link whose MTU grows
        # to the minimum of IPv6 gets IPv6 again, and a link that is set up with IPv6 solicits routers.
        has_other_ipv6 = old is None or (old.has_ipv6, old.accepts_routers) != (
            new.has_ipv6,
            new.accepts_routers,
        )
        if old is None or has_other_ipv6 or old.mtu != new.mtu:
            refusals += await self._settle_ipv6(operation, index, new)
        if old is None or old.is_up != new.is_up:
            refusals += await self._ask(operation, [links.change_link(index, is_up=new.is_up)])
        return refusals

    async def _settle_ipv6(self, operation: Operation, index: int, link: Link) -> list[Refusal]:
        is_silent = False
        if not link.has_ipv6:
            # Without addresses, the link sends no IPv6 packets even if another program enables IPv6 on all
            # links. A kernel without IPv6 refuses this setting.
            is_silent = not await self._ask(operation, [links.stop_ipv6_addresses(index)])
        try:
            set_ipv6(link.name, link.has_ipv6)
            if link.has_ipv6:
                set_accept_ra(link.name, link.accepts_routers)
        except OSError as error:
            # In a container, /proc/sys may be read-only. A read-only /proc/sys is no failure if the link has
            # no IPv6 addresses, because a link without an IPv6 address sends no IPv6 packets. A read-only
            # /proc/sys is no failure either if IPv6 must be enabled and is enabled: accept_ra has no effect,
            # because no router sends advertisements through the tunnel.
            if error.errno == errno.EROFS and (is_silent or (link.has_ipv6 and is_ipv6_on(link.name))):
                return []
            return [refusal_of(operation, error)]
        return []

    def _settle(
        self, operation: Operation, setting: Callable[[str, bool], None], name: str, is_on: bool
    ) -> list[Refusal]:
        try:
            setting(name, is_on)
        except OSError as error:
            return [refusal_of(operation, error)]
        return []

    async def _delete(self, operation: Operation, name: str) -> list[Refusal]:
        try:
            index = link_index(name)
        except OSError as error:
            if error.errno == errno.ENODEV:
                return []  # the link was already removed
            raise
        return await self._ask(operation, [links.delete_link(index)], tolerated=GONE)

    async def _ask(
        self, operation: Operation, requests: Sequence[Request], tolerated: Collection[int] = ()
    ) -> list[Refusal]:
        return [
            refusal(operation, answer.errno, answer.text)
            for answer in await self._requests.transact(requests)
            if answer.errno and answer.errno not in tolerated
        ]


def _changed_attributes(index: int, old: Link | None, new: Link) -> Iterator[Request]:
    """Yield one request for each attribute that differs. The request for the mark is the first.

    Each attribute has its own request, because after a refused attribute, the kernel ignores the rest of the
    request.
    """
    if old is None or (old.alias, old.owner) != (new.alias, new.owner):
        yield links.change_link(index, alias=join_alias(new.alias, new.owner))
    if old is not None and old.vxlan != new.vxlan and new.vxlan is not None:
        yield links.change_vxlan(index, _record(new.vxlan))
    if old is not None and old.mac != new.mac and new.mac:
        yield links.change_link(index, mac=new.mac)
    if old is None or old.queue_length != new.queue_length:
        yield links.change_link(index, queue_length=new.queue_length)
    if old is None or old.mtu != new.mtu:
        yield links.change_link(index, mtu=new.mtu)


def _record(vxlan: Vxlan) -> VxlanRecord:
    """Return the parameters of a vxlan device as a record of the kernel.

    Raises:
        OSError: ENODEV if the parent does not exist.
    """
    return VxlanRecord(
        vni=vxlan.vni,
        port=vxlan.port,
        parent=link_index(vxlan.parent) if vxlan.parent else 0,
        local=vxlan.local,
        group=vxlan.group,
        has_gbp=vxlan.has_gbp,
        learns=vxlan.learns,
        reports_misses=vxlan.reports_misses,
    )
