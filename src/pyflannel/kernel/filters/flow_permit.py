"""Examines whether the firewall of this network namespace decides about a packet only by its flow."""

import time
from pathlib import Path

from msgspec import Struct

from pyflannel.errors import TargetError, WireError
from pyflannel.kernel.network.netlink_socket import RequestSocket
from pyflannel.model.tunnel_guard import guard_device_of
from pyflannel.wire.netlink.flow_rules import (
    FoundChain,
    FoundRule,
    forwarded_rules,
    objections,
    parse_element_expressions,
    parse_found_chain,
    parse_found_rule,
    sets_of,
)
from pyflannel.wire.netlink.links import dump_links, parse_far_veth
from pyflannel.wire.netlink.message import Message
from pyflannel.wire.netlink.nftables import (
    ANY_FAMILY,
    PROTOCOL,
    dump_chains,
    dump_elements,
    dump_every_rule,
    get_generation,
    parse_generation,
)
from pyflannel.wire.netlink.tc import dump_qdiscs, parse_qdisc

_LEGACY = Path("/proc/thread-self/net/ip_tables_names")
_LIBERAL = Path("/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal")

_SETTINGS = Path("/proc/sys/net")
_TIME_OFFSETS = Path("/proc/self/timens_offsets")

MOST_RULES = 2000
"""Maximum number of rules in all tables. Each rule is examined after each change, which takes 30
microseconds."""

_FILTERING = ("clsact", "ingress")
_WITHOUT_QUEUE = ("noqueue", *_FILTERING)
_NAMED = 3
_WITHOUT_LIBERAL = "TCP only: net.netfilter.nf_conntrack_tcp_be_liberal is not 1"


class Firewall(Struct, frozen=True, kw_only=True):
    """The result of the examination: which decisions of the firewall the programs may cache.

    Attributes:
        read_at_ns: time before the firewall was read, in nanoseconds of CLOCK_BOOTTIME.
        generation: number of the ruleset of nf_tables.
        objections: reason why no flow may be cached.
        tcp_objection: reason why no TCP flow may be cached.
        filtered_links: links with a qdisc for filters of tc, by index.
        direct_links: veths without a queueing discipline whose other end is in another namespace, by index.
    """

    read_at_ns: int
    generation: int = 0
    objections: tuple[str, ...] = ()
    tcp_objection: str = ""
    filtered_links: frozenset[int] = frozenset()
    direct_links: frozenset[int] = frozenset()


class FlowRules:
    """Examines the rules of netfilter, and does so again after each change of the rules."""

    def __init__(self) -> None:
        self._requests: RequestSocket | None = None
        self._links: RequestSocket | None = None
        self._examined: Firewall | None = None
        self._seen_links: frozenset[int] = frozenset()
        self._far_veths: frozenset[int] = frozenset()

    def close(self) -> None:
        """Close the sockets."""
        for opened in (self._requests, self._links):
            if opened is not None:
                opened.close()
        self._requests = self._links = None

    async def look(self) -> Firewall:
        """Return the current state of the firewall. Rules that cannot be read count as an objection.
        Raises nothing.
        """
        read_at_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        try:
            generation = await self._generation()
            if self._examined is None or self._examined.generation != generation:
                found = await self._objections()
                if await self._generation() != generation:
                    found = ("the rules of nftables change all the time",)
                    self._examined = None
                else:
                    self._examined = Firewall(read_at_ns=0, generation=generation, objections=found)
            else:
                found = self._examined.objections
            if _LEGACY.exists() and (tables := _LEGACY.read_text(encoding="ascii").split()):
                found = (*found, f"iptables-legacy has tables: {', '.join(tables)}")
            filtered_links, direct_links = await self._links_by_qdisc()
            if _TIME_OFFSETS.exists() and not _has_kernel_time(_TIME_OFFSETS.read_text(encoding="ascii")):
                found = (*found, "flanneld runs in a time namespace with another time")
            is_liberal = _SETTINGS.is_dir() and (
                not _LIBERAL.exists() or _LIBERAL.read_text(encoding="ascii").strip() != "0"
            )
        except (TargetError, WireError, OSError) as error:
            self._examined = None
            return Firewall(read_at_ns=read_at_ns, objections=(f"the rules cannot be read: {error}",))
        return Firewall(
            read_at_ns=read_at_ns,
            generation=generation,
            objections=found,
            tcp_objection="" if is_liberal else _WITHOUT_LIBERAL,
            filtered_links=filtered_links,
            direct_links=direct_links,
        )

    async def _links_by_qdisc(self) -> tuple[frozenset[int], frozenset[int]]:
        """Return the links with a qdisc for filters, and the veths without a queueing discipline."""
        qdiscs: list[tuple[int, str]] = await self._route_socket().dump(dump_qdiscs(), parse_qdisc)
        links = frozenset(link for link, _ in qdiscs)
        if links != self._seen_links:  # the type of a link does not change, so only new links must be read
            far = await self._route_socket().dump(dump_links(), parse_far_veth)
            self._far_veths = frozenset(one.index for one in far)
            self._seen_links = links
        queued = {link for link, kind in qdiscs if kind not in _WITHOUT_QUEUE}
        filtered = frozenset(link for link, kind in qdiscs if kind in _FILTERING)
        return filtered, (self._far_veths & links) - queued

    async def _generation(self) -> int:
        answer = await self._socket().ask(get_generation())
        if not isinstance(answer, Message):
            raise TargetError("nf_tables returned no generation", hint="See dmesg.")
        return parse_generation(answer.body)

    async def _objections(self) -> tuple[str, ...]:
        dump = self._socket().dump
        chains: list[FoundChain] = await dump(dump_chains(ANY_FAMILY), parse_found_chain)
        every: list[FoundRule] = await dump(dump_every_rule(), parse_found_rule)
        if len(every) > MOST_RULES:
            return (f"nftables has more than {MOST_RULES} rules",)
        chains = [one for one in chains if guard_device_of(one.table.name) is None]
        rules = forwarded_rules(chains, every)
        found = dict.fromkeys(objections(chains, rules))
        for table, name in sorted(sets_of(rules)):
            listed = await dump(dump_elements(table, name), parse_element_expressions)
            if {name for names in listed for name in names} - {"counter"}:
                found[f"elements of set {table.name} {name} count or limit packets"] = None
        return tuple(found)

    def _route_socket(self) -> RequestSocket:
        if self._links is None:
            self._links = RequestSocket()
        return self._links

    def _socket(self) -> RequestSocket:
        if self._requests is None:
            self._requests = RequestSocket(PROTOCOL)
        return self._requests


def _has_kernel_time(offsets: str) -> bool:
    """Return whether CLOCK_BOOTTIME equals that of the kernel. In a time namespace, a permit could last
    for days.
    """
    return all(line.split()[1:] == ["0", "0"] for line in offsets.splitlines() if line.startswith("boottime"))


def in_brief(objections: tuple[str, ...]) -> tuple[str, ...]:
    """Return the first objections, and the number of further objections."""
    further = len(objections) - _NAMED
    return (*objections[:_NAMED], *([f"and {further} more"] if further > 0 else []))
