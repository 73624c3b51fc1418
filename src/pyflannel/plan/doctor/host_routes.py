"""Routes and policy rules for packets of this host itself to the underlay addresses of its peers."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from pyflannel.model.network_config import IpAddress
from pyflannel.model.route import RouteAnswer
from pyflannel.model.status import Finding
from pyflannel.plan.doctor.observed import NAMED
from pyflannel.plan.doctor.policy_rules import REFUSING, PolicyRule


class Detour(NamedTuple):
    """A route or a policy rule that stops or diverts packets of this host to a peer.

    Attributes:
        lines: the rule, the routes, and the answer of the kernel.
        fix: the command that deletes the rule or the route.
    """

    lines: tuple[str, ...]
    fix: str


class HostRoutes(NamedTuple):
    """The routes from which the kernel chooses for packets of this host to one address.

    Attributes:
        source: the address of this host on the underlay.
        link: the underlay.
        answer: the answer of the kernel.
        rules: policy rules of other programs, as `ip rule` lists them.
        tables: for each table that was read, its routes to the address, the most specific first.
        is_silent: True if the next hop of the packet has no MAC address.
    """

    source: IpAddress
    link: str
    answer: RouteAnswer
    rules: Sequence[str]
    tables: Mapping[str, Sequence[str]]
    is_silent: bool = False

    @property
    def is_refused(self) -> bool:
        """True if the kernel does not send the packet."""
        return self.answer.link is None or self.answer.kind != "unicast"

    @property
    def is_wrong(self) -> bool:
        """True if the kernel does not send the packet, or sends it to a gateway although the destination is
        on the link, or to a silent gateway by a route to this address alone although another route exists.
        """
        main = self.tables.get("main", ())
        is_on_link = any(" via " not in one and f" dev {self.link} " in f"{one} " for one in main)
        is_alone = len(main) > 1 and main[0].split()[0] == str(self.answer.destination)
        by_gateway = self.answer.gateway is not None
        return self.is_refused or (by_gateway and (is_on_link or (self.is_silent and is_alone)))


def selected_tables(rules: Sequence[str], source: IpAddress, destination: IpAddress) -> list[str]:
    """Return the tables of the policy rules that select a packet of this host, in their order."""
    parsed = [PolicyRule.parse(rule) for rule in rules]
    tables = (one.table for one in parsed if one.selects(source, destination, _LOOPBACK))
    return [*dict.fromkeys(table for table in tables if table is not None)]


_LOOPBACK = "lo"
"""The link at which packets of the host itself arrive, for policy rules."""


def detour(routes: HostRoutes) -> Detour | None:
    """Return the route or the rule by which the kernel does not send a packet directly; None if the packet
    is sent, or no such route is known. The table local precedes the rules, and these the table main.
    """
    return deciding_route(routes) if routes.is_wrong else None


def deciding_route(routes: HostRoutes) -> Detour | None:
    """Return the route of another program in the table local, the policy rule, or the refusing route or route
    by a gateway in the table main that decides about a packet; None if no such route is known.
    """
    destination, text = routes.answer.destination, routes.answer.text
    show = f"ip -{destination.version} route"
    for route in (one for one in routes.tables.get("local", ()) if " proto kernel" not in one):
        return Detour((f"{show} show table local: {route}", text), f"{show} delete {route} table local")
    for rule in routes.rules:
        parsed = PolicyRule.parse(rule)
        if not parsed.selects(routes.source, destination, _LOOPBACK):
            continue
        if "suppress_prefixlength" in parsed.words:
            continue
        if parsed.values.get("lookup") == "main":
            break
        found = routes.tables.get(parsed.table or "", ())[:1]
        if found or parsed.refuses:
            lines = [f"{show} show table {parsed.table}: {route}" for route in found]
            first = "ip rule" if destination.version == 4 else "ip -6 rule"
            fix = parsed.deletion(destination.version)
            fix = f"{first} add to {destination} lookup main priority 1" if parsed.is_known else fix
            return Detour((f"{first}: {rule}", *lines, text), fix)
    for route in routes.tables.get("main", ())[:1]:
        if route.split()[0] in REFUSING or f" via {routes.answer.gateway} " in f"{route} ":
            return Detour((f"{show} show match {destination}: {route}", text), f"{show} delete {route}")
    return None


def with_detours(found: Finding, peers: Iterable[IpAddress], detours: Mapping[IpAddress, Detour]) -> Finding:
    """Return the finding about peers with the routes and rules that stop or divert the packets to them."""
    known = [detours[one] for one in peers if one in detours][:NAMED]
    if not known:
        return found
    lines = dict.fromkeys(line for one in known for line in one.lines)
    fix = "; ".join(dict.fromkeys(one.fix for one in known))
    return replace(found, evidence=(*lines, *found.evidence), fix=fix)
