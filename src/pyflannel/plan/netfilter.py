"""Evaluates the rules of netfilter for one packet, in the same way as the kernel.

A rule with an unknown condition may apply or not, so the evaluation follows both possibilities. The result is
unknown only if both possibilities lead to different results.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from msgspec import Struct, field
from msgspec.structs import replace

from pyflannel.model.netfilter import BaseChain, Hook, Judgement, Match, Packet, Rule, Ruleset, Unknown

IN: tuple[Hook, ...] = ("ingress", "prerouting", "input")
THROUGH: tuple[Hook, ...] = ("ingress", "prerouting", "forward", "postrouting", "egress")
OUT: tuple[Hook, ...] = ("output", "postrouting", "egress")

_DEEPEST = 16
"""Maximum number of nested jumps (NFT_JUMP_STACK_SIZE)."""

_TRACKING = -200
"""Priority of connection tracking (linux/netfilter_ipv4.h, NF_IP_PRI_CONNTRACK)."""

_ROUTED = {4: frozenset({"ip", "inet", "netdev"}), 6: frozenset({"ip6", "inet", "netdev"})}
_OF_ARP: Mapping[Hook, frozenset[str]] = {
    "ingress": frozenset({"inet", "netdev"}),
    "input": frozenset({"arp"}),
    "output": frozenset({"arp"}),
    "egress": frozenset({"netdev"}),
}
_BRIDGED = frozenset({"bridge"})
_AT_DEVICE = frozenset({"inet", "netdev"})


class _Stage(NamedTuple):
    """A hook that a packet passes; the families of its chains, and the interfaces that they see."""

    hook: Hook
    families: frozenset[str]
    iif: str
    oif: str
    in_bridge: str = ""
    out_bridge: str = ""

    def chains(self, ruleset: Ruleset) -> list[BaseChain]:
        """Return the base chains in the order of their priorities."""
        device = {"ingress": self.iif, "egress": self.oif}.get(self.hook)
        found = (
            one
            for one in ruleset
            if one.hook == self.hook and one.family in self.families and device in (None, one.device)
        )
        return sorted(found, key=lambda one: one.priority)

    def seen(self, packet: Packet) -> Packet:
        """Return the packet as the chains of this hook see it."""
        return replace(
            packet, iif=self.iif, oif=self.oif, in_bridge=self.in_bridge, out_bridge=self.out_bridge
        )


def _stages(packet: Packet, hooks: Sequence[Hook]) -> Iterator[_Stage]:
    """Yield the hooks of the bridge at which the packet arrives, the hooks of IP, and the hooks of the bridge
    by which it leaves.

    A bridge receives a packet for the host at the hook input, and sends one of the host at output. Between
    two of its ports, a packet passes forward instead.

    Source: net/bridge/br_input.c, br_forward.c.
    """
    near, far, into, out_of = packet.in_port, packet.out_port, packet.iif, packet.oif
    is_bridged = bool(near and far) and into == out_of
    if near:
        yield _Stage("ingress", _AT_DEVICE, near, "")
        yield _Stage("prerouting", _BRIDGED, near, "", into)
        if is_bridged:
            yield _Stage("forward", _BRIDGED, near, far, into, out_of)
        else:
            yield _Stage("input", _BRIDGED, near, "", into)
    for hook in hooks:
        is_arp = packet.operation is not None
        families = _OF_ARP.get(hook, frozenset()) if is_arp else _ROUTED[packet.source.version]
        yield _Stage(hook, families, into, out_of)
    if far:
        if not is_bridged:
            yield _Stage("output", _BRIDGED, "", far, "", out_of)
        yield _Stage("postrouting", _BRIDGED, "", far, "", out_of)
        yield _Stage("egress", _AT_DEVICE, "", far)


def judge(packet: Packet, ruleset: Ruleset, hooks: Sequence[Hook]) -> Judgement:
    """Return the judgement of the rules on a packet that passes these hooks, in the given order."""
    doubt: Judgement | None = None
    translation: tuple[BaseChain, Rule] | None = None
    redirection: tuple[BaseChain, Rule] | None = None
    is_translated = False
    for stage, chain in _in_order(packet, ruleset, hooks):
        if chain.is_nat and (packet.state != "new" or is_translated):
            continue
        is_tracked = not _is_before_tracking(chain)
        run = _Run(chain, stage.seen(packet if is_tracked else replace(packet, state="invalid")))
        run.evaluate()
        was_untracked = run.packet.state == "untracked"
        state = run.packet.state if is_tracked or was_untracked else packet.state
        packet = replace(packet, mark=run.packet.mark, state=state)
        dropping = [one for one in run.ends if one.kind in ("drop", "reject")]
        if len(dropping) == len(run.ends):
            first = dropping[0]
            return Judgement(
                kind="reject" if first.kind == "reject" else "drop", chain=chain, rule=first.rule
            )
        if run.expired is not None and "forward" in hooks:
            return Judgement(kind="expire", chain=chain, rule=run.expired)
        doubtful = dropping or [one for one in run.ends if one.kind == "unknown"]
        is_partial = not run.is_unknown and all(one.kind != "unknown" for one in run.ends)
        if dropping and is_partial and (doubt is None or doubt.kind == "unknown"):
            doubt = Judgement(kind="sample", chain=chain, rule=dropping[0].rule)
        elif doubtful and doubt is None:
            doubt = Judgement(kind="unknown", chain=chain, rule=doubtful[0].rule)
        for end in run.ends:
            if end.kind == "translate" and end.rule is not None:
                is_translated = is_translated or len(run.ends) == 1
                if len(run.ends) > 1:
                    continue
                if end.rule.action.translates == "source":
                    translation = chain, end.rule
                elif end.rule.action.translates == "destination":
                    redirection = chain, end.rule
    if doubt is not None:
        return replace(doubt, translation=translation, redirection=redirection)
    return Judgement(kind="accept", translation=translation, redirection=redirection)


def _is_before_tracking(chain: BaseChain) -> bool:
    tracking = ("prerouting",) if chain.family == "bridge" else ("prerouting", "output")
    return chain.hook == "ingress" or (chain.hook in tracking and chain.priority < _TRACKING)


def _in_order(packet: Packet, ruleset: Ruleset, hooks: Sequence[Hook]) -> Iterator[tuple[_Stage, BaseChain]]:
    for stage in _stages(packet, hooks):
        yield from ((stage, chain) for chain in stage.chains(ruleset))


class _End(Struct, frozen=True):
    """A possible verdict of a base chain on a packet; `rule` is None for the policy."""

    kind: str
    rule: Rule | None


class _Run(Struct):
    """The evaluation of one packet in one base chain.

    Attributes:
        is_unknown: True if a verdict depends on a condition that pyflannel does not evaluate. Conditions that
            a part of all packets meets are not counted.
        expired: the rule that certainly lets the packet expire at the next router.
        seen: chains that were already evaluated for the packet, each with the information whether the packet
            ends in it. These chains are needed because chains may jump to each other.
    """

    chain: BaseChain
    packet: Packet
    ends: list[_End] = field(default_factory=list)
    seen: dict[tuple[str, Packet], bool] = field(default_factory=dict)
    is_unknown: bool = False
    expired: Rule | None = None

    def evaluate(self) -> None:
        """Collect all possible verdicts on the packet."""
        if not self._walk(self.chain.name, _DEEPEST, is_certain=True):
            self.ends.append(_End(self.chain.policy, None))

    def _walk(self, name: str, depth: int, *, is_certain: bool) -> bool:
        """Evaluate a chain that the packet certainly or possibly enters; return whether the packet ends in
        this chain.
        """
        if not depth:
            self.ends.append(_End("unknown", None))
            return True
        before = self.packet
        if (name, before) in self.seen:
            return self.seen[name, before]
        has_ended = self._walk_rules(name, depth, is_certain=is_certain)
        if self.packet == before:
            self.seen[name, before] = has_ended
        return has_ended

    def _walk_rules(self, name: str, depth: int, *, is_certain: bool) -> bool:
        may_return = False
        for rule in self.chain.chains.get(name, ()):
            applies = _holds(rule, self.packet)
            if applies is False:
                continue
            if applies is None and rule.action.kind not in _WITHOUT_EFFECT:
                self.is_unknown = self.is_unknown or not _is_partial(rule, self.packet)
            has_left, has_ended = self._act(rule, depth, is_certain=is_certain and applies is True)
            if applies and has_left:
                return has_ended and not may_return
            may_return = may_return or (has_left and not has_ended)
        return False

    def _act(self, rule: Rule, depth: int, *, is_certain: bool) -> tuple[bool, bool]:
        """Apply a rule; return whether the packet leaves the chain, and whether it ends in the base chain."""
        action = rule.action
        match action.kind:
            case "accept" | "drop" | "reject" | "translate" | "unknown" | "queue":
                self.ends.append(_End("unknown" if action.kind == "queue" else action.kind, rule))
                return True, True
            case "return":
                return True, False
            case "jump" | "goto":
                has_ended = self._walk(action.target, depth - 1, is_certain=is_certain)
                return action.kind == "goto" or has_ended, has_ended
            case "notrack":
                if is_certain:
                    self.packet = replace(self.packet, state="untracked")
                return False, False
            case "mark":
                mark = self.packet.mark
                known = is_certain and mark is not None and action.value is not None
                new = (mark or 0) & action.keep ^ (action.value or 0) if known else None
                self.packet = replace(self.packet, mark=new)
                return False, False
            case "expire":
                if is_certain:
                    self.expired = self.expired or rule
                else:
                    self.ends.append(_End("unknown", rule))
                return False, False
            case "continue":
                return False, False


def _holds(rule: Rule, packet: Packet) -> bool | None:
    """Return whether all conditions of a rule are true; None if this is unknown."""
    is_known = True
    for one in rule.matches:
        result = one.holds(packet)
        if result is False:
            return False
        is_known = is_known and result is not None
    return True if is_known else None


_WITHOUT_EFFECT = frozenset({"continue", "mark"})


def _is_partial(rule: Rule, packet: Packet) -> bool:
    """Return whether a rule applies to a part of all packets like this one."""
    return all(
        one.is_partial if isinstance(one, Unknown) else one.holds(packet) is True for one in rule.matches
    )


def why(rule: Rule, packet: Packet) -> str:
    """Return the condition of a rule that could not be evaluated; "" if all conditions were evaluated."""
    for one in rule.matches:
        match one:
            case Unknown(text):
                return text
            case Match(name) if one.holds(packet) is None:
                return name
            case _:
                pass
    return ""
