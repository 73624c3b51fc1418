"""What `nft --json list ruleset` says of forwarded packets. Source: libnftables-json(5).

iptables works on nf_tables as well, so its chains are among these; matches that nftables has no words for are
`xt` there.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import IPv4Network
from typing import Any

from pyflannel.errors import WireError
from pyflannel.model.forward_chain import ForwardChain

_FAMILIES = frozenset({"ip", "inet"})
_EVERYTHING = IPv4Network("0.0.0.0/0")
_DEEPEST = 16
"""Jumps that the kernel follows (NFT_JUMP_STACK_SIZE)."""

_Key = tuple[str, str, str]
_Rules = Mapping[_Key, Sequence[Sequence[Mapping[str, Any]]]]


def parse_forward_chains(text: str) -> list[ForwardChain]:
    """Return the base chains at the forward hook that drop what they do not accept.

    Raises:
        WireError: it is not nft's JSON.
    """
    chains: list[_Key] = []
    rules: dict[_Key, list[Sequence[Mapping[str, Any]]]] = {}
    try:
        for entry in json.loads(text)["nftables"]:
            match entry:
                case {"chain": {"hook": "forward", "policy": "drop"} as chain}:
                    chains.append((chain["family"], chain["table"], chain["name"]))
                case {"rule": rule}:
                    rules.setdefault((rule["family"], rule["table"], rule["chain"]), []).append(rule["expr"])
                case _:
                    pass
        return [
            ForwardChain(family=key[0], table=key[1], name=key[2], passes=frozenset(_passed(key, rules)))
            for key in chains
            if key[0] in _FAMILIES
        ]
    except (ValueError, TypeError, KeyError) as error:
        raise WireError(
            f"nft's JSON makes no sense: {error!r}", hint="Compare with nft --json list ruleset."
        ) from error


def _passed(chain: _Key, rules: _Rules, depth: int = 0) -> Iterator[IPv4Network]:
    """Yield what a chain accepts for its source or destination alone.

    A rule that stands before, and drops a part of it, is the operator's wish.
    """
    if depth > _DEEPEST:
        return
    for expressions in rules.get(chain, ()):
        *conditions, verdict = [one for one in expressions if not _is_remark(one)] or [{}]
        match verdict:
            case {"accept": _}:
                yield from _condition(conditions)
            case {"jump": {"target": target}} | {"goto": {"target": target}} if not conditions:
                yield from _passed((chain[0], chain[1], target), rules, depth + 1)
            case _:
                pass


def _is_remark(expression: Mapping[str, Any]) -> bool:
    match expression:
        case {"counter": _} | {"log": _} | {"xt": {"name": "comment"}}:
            return True
        case _:
            return False


def _condition(conditions: Sequence[Mapping[str, Any]]) -> Iterator[IPv4Network]:
    match conditions:
        case []:
            yield _EVERYTHING
        case [
            {
                "match": {
                    "op": "==",
                    "left": {"payload": {"protocol": "ip", "field": "saddr" | "daddr"}},
                    "right": right,
                }
            }
        ]:
            yield from _networks(right)
        case _:
            pass


def _networks(right: object) -> Iterator[IPv4Network]:
    match right:
        case {"prefix": {"addr": str(address), "len": int(length)}}:
            yield IPv4Network((address, length))
        case {"set": [*members]}:
            for member in members:
                yield from _networks(member)
        case _:
            pass  # one address, a range, a named set
