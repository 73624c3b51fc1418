"""Random faults of complete engines: of their store, their kernel, their clock and themselves."""

import asyncio
from collections.abc import Callable, Sequence
from random import Random

from msgspec.structs import replace

from lease_model.engines import HOUR_S, START_S, SUBNET_FILE, UNDERLAY, EngineHost, Engines, foreign
from pyflannel.model.forwarder import Forwarder, ForwarderPeer
from pyflannel.model.host import HostFile
from pyflannel.model.item import Item
from pyflannel.model.link import Address, Link
from pyflannel.model.route import FdbEntry, Neighbour, Route
from pyflannel.model.state import Operation, Remove, Replace
from pyflannel.model.store_record import Delete, Put, Record
from pyflannel.wire.lease_record import CONFIG, SUBNETS, lease_key

_STRANGER = UNDERLAY.broadcast_address - 1
_SOME_ITEMS = 12
_TROUBLE_S = 60.0
"""Maximum time in seconds for which a kernel refuses or is unreadable. Each second has a retry."""

FAULTS = (
    "crash",
    "crash",
    "boot",
    "leaves",
    "power cut",
    "lost answer",
    "failed call",
    "watch cut",
    "compaction",
    "store away",
    "store away from all",
    "data lost",
    "data lost, grown",
    "deleted manually",
    "all deleted manually",
    "reserved manually",
    "config changed",
    "config deleted",
    "config spoilt",
    "address changed",
    "host sleeps",
    "clock set",
    "kernel damaged",
    "kernel damaged",
    "kernel damaged silently",
    "kernel refuses",
    "kernel unreadable",
)


async def simulate_with_faults(
    engines: Engines, seconds: float, *, faults: Sequence[str] = FAULTS, count: int
) -> None:
    """Simulate this time with this number of faults at random times, some of them at the same time.

    Unannounced faults, which only an audit finds, are the last, because a later pass would repair them, too.
    """
    loop, random = asyncio.get_running_loop(), engines.random
    begin = loop.time()
    for at in sorted(begin + random.random() * seconds for _ in range(count)):
        await asyncio.sleep(at - loop.time())
        engines.judge()
        what = random.choice(faults)
        engines.counts[what] += 1
        await _befall(what, engines, random.choice(engines.hosts))
        if engines.broken:
            return
    await asyncio.sleep(begin + seconds - loop.time())
    engines.judge()
    await _befall("kernel damaged silently", engines, random.choice(engines.hosts))


async def _befall(what: str, engines: Engines, host: EngineHost) -> None:
    random = engines.random
    match what:
        case "crash" | "boot":
            await (host.crash() if what == "crash" else host.boot())
            host.start_in(_duration(random))
        case "leaves":
            await host.boot()
            _delete_leases(engines, host)
            host.start_in(_duration(random))
        case "power cut":
            duration_s = _duration(random)
            for each in engines.hosts:
                await each.boot()
                each.start_in(duration_s + random.random() * START_S)
        case "lost answer":
            host.client.lose_next_answer()
        case "failed call":
            host.client.fail_next(random.choice((1, 3)))
        case "watch cut":
            host.client.cut_watches()
        case "compaction":
            _compact(engines, host)
        case "store away":
            host.line.go_away(_duration(random))
        case "store away from all":
            # Without its store, a host retries every few seconds, so a few hours without a store are
            # sufficient.
            duration_s = min(_duration(random), HOUR_S)
            for each in engines.hosts:
                each.line.go_away(duration_s)
        case "data lost" | "data lost, grown":
            _lose_data(engines, has_grown=what == "data lost, grown")
        case "config changed":
            engines.configure(random.choice(engines.configs))
        case "config deleted" | "config spoilt":
            _take_config(engines, is_spoilt=what == "config spoilt")
        case "address changed":
            host.move()
        case "host sleeps":
            host.clock.step(25 * HOUR_S)
        case "clock set":
            host.clock.step_utc(random.choice((25, -25)) * HOUR_S)
        case "kernel damaged" | "kernel damaged silently":
            _damage(host, random, is_announced=what == "kernel damaged")
        case "kernel refuses":
            host.kernel.refuse = lambda operation: host.random.random() < 0.5
            _damage(host, random, is_announced=True)
            _later(random.random() * _TROUBLE_S, lambda: setattr(host.kernel, "refuse", _never))
        case "kernel unreadable":
            host.kernel.is_readable = False
            _damage(host, random, is_announced=True)
            _later(random.random() * _TROUBLE_S, lambda: setattr(host.kernel, "is_readable", True))
        case _:
            _manually(what, engines)


def _delete_leases(engines: Engines, host: EngineHost) -> None:
    """Let a host leave the network, as by flannelctl cleanup."""
    for lease in engines.leases():
        if lease.attributes.owner == host.identity.owner:
            engines.store.change(Delete(key=lease_key(lease), expected=None))


def _compact(engines: Engines, host: EngineHost) -> None:
    """Let the store remove history that a host without a connection would need."""
    host.line.go_away(_TROUBLE_S)
    for _ in range(2):
        engines.store.change(Put(key="elsewhere", value=b"", ttl_s=None, expected=None))
        engines.store.compact()


def _lose_data(engines: Engines, *, has_grown: bool) -> None:
    """Let the store lose its data except the config. If the store has grown since, its revision exceeds all
    revisions that hosts know.
    """
    for host in engines.hosts:
        host.line.go_away(_TROUBLE_S * (1 + engines.random.random()))
    engines.store.lose_data(engines.store.listing().revision + 1 if has_grown else 1)
    engines.ledger.forget()
    engines.configure(engines.config)


def _take_config(engines: Engines, *, is_spoilt: bool) -> None:
    """Remove the valid config for at most an hour."""
    if is_spoilt:
        engines.store.change(Put(key=CONFIG, value=b"no JSON", ttl_s=None, expected=None))
    else:
        engines.store.change(Delete(key=CONFIG, expected=None))
    _later(min(_duration(engines.random), HOUR_S), lambda: engines.configure(engines.config))


def _manually(what: str, engines: Engines) -> None:
    """Let an operator change leases in the store."""
    records = [record for record in engines.store.listing().records if record.key.startswith(SUBNETS)]
    if not records:
        return
    record: Record = engines.random.choice(records)
    match what:
        case "deleted manually":
            engines.store.change(Delete(key=record.key, expected=None))
        case "all deleted manually":
            for each in records:
                engines.store.change(Delete(key=each.key, expected=None))
        case "reserved manually":
            engines.store.change(Put(key=record.key, value=record.value, ttl_s=None, expected=None))
        case _:
            raise AssertionError(f"no such fault: {what}")


def _damage(host: EngineHost, random: Random, *, is_announced: bool) -> None:
    """Remove or change some of pyflannel's objects. The kernel announces each change of a link."""
    others = foreign(host.address)
    items = [
        item
        for item in host.kernel.state
        if item not in others and _may_be_damaged(item) and (is_announced or not isinstance(item, Link))
    ]
    count = min(len(items), random.randrange(1, _SOME_ITEMS))
    operations: list[Operation] = []
    for item in random.sample(items, count):
        changed = _changed(item)
        operations.append(
            Remove(item) if changed is None or random.random() < 0.5 else Replace(item, changed)
        )
    host.kernel.damage(*operations, is_announced=is_announced)


def _may_be_damaged(item: Item) -> bool:
    """Return whether a fault may damage the object. The subnet of the previous run cannot be restored."""
    return not (isinstance(item, HostFile) and item.path == SUBNET_FILE)


def _changed(item: Item) -> Item | None:
    match item:
        case Link():
            return replace(item, is_up=False)
        case Route():
            return replace(item, gateway=_STRANGER, is_onlink=True)
        case Neighbour():
            return replace(item, mac="02:00:00:00:00:01")
        case FdbEntry():
            return replace(item, destination=_STRANGER)
        case ForwarderPeer():
            return replace(item, address=_STRANGER)
        case Forwarder():
            return replace(item, port=item.port + 1)
        case Address() | _:
            return None


def _duration(random: Random) -> float:
    """Return a random duration: usually seconds or minutes, sometimes longer than the TTL of a lease."""
    return float(random.choice((1.0, 30.0, 600.0, HOUR_S, 30 * HOUR_S))) * (0.5 + random.random())


def _later(seconds: float, act: Callable[[], object]) -> None:
    asyncio.get_running_loop().call_later(seconds, act)


def _never(operation: Operation) -> bool:
    return False
