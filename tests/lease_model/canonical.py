"""Worlds that differ only in names, revision numbers and absolute times are one state."""

from ipaddress import IPv4Address, IPv4Network

from msgspec import Struct

from lease_model.world import World
from pyflannel.model.lease_set import LeaseSet
from pyflannel.model.network_config import NetworkConfig

_REVISIONS = frozenset(
    {
        "revision",
        "expected",
        "claim_revision",
        "config_revision",
        "after",
        "listed_at",
        "watch",
        "compacted",
    }
)
_NAMES = frozenset({"owner", "name", "writer"})
_COUNTS = {"failures", "short_watches"}
_FAILURES_MAX = 6  # the pause between two attempts does not grow further
_MEMORY_MAX = 300_000

_Shape = int
_Parts = tuple[_Shape, tuple[int, ...], tuple[float, ...], tuple[int, ...]]
_Found = tuple[list[int], list[float], list[int]]


class Canon:
    """Computes the key of each world.

    A value is split once into its shape, which contains nothing to be renamed, and its revisions, times and
    names, in order. Hosts are sorted by the parts that are not names, so that symmetric hosts are one state.
    Revisions are replaced by their ranks, times by differences from now, names by their order of occurrence.
    """

    def __init__(self, *, folds_subnets: bool = True) -> None:
        self._folds_subnets = folds_subnets
        self._shapes: dict[object, int] = {}
        self._names: dict[object, int] = {}
        self._fields: dict[type, tuple[str, ...]] = {}
        self._memory: dict[int, tuple[object, _Parts]] = {}

    def key(self, world: World) -> int:
        """Return the key of a world. Worlds that are one state have equal keys."""
        hosts = [self._parts(host) for host in world.hosts]
        if len(hosts) > 1:
            hosts.sort(key=lambda parts: (parts[0], parts[2], parts[1]))
        parts = (*hosts, self._parts(world.store))
        now = world.now
        numbers = [number for part in parts for number in part[1]]
        rank = _ranks(numbers, world.store.revision)
        places: dict[int, int] = {}
        names = tuple(places.setdefault(name, len(places)) for part in parts for name in part[3])
        times = tuple(round(at - now, 3) for part in parts for at in part[2])
        shapes = tuple(part[0] for part in parts)
        network = self._network(world.network)
        return hash(
            (shapes, tuple(map(rank.__getitem__, numbers)), times, names, network, world.faults, world.ticks)
        )

    def _parts(self, value: object) -> _Parts:
        known = self._memory.get(id(value))
        if known is not None:
            return known[1]
        if len(self._memory) > _MEMORY_MAX:
            self._memory.clear()
        parts = self._take_apart(value)
        self._memory[id(value)] = value, parts  # the value is kept, so that no other value gets the same id()
        return parts

    def _take_apart(self, value: object) -> _Parts:
        cls = value.__class__
        names = self._fields.get(cls)
        if names is None:
            assert issubclass(cls, Struct)
            names = self._fields[cls] = cls.__struct_fields__
        shape: list[object] = [cls]
        found: _Found = ([], [], [])
        for name in names:
            shape.append(self._visit(getattr(value, name), name, found))
        shape_id = self._shapes.setdefault(tuple(shape), len(self._shapes))
        return shape_id, tuple(found[0]), tuple(found[1]), tuple(found[2])

    def _visit(self, value: object, name: str, found: _Found) -> object:
        match value:
            case None | bool():
                return value
            case int():
                if name in _REVISIONS:
                    found[0].append(value)
                    return "revision"
                return min(value, _FAILURES_MAX) if name in _COUNTS else value
            case float():
                if name in {"skew_s", "renew_margin_s", "ttl_s", "held_s"}:
                    return value
                found[1].append(value)
                return "time"
            case str():
                if name in _NAMES and value:
                    found[2].append(self._name(value))
                    return "name"
                return value
            case IPv4Network():
                if not self._folds_subnets:
                    return value
                found[2].append(self._name(value))
                return "subnet"
            case IPv4Address():
                found[2].append(self._name(value))
                return "address"
            case tuple():
                return tuple(self._visit(item, "", found) for item in value)
            case frozenset():
                found[2].extend(map(self._name, sorted(value)))
                return len(value)
            case LeaseSet():
                return self._visit_leases(value, found)
            case NetworkConfig():
                return self._network(value)
            case _:
                parts = self._parts(value)
                found[0].extend(parts[1])
                found[1].extend(parts[2])
                found[2].extend(parts[3])
                return parts[0]

    def _name(self, name: object) -> int:
        return self._names.setdefault(name, len(self._names))

    def _visit_leases(self, leases: LeaseSet, found: _Found) -> object:
        known = sorted(leases, key=lambda lease: lease.revision)
        for lease in known:
            found[0].append(lease.revision)
            if self._folds_subnets:
                found[2].append(self._name(lease.subnet))
        found[0].append(leases.listed_at)
        return len(known) if self._folds_subnets else tuple(lease.subnet for lease in known)

    def _network(self, network: NetworkConfig) -> object:
        return network.network, network.subnet_length, network.subnet_min, network.subnet_max


def _ranks(revisions: list[int], newest: int) -> dict[int, int]:
    """Return the rank of each revision.

    A store that lost its data uses its revisions again. Therefore a revision later than the store's newest
    revision keeps its distance from the newest revision.
    """
    known = sorted({0, *(number for number in revisions if number <= newest)})
    rank = {number: place for place, number in enumerate(known)}
    return rank | {number: len(known) + number - newest for number in revisions if number > newest}
