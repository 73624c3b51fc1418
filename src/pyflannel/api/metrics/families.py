"""Which metrics there are, and what a status gives for each.

Whatever is not known, or not there, has no sample. No label takes values without bound: peers are counted,
never named.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from pyflannel.model.status import Status

Sample = tuple[tuple[str, ...], float]
"""Values of the family's labels, and its value."""

_CARRIED = ("encapsulated", "decapsulated", "rejoined", "delivered")
_MODES = ("safe", "user-space", "off")
_PHASES = ("acquiring", "held", "lost", "taken")


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One metric.

    Attributes:
        name: as scraped; `_total` of a counter included.
        help: what it says, in one line.
        samples: of one network, at a moment of Unix time.
    """

    name: str
    kind: Literal["gauge", "counter"] = "gauge"
    help: str
    labels: tuple[str, ...] = ()
    samples: Callable[[Status, float], Iterable[Sample]]


def _one(value: Callable[[Status], float | None]) -> Callable[[Status, float], Iterable[Sample]]:
    """Return the only sample of a family without labels, if there is a value."""

    def samples(status: Status, _: float) -> Iterator[Sample]:
        found = value(status)
        if found is not None:
            yield (), found

    return samples


def _lease_phase(status: Status, _: float) -> Iterator[Sample]:
    if status.lease is not None and status.lease.phase is not None:
        yield from (((phase,), phase == status.lease.phase) for phase in _PHASES)


def _lease_info(status: Status, _: float) -> Iterator[Sample]:
    if status.lease is not None and status.lease.subnet is not None:
        yield (str(status.lease.subnet),), 1


def _lease_expiry(status: Status, utc: float) -> Iterator[Sample]:
    if status.lease is not None and status.lease.expires_in_s is not None:
        yield (), utc + status.lease.expires_in_s


def _peers(status: Status, _: float) -> Iterator[Sample]:
    refused = len(status.refused_peers)
    yield ("programmed",), status.peers - refused
    yield ("refused",), refused


def _backend(status: Status, _: float) -> Iterator[Sample]:
    if status.backend is not None:
        yield (status.backend.type, status.backend.link or ""), 1


def _repairs(status: Status, _: float) -> Iterator[Sample]:
    if status.reconcile is not None:
        yield from (((kind,), count) for kind, count in status.reconcile.repairs_by_kind.items())


def _fast_path_mode(status: Status, _: float) -> Iterator[Sample]:
    if status.fast_path is not None:
        yield from (((mode,), mode == status.fast_path.mode) for mode in _MODES)


def _tunnel(forwarder: str, programs: str, unit: str) -> Callable[[Status, float], Iterable[Sample]]:
    """Return both ways of the udp backend's packets, in packets or octets."""

    def samples(status: Status, _: float) -> Iterator[Sample]:
        user_space = status.forwarder.counters if status.forwarder is not None else {}
        if (name := f"{forwarder}_{unit}") in user_space:
            yield ("forwarder",), user_space[name]
        if status.fast_path is not None:
            counted = status.fast_path.counters if unit == "packets" else status.fast_path.octets
            if programs in counted:
                yield ("programs",), counted[programs]

    return samples


def _forwarder(*prefixes: str) -> Callable[[Status, float], Iterable[Sample]]:
    """Return the forwarder's counters that begin so, by the rest of their names.

    Several prefixes are the values of a label before it: `dropped_in`, of which the last word is that value.
    """

    def samples(status: Status, _: float) -> Iterator[Sample]:
        counters: Mapping[str, int] = status.forwarder.counters if status.forwarder is not None else {}
        for name, count in counters.items():
            for prefix in prefixes:
                if name.startswith(f"{prefix}_"):
                    rest = name.removeprefix(f"{prefix}_")
                    yield ((rest,) if len(prefixes) == 1 else (prefix.rsplit("_", 1)[-1], rest)), count

    return samples


def _failures(status: Status, _: float) -> Iterator[Sample]:
    for name, count in (status.forwarder.counters if status.forwarder is not None else {}).items():
        call, is_failure, errno = name.partition("_failed_")
        if is_failure:
            yield (call, errno), count


def _programs(
    belongs: Callable[[str], bool], prefix: str = ""
) -> Callable[[Status, float], Iterable[Sample]]:
    """Return the programs' counters of packets that belong to a family, without their prefix."""

    def samples(status: Status, _: float) -> Iterator[Sample]:
        for outcome, count in (status.fast_path.counters if status.fast_path is not None else {}).items():
            if belongs(outcome):
                yield (outcome.removeprefix(prefix),), count

    return samples


FAMILIES = (
    Family(
        name="flannel_build_info",
        help="The version of flanneld; always 1.",
        labels=("version",),
        samples=lambda status, _: [((status.version or "",), 1)],
    ),
    Family(
        name="flannel_ready",
        help="Packets can flow, the lease is ours, and the latest pass succeeded.",
        samples=_one(lambda status: status.is_ready),
    ),
    # The lease, and those of others.
    Family(
        name="flannel_lease_phase", help="Where our lease stands.", labels=("phase",), samples=_lease_phase
    ),
    Family(
        name="flannel_lease_info",
        help="Our subnet, held or held last; always 1.",
        labels=("subnet",),
        samples=_lease_info,
    ),
    Family(
        name="flannel_lease_expiry_timestamp_seconds",
        help="When our lease ends unless it is renewed; none for a reservation.",
        samples=_lease_expiry,
    ),
    Family(
        name="flannel_lease_losses_total",
        kind="counter",
        help="How often our lease vanished from the store, or another host had the subnet.",
        samples=_one(lambda status: status.lease.losses if status.lease else None),
    ),
    Family(
        name="flannel_leases",
        help="All leases that are known, our own too.",
        samples=_one(lambda status: status.leases),
    ),
    Family(
        name="flannel_lease_conflicts",
        help="Leases that contradict each other or the network config.",
        samples=_one(lambda status: status.conflicts),
    ),
    Family(
        name="flannel_peers",
        help="Other hosts with a lease: those that are sent to, and those that are refused.",
        labels=("state",),
        samples=_peers,
    ),
    # The store.
    Family(
        name="flannel_datastore_up",
        help="The store of leases answers.",
        samples=_one(lambda status: status.store.is_connected if status.store else None),
    ),
    Family(
        name="flannel_datastore_stale",
        help="The store has not answered since the start: what is known is from before.",
        samples=_one(lambda status: status.store.is_stale if status.store else None),
    ),
    Family(
        name="flannel_datastore_staleness_seconds",
        help="How long the store has been away; 0 while it answers.",
        samples=_one(
            lambda status: (
                (0.0 if status.store.is_connected else status.store.since_s) if status.store else None
            )
        ),
    ),
    # The host as it is against the plan.
    Family(
        name="flannel_backend_info",
        help="How packets cross the network, and the device; always 1.",
        labels=("type", "link"),
        samples=_backend,
    ),
    Family(
        name="flannel_mtu_bytes",
        help="MTU of a container.",
        samples=_one(lambda status: status.backend.mtu if status.backend else None),
    ),
    Family(
        name="flannel_reconcile_passes_total",
        kind="counter",
        help="How often the host was compared with the plan.",
        samples=_one(lambda status: status.reconcile.passes if status.reconcile else None),
    ),
    Family(
        name="flannel_reconcile_failures_total",
        kind="counter",
        help="Passes that could not read what is there.",
        samples=_one(lambda status: status.reconcile.failures if status.reconcile else None),
    ),
    Family(
        name="flannel_reconcile_last_duration_seconds",
        help="How long the latest pass took.",
        samples=_one(lambda status: status.reconcile.duration_s if status.reconcile else None),
    ),
    Family(
        name="flannel_repairs_total",
        kind="counter",
        help="Objects that somebody had damaged, and that were mended.",
        labels=("object",),
        samples=_repairs,
    ),
    Family(
        name="flannel_operations_refused",
        help="Operations of the latest pass that did not take effect.",
        samples=_one(lambda status: len(status.reconcile.refused) if status.reconcile else None),
    ),
    Family(
        name="flannel_operations_held",
        help="Repairs that wait, as somebody keeps undoing them.",
        samples=_one(lambda status: len(status.reconcile.held) if status.reconcile else None),
    ),
    # The packets of the udp backend.
    Family(
        name="flannel_fast_path_mode",
        help="Which way packets of the udp backend take.",
        labels=("mode",),
        samples=_fast_path_mode,
    ),
    Family(
        name="flannel_forwarder_attached",
        help="The forwarder moves packets of the device.",
        samples=_one(lambda status: status.forwarder.is_attached if status.forwarder else None),
    ),
    Family(
        name="flannel_tunnel_transmit_packets_total",
        kind="counter",
        help="Inner packets sent to peers, by the forwarder and by the programs in the kernel.",
        labels=("path",),
        samples=_tunnel("sent", "encapsulated", "packets"),
    ),
    Family(
        name="flannel_tunnel_transmit_bytes_total",
        kind="counter",
        help="Octets of inner packets sent to peers.",
        labels=("path",),
        samples=_tunnel("sent", "encapsulated", "octets"),
    ),
    Family(
        name="flannel_tunnel_receive_packets_total",
        kind="counter",
        help="Inner packets received from peers.",
        labels=("path",),
        samples=_tunnel("received", "decapsulated", "packets"),
    ),
    Family(
        name="flannel_tunnel_receive_bytes_total",
        kind="counter",
        help="Octets of inner packets received from peers.",
        labels=("path",),
        samples=_tunnel("received", "decapsulated", "octets"),
    ),
    Family(
        name="flannel_forwarder_dropped_packets_total",
        kind="counter",
        help="Packets that the forwarder dropped, from the device (out) or from the underlay (in).",
        labels=("direction", "reason"),
        samples=_forwarder("dropped_out", "dropped_in"),
    ),
    Family(
        name="flannel_forwarder_failed_packets_total",
        kind="counter",
        help="Packets lost as the kernel refused a call of the forwarder, by its errno.",
        labels=("call", "errno"),
        samples=_failures,
    ),
    Family(
        name="flannel_forwarder_batches_total",
        kind="counter",
        help="Calls of the forwarder that carried several packets.",
        labels=("call",),
        samples=_forwarder("batches"),
    ),
    Family(
        name="flannel_forwarder_icmp_errors_total",
        kind="counter",
        help="ICMP errors that the forwarder sent, or held back by the limit of their rate.",
        labels=("kind",),
        samples=_forwarder("icmp"),
    ),
    Family(
        name="flannel_fast_path_carried_packets_total",
        kind="counter",
        help="Packets that the programs in the kernel carried a part of their way.",
        labels=("part",),
        samples=_programs(lambda outcome: outcome in _CARRIED),
    ),
    Family(
        name="flannel_fast_path_left_packets_total",
        kind="counter",
        help="Packets that the programs left to user space or to the kernel's ordinary way.",
        labels=("reason",),
        samples=_programs(lambda outcome: outcome.startswith("left_"), "left_"),
    ),
    Family(
        name="flannel_fast_path_dropped_packets_total",
        kind="counter",
        help="Packets that the programs dropped.",
        labels=("reason",),
        samples=_programs(lambda outcome: outcome not in _CARRIED and not outcome.startswith("left_")),
    ),
)
