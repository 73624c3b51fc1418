"""The parts of a large host and of a large network that doctor does not examine."""

from collections.abc import Iterable, Iterator

from pyflannel.model.status import Finding
from pyflannel.plan.doctor.flows import PORTS, evaluated_peers
from pyflannel.plan.doctor.observed import PROBED, Observed


def partly_examined(parts: Iterable[tuple[str, int, int]]) -> Iterator[Finding]:
    """Yield the finding that doctor examined only some objects.

    `parts`: the examined objects with `{}` for their number, this number, and the number of all objects.
    """
    lines = [text.format(f"{some} of {every}") for text, some, every in parts if some < every]
    if lines:
        yield Finding(
            code="examined-partly",
            severity="info",
            cause="doctor examined only a part of the peers or containers, so it may not find every problem",
            evidence=tuple(lines),
            fix="flannelctl ping HOST  # examines the path to one host",
        )


def coverage(seen: Observed) -> Iterator[Finding]:
    """Yield the finding that only a part of the observed host was examined in one family."""
    peers, own = len(seen.membership.peers), seen.membership.subnet
    refused = sum(peer.subnet in seen.membership.peers for peer in seen.status.refused_peers)
    asked = {one.destination for one in seen.answers if one.way == "container out"}
    here = [one for one in seen.containers if own and any(held in own for held in one.addresses)]
    ports = len(next(iter(seen.ports.values()), {}))
    held = sum(own is not None and address in own for one in here for address in one.addresses)
    parts = [
        ("the MTU of {} containers was read", sum(bool(one.mtus) for one in here), len(here)),
        ("{} addresses of containers were probed", min(PROBED, held), held),
    ]
    if seen.ruleset:
        evaluated = min(evaluated_peers(seen), peers)
        parts += [
            ("filter rules were evaluated for the packets of {} peers", evaluated, peers),
            ("rules of bridges were evaluated for {} ports", min(PORTS, ports), ports),
        ]
    if seen.answers:
        parts += [("the kernel was asked for the routes to {} peers", len(asked), peers - refused)]
    yield from partly_examined(parts)
