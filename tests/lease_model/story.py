"""A counterexample as a readable and repeatable sequence of events."""

from collections.abc import Iterator

from msgspec.structs import replace

from lease_model.explorer import REAL, Counterexample
from lease_model.happening import apply
from lease_model.moves import Move, moves
from lease_model.rules import Violation
from lease_model.settling import settle
from lease_model.world import HostState, Protocol, World
from pyflannel.model.lease import Lease
from pyflannel.model.lease_protocol import (
    Check,
    Checked,
    Conflicted,
    DeleteClaim,
    DeleteLease,
    Failed,
    LeaseGone,
    LeaseSeen,
    List,
    Listed,
    PutClaim,
    PutLease,
    Seen,
    Wrote,
)


def replay(example: Counterexample, protocol: Protocol = REAL) -> tuple[Violation, ...]:
    """Repeat the moves of a counterexample, and return the violation; None after a repair of the defect.

    Moves that are no longer possible are skipped.
    """
    world = example.scenario.world
    for move in example.moves:
        if replace(move, drawn=0) not in moves(world, example.scenario.circumstances):
            continue
        outcome = apply(world, move, protocol, example.scenario.circumstances)
        if outcome.violations:
            return outcome.violations
        world = outcome.world
    return settle(world, protocol, example.scenario.circumstances).violations


def tell(example: Counterexample, protocol: Protocol = REAL) -> str:
    """Return the events of a counterexample, one line for each move."""
    lines = [f"{example.violation.rule}: {example.violation.text}", f"  in {example.scenario.name}"]
    lines += [f"  with {example.scenario.bounds}", ""]
    world = example.scenario.world
    way = list(example.moves)
    for number, move in enumerate(way, 1):
        after = apply(world, move, protocol, example.scenario.circumstances).world
        lines.append(f"{number:4} {world.now:8.1f} s  {_line(world, move, after)}")
        world = after
    if example.at_rest:
        lines.append("     and then, without any further fault:")
        for move in settle(world, protocol, example.scenario.circumstances).moves:
            after = apply(world, move, protocol, example.scenario.circumstances).world
            if len(lines) < 80:
                lines.append(f"     {world.now:8.1f} s  {_line(world, move, after)}")
            world = after
    lines += ["", *(f"     {line}" for line in _end(world)), "", f"     moves = {example.moves!r}"]
    return "\n".join(lines)


def _line(world: World, move: Move, after: World) -> str:
    if move.host < 0:
        return f"{move.what} {move.subnet or ''}".rstrip()
    host, then = world.hosts[move.host], after.hosts[move.host]
    text = f"{host.name}: {move.what}"
    match move.what:
        case "request" | "lost answer" | "failed request":
            text += f": {_request(host.requests[0])}"
            if then.answers:
                text += f" -> {_answer(then.answers[-1])}"
        case "answer":
            text += f": {_answer(host.answers[0])}"
        case "watch":
            text += f" from {host.watch}"
        case _:
            pass
    asked = [_request(request) for request in then.requests[len(host.requests) - (move.what == "request") :]]
    phase = then.state.phase.__class__.__name__ if then.state is not None else "down"
    return f"{text} => {phase}" + (f", asks {'; '.join(asked)}" if asked else "")


def _request(request: object) -> str:
    match request:
        case PutLease(lease=lease, expected=expected):
            return f"put {lease.subnet} if at {expected}"
        case DeleteLease(lease):
            return f"delete {lease.subnet} if at {lease.revision}"
        case PutClaim(claim):
            return f"claim {claim.subnet}"
        case DeleteClaim(claim):
            return f"unclaim {claim.subnet}"
        case List():
            return "list"
        case Check(lease):
            return f"check {lease.subnet}"
        case _:
            return repr(request)


def _answer(answer: object) -> str:
    match answer:
        case Wrote(write, revision):
            return f"wrote ({_request(write)}) at {revision}"
        case Conflicted(write):
            return f"conflict ({_request(write)})"
        case Failed(write, cause):
            return f"failed ({_request(write) if write is not None else 'list'}): {cause}"
        case Listed(leases=leases, revision=revision):
            return f"listed at {revision}: {', '.join(_lease(lease) for lease in leases) or 'nothing'}"
        case Checked(current=None):
            return "checked: nothing there"
        case Checked(current=Lease() as lease):
            return f"checked: {_lease(lease)}"
        case Seen(changes, revision):
            return f"seen up to {revision}: {len(changes)} changes"
        case LeaseSeen(lease):
            return f"seen {_lease(lease)}"
        case LeaseGone(subnet, revision):
            return f"gone {subnet} at {revision}"
        case _:
            return answer.__class__.__name__


def _lease(lease: Lease) -> str:
    owner = lease.attributes.owner or "no owner"
    return f"{lease.subnet}@{lease.revision} of {owner} at {lease.attributes.public_ip}"


def _end(world: World) -> Iterator[str]:
    for entry in world.store.entries:
        value = entry.value
        yield f"store: {value.subnet}@{value.revision} {value.__class__.__name__} by {entry.writer}"
    for host in world.hosts:
        yield _entry_line(host)


def _entry_line(host: HostState) -> str:
    phase = host.state.phase.__class__.__name__ if host.state is not None else "down"
    return f"{host.name}: {phase}, runs on {host.subnet}, watch at {host.watch}"
