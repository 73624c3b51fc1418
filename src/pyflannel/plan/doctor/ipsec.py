"""IPsec policies that drop packets of the overlay."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from msgspec.structs import replace

from pyflannel.model.host import Interfaces, IpsecEnds, IpsecPolicy
from pyflannel.model.netfilter import TCP, UDP, Hook, Packet
from pyflannel.model.status import Finding
from pyflannel.plan.doctor.flows import (
    OF_PROBES,
    TUNNEL_PACKETS,
    Flow,
    container_flows,
    probe_flows,
    tunnel_flows,
)
from pyflannel.plan.doctor.observed import NAMED, Observed, some
from pyflannel.plan.netfilter import IN, OUT, THROUGH


def blocking_policies(packet: Packet, hooks: Sequence[Hook], interfaces: Interfaces) -> list[IpsecPolicy]:
    """Return the IPsec policies that drop a packet at these hooks, at most one for each direction."""
    return [one for one in _deciding(packet, hooks, interfaces) if one.is_block]


def _deciding(packet: Packet, hooks: Sequence[Hook], interfaces: Interfaces) -> Iterator[IpsecPolicy]:
    """Yield the IPsec policies that decide about a packet at these hooks, at most one for each direction.

    The matching policy with the lowest priority number decides. If several policies have this number, the
    oldest policy decides, which the kernel lists last. A forwarded packet is also checked when it leaves.

    Source: net/xfrm/xfrm_policy.c, xfrm_policy_match, xfrm_policy_insert_list, xfrm_policy_walk.
    """
    if not interfaces.policies:
        return
    directions = {IN: ("in",), OUT: ("out",), THROUGH: ("forward", "out")}.get(tuple(hooks), ())
    for direction in directions:
        link = interfaces.named(packet.oif if direction == "out" else packet.iif)
        index = 0 if link is None else link.index
        matching = [
            one
            for one in reversed(interfaces.policies)
            if one.direction == direction and _selects(one, packet, index)
        ]
        if matching:
            yield min(matching, key=lambda one: one.priority)


def _selects(policy: IpsecPolicy, packet: Packet, link: int) -> bool:
    """Return whether the selector of a policy matches a packet. The source port of a selector for ICMP is the
    type of the message (net/xfrm.h, xfrm_flowi_sport).
    """
    source_port = packet.source_port or packet.icmp_type or 0
    return (
        packet.source in policy.source
        and packet.destination in policy.destination
        and policy.protocol in (0, packet.protocol)
        and ((packet.destination_port or 0) ^ policy.port) & policy.port_mask == 0
        and (source_port ^ policy.source_port) & policy.source_port_mask == 0
        and policy.link in (0, link)
        and (packet.mark or 0) & policy.mark_mask == policy.mark
    )


def policy_text(policy: IpsecPolicy) -> str:
    """Return a policy as `ip xfrm policy` shows it."""
    if policy.priority > _LEAST_PRIORITY:
        return f"ip xfrm policy getdefault: {_DIRECTION[policy.direction]}: block"
    action = "block" if policy.is_block else "allow"
    return f"ip xfrm policy: {_selector(policy)} action {action} priority {policy.priority}"


_LEAST_PRIORITY = 0xFFFFFFFF
"""The greatest priority number of a policy. The default action of the host has an even greater number."""

_DIRECTION = {"in": "in", "out": "out", "forward": "fwd"}


def _selector(policy: IpsecPolicy) -> str:
    """Return the selector of a policy in the syntax of `ip xfrm policy`."""
    protocol = "" if not policy.protocol else f" proto {_PROTOCOLS.get(policy.protocol, policy.protocol)}"
    ports = [("sport", policy.source_port, policy.source_port_mask), ("dport", policy.port, policy.port_mask)]
    shown = "".join(f" {name} {number}" for name, number, mask in ports if mask)
    mark = f" mark {policy.mark:#x} mask {policy.mark_mask:#x}" if policy.mark_mask else ""
    ends = f"src {policy.source} dst {policy.destination}"
    return f"{ends}{protocol}{shown} dir {_DIRECTION[policy.direction]}{mark}"


_PROTOCOLS = {TCP: "tcp", UDP: "udp"}


def policy_removal(policy: IpsecPolicy) -> str:
    """Return the command that removes a policy, or the default action of the host."""
    if policy.priority > _LEAST_PRIORITY:
        return f"ip xfrm policy setdefault {_DIRECTION[policy.direction]} accept"
    return f"ip xfrm policy delete {_selector(policy)}"


def _lacking(
    policy: IpsecPolicy, packet: Packet, associations: Iterable[IpsecEnds] | None
) -> list[IpsecEnds]:
    """Return the ends of the security associations that a policy requires for a packet, and that do not
    exist. Without them, the kernel cannot encrypt the packet, and does not accept it unencrypted.

    `associations`: None if they are unreadable.
    """
    if policy.is_block or associations is None:
        return []
    of_packet = IpsecEnds(source=packet.source, destination=packet.destination)
    required = [of_packet if ends is None else ends for ends in policy.ends]
    return [ends for ends in required if not any(_fulfils(one, ends) for one in associations)]


def _fulfils(association: IpsecEnds, required: IpsecEnds) -> bool:
    """Return whether a security association has the required ends.

    Source: net/xfrm/xfrm_state.c, xfrm_state_addr_check; net/xfrm/xfrm_policy.c, xfrm_state_ok.
    """
    return all(
        one == other or one.is_unspecified or other.is_unspecified
        for one, other in (
            (association.source, required.source),
            (association.destination, required.destination),
        )
    )


def _checked_flows(seen: Observed) -> Iterator[Flow]:
    """Yield the packets of the overlay, then the probes of this host and of its peers."""
    yield from tunnel_flows(seen)
    yield from container_flows(seen)
    for flow in probe_flows(seen):
        yield flow
        packet = flow.packet
        leaving = replace(
            packet,
            source=packet.destination,
            destination=packet.source,
            icmp_type=_OTHER_ECHO.get(packet.icmp_type or 0),
            iif="",
            in_port="",
            oif=packet.iif,
            out_port=packet.in_port,
        )
        yield flow._replace(packet=leaving, hooks=OUT, noun=_LEAVING.get(flow.code, flow.noun))


_OTHER_ECHO: Mapping[int, int] = {8: 0, 0: 8, 128: 129, 129: 128}
"""The ICMP types of echo requests and replies, by the type of the other message (RFC 792, RFC 4443)."""

_LEAVING: Mapping[str, str] = {
    "echo-ignored": "the replies of this host to ICMP echo requests, so peers report it as unreachable",
    "probe-dropped": "the probes of this host, so silent peers may be reachable",
}
"""The nouns of the flows of probes that leave the host."""


def _policies(seen: Observed) -> Iterator[Finding]:
    """Yield the IPsec policies that drop packets of the overlay: those that block packets, and those that
    require encryption although no security association exists.

    Policies that drop only the probes are separate findings, because the packets of containers arrive.
    """
    if not seen.interfaces.policies:
        return
    found: dict[tuple[str, bool], dict[IpsecPolicy, _Drop]] = {}
    named: dict[IpsecPolicy, str] = {}
    for flow in _checked_flows(seen):
        for policy in _deciding(flow.packet, flow.hooks, seen.interfaces):
            lacking = _lacking(policy, flow.packet, seen.associations)
            if not policy.is_block and not lacking:
                continue
            kind = flow.code if flow.code in OF_PROBES else "overlay"
            if named.setdefault(policy, kind) == "overlay" and kind != "overlay":
                continue
            drop = found.setdefault((kind, policy.is_block), {}).setdefault(policy, _Drop({}, {}))
            drop.nouns[flow.noun] = None
            drop.lacking.update(dict.fromkeys(_no_association(ends) for ends in lacking))
    for (kind, is_block), drops in found.items():
        yield _finding(kind, drops, is_block=is_block)


class _Drop(NamedTuple):
    """The packets that a policy drops, and the missing security associations, in words."""

    nouns: dict[str, None]
    lacking: dict[str, None]


def _no_association(ends: IpsecEnds) -> str:
    source = "" if ends.source.is_unspecified else f"src {ends.source} "
    return f"ip xfrm state: no entry with {source}dst {ends.destination}"


def _finding(kind: str, drops: Mapping[IpsecPolicy, _Drop], *, is_block: bool) -> Finding:
    nouns = " and ".join(dict.fromkeys(noun for drop in drops.values() for noun in drop.nouns))
    code = "ipsec-block" if is_block else "ipsec-no-association"
    if is_block:
        cause = f"{_subject(drops)} {nouns}"
        hint = "or change the connection of the IPsec daemon that installs it"
    else:
        cause = (
            f"IPsec policies require encryption, but no security association exists: the kernel drops {nouns}"
        )
        hint = "or start the IPsec daemon, and read its log"
    lines = [line for policy, drop in drops.items() for line in (policy_text(policy), *drop.lacking)]
    return Finding(
        code=code if kind == "overlay" else kind,
        severity="error" if kind == "overlay" else "warning",
        cause=cause,
        evidence=some([*dict.fromkeys(lines)]),
        fix=f"{'; '.join(policy_removal(one) for one in [*drops][:NAMED])}  # {hint}",
    )


def _subject(found: Iterable[IpsecPolicy]) -> str:
    is_default = all(one.priority > _LEAST_PRIORITY for one in found)
    return "the default action of IPsec drops" if is_default else "IPsec policies drop"


def of_tunnel(finding: Finding) -> bool:
    """Return whether a finding of this module is about tunnel packets."""
    return TUNNEL_PACKETS in finding.cause


CODES = frozenset({"ipsec-block", "ipsec-no-association"})
"""Codes of the findings about packets of the overlay."""

CHECKS = (_policies,)
