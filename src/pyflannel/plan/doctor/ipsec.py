"""IPsec policies that drop packets of the overlay."""

from collections.abc import Iterable, Iterator, Sequence

from pyflannel.model.host import Interfaces, IpsecPolicy
from pyflannel.model.netfilter import TCP, UDP, Hook, Packet
from pyflannel.model.status import Finding
from pyflannel.plan.doctor.flows import TUNNEL_PACKETS, container_flows, tunnel_flows
from pyflannel.plan.doctor.observed import NAMED, Observed, some
from pyflannel.plan.netfilter import IN, OUT, THROUGH


def blocking_policies(packet: Packet, hooks: Sequence[Hook], interfaces: Interfaces) -> list[IpsecPolicy]:
    """Return the IPsec policies that drop a packet at these hooks, at most one for each direction.

    The matching policy with the lowest priority number decides. If several policies have this number, the
    oldest policy decides, which the kernel lists last. A forwarded packet is also checked when it leaves.

    Source: net/xfrm/xfrm_policy.c, xfrm_policy_match, xfrm_policy_insert_list, xfrm_policy_walk.
    """
    found = []
    directions = {IN: ("in",), OUT: ("out",), THROUGH: ("forward", "out")}.get(tuple(hooks), ())
    for direction in directions:
        first = _deciding(packet, direction, interfaces)
        if first is not None and first.is_block:
            found.append(first)
    return found


def _deciding(packet: Packet, direction: str, interfaces: Interfaces) -> IpsecPolicy | None:
    link = interfaces.named(packet.oif if direction == "out" else packet.iif)
    index = 0 if link is None else link.index
    matching = [
        one
        for one in reversed(interfaces.policies)
        if one.direction == direction and _selects(one, packet, index)
    ]
    return min(matching, key=lambda one: one.priority, default=None)


def _selects(policy: IpsecPolicy, packet: Packet, link: int) -> bool:
    return (
        packet.source in policy.source
        and packet.destination in policy.destination
        and policy.protocol in (0, packet.protocol)
        and ((packet.destination_port or 0) ^ policy.port) & policy.port_mask == 0
        and ((packet.source_port or 0) ^ policy.source_port) & policy.source_port_mask == 0
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


def _blocked_by_ipsec(seen: Observed) -> Iterator[Finding]:
    """Yield the IPsec policies that drop packets of the overlay."""
    found: dict[IpsecPolicy, str] = {}
    for flow in (*tunnel_flows(seen), *container_flows(seen)):
        for policy in blocking_policies(flow.packet, flow.hooks, seen.interfaces):
            found.setdefault(policy, flow.noun)
    if found:
        nouns = " and ".join(dict.fromkeys(found.values()))
        yield Finding(
            code="ipsec-block",
            severity="error",
            cause=f"{_subject(found)} {nouns}",
            evidence=some([policy_text(policy) for policy in found]),
            fix=f"{'; '.join(policy_removal(one) for one in list(found)[:NAMED])}"
            "  # or change the connection of the IPsec daemon that installs it",
        )


def _subject(found: Iterable[IpsecPolicy]) -> str:
    is_default = all(one.priority > _LEAST_PRIORITY for one in found)
    return "the default action of IPsec drops" if is_default else "IPsec policies drop"


def _unprotected(seen: Observed) -> Iterator[Finding]:
    """Yield the finding that IPsec policies require encryption of tunnel packets, but no security association
    exists. The kernel then drops the packets.
    """
    if seen.associations is None:
        return
    found: dict[IpsecPolicy, list[str]] = {}
    for flow in tunnel_flows(seen):
        policy = _deciding(flow.packet, "out", seen.interfaces) if flow.hooks == OUT else None
        for end in () if policy is None or policy.is_block else policy.ends:
            there = flow.packet.destination if end.is_unspecified else end
            if policy is not None and there not in seen.associations:
                found.setdefault(policy, []).append(f"ip xfrm state: no entry with dst {there}")
    if found:
        lines = [line for policy, ends in found.items() for line in (policy_text(policy), *ends)]
        yield Finding(
            code="ipsec-no-association",
            severity="error",
            cause="IPsec policies require encryption, but no security association exists: the kernel drops"
            f" {TUNNEL_PACKETS}",
            evidence=some([*dict.fromkeys(lines)]),
            fix=f"{'; '.join(policy_removal(one) for one in list(found)[:NAMED])}"
            "  # or start the IPsec daemon, and read its log",
        )


def of_tunnel(finding: Finding) -> bool:
    """Return whether a finding of this module is about tunnel packets."""
    return TUNNEL_PACKETS in finding.cause


CHECKS = (_blocked_by_ipsec, _unprotected)
