"""The metrics of a daemon: the metric families, their samples computed from a status, and the text format of
Prometheus.

Only this module loads prometheus-client. An unknown or absent value has no sample. No label has an unlimited
number of values: peers are counted, not named.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal

from msgspec import Struct
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from pyflannel.model.status import DURATIONS_S, BackendStatus, Durations, Status, carried_by_programs

Sample = tuple[tuple[str, ...], float]
"""A sample: the values of the family's labels, and the value of the sample."""

_CARRIED = ("encapsulated", "decapsulated", "rejoined", "delivered", "cached_out", "cached_in")
_MODES = ("safe", "flow", "user-space", "uncached", "off")
_PHASES = ("acquiring", "held", "lost", "taken")

_RECENT_S = 180.0
"""Age in seconds up to which the session of a WireGuard handshake is valid: REJECT_AFTER_TIME of the
WireGuard protocol."""


class Family(Struct, frozen=True, kw_only=True):
    """A metric family: its name, its help text, and the function that returns its samples.

    Attributes:
        name: name in the output, with the suffix `_total` for a counter.
        help: help text of the metric, in one line.
        samples: function that returns the samples of one network at a Unix time. A histogram has one
            cumulative sample for each bucket, labelled by `le`, and its sum with an empty `le`.
    """

    name: str
    kind: Literal["gauge", "counter", "histogram"] = "gauge"
    help: str
    labels: tuple[str, ...] = ()
    samples: Callable[[Status, float], Iterable[Sample]]


def _one(value: Callable[[Status], float | None]) -> Callable[[Status, float], Iterable[Sample]]:
    """Return the `samples` function of a family without labels. The function returns one sample, or none if
    the value is missing.
    """

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


def _requests(status: Status, _: float) -> Iterator[Sample]:
    if status.store is not None:
        yield from (((one.operation, one.result), one.count) for one in status.store.requests)


def _lost_watches(status: Status, _: float) -> Iterator[Sample]:
    if status.store is not None:
        yield from (((reason,), count) for reason, count in status.store.lost_watches.items())


def _pass_durations(status: Status, _: float) -> Iterator[Sample]:
    if status.reconcile is not None:
        yield from _buckets(status.reconcile.pass_durations)


def _peer_durations(status: Status, _: float) -> Iterator[Sample]:
    if status.reconcile is not None:
        yield from _buckets(status.reconcile.peer_durations)


def _buckets(durations: Durations) -> Iterator[Sample]:
    for most_s, count in zip(DURATIONS_S, durations.up_to, strict=True):
        yield (str(most_s),), count
    yield ("+Inf",), durations.count
    yield ("",), durations.total_s


def _handshakes(status: Status, _: float) -> Iterator[Sample]:
    if status.wireguard is not None:
        ages = [peer.handshake_age_s for peer in status.wireguard.peers]
        recent = sum(age is not None and age <= _RECENT_S for age in ages)
        yield ("never",), ages.count(None)
        yield ("recent",), recent
        yield ("old",), len(ages) - ages.count(None) - recent


def _latest_handshake(status: Status, utc: float) -> Iterator[Sample]:
    peers = status.wireguard.peers if status.wireguard is not None else ()
    ages = [peer.handshake_age_s for peer in peers if peer.handshake_age_s is not None]
    if ages:
        yield (), utc - min(ages)


def _fast_path_mode(status: Status, _: float) -> Iterator[Sample]:
    if status.fast_path is not None:
        yield from (((mode,), mode == status.fast_path.mode) for mode in _MODES)


def _tunnel(
    direction: Literal["received", "sent"],
    unit: Literal["packets", "bytes"],
    device: Callable[[BackendStatus], int | None] | None = None,
) -> Callable[[Status, float], Iterable[Sample]]:
    """Return the function that samples the counters of packets or bytes.

    The forwarder and the eBPF programs count packets of the udp backend. The device counts packets of any
    other backend.
    """

    def samples(status: Status, _: float) -> Iterator[Sample]:
        user_space = status.forwarder.counters if status.forwarder is not None else {}
        if (name := f"{direction}_{unit}") in user_space:
            yield ("forwarder",), user_space[name]
        if status.fast_path is not None:
            counted = status.fast_path.counters if unit == "packets" else status.fast_path.byte_counters
            if counted:
                yield ("programs",), getattr(carried_by_programs(counted), direction)
        if device is None or status.backend is None or status.backend.type == "udp":
            return
        if (count := device(status.backend)) is not None:
            yield ("device",), count

    return samples


def _forwarder(*prefixes: str) -> Callable[[Status, float], Iterable[Sample]]:
    """Return the function that samples the forwarder's counters with these prefixes. The rest of a counter's
    name is the label.

    With several prefixes, the last word of the prefix is the value of the first label: `in` for `dropped_in`.
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
    """Return the function that samples the eBPF programs' counters of a family. The label is the name of the
    counter without `prefix`.
    """

    def samples(status: Status, _: float) -> Iterator[Sample]:
        for outcome, count in (status.fast_path.counters if status.fast_path is not None else {}).items():
            if belongs(outcome):
                yield (outcome.removeprefix(prefix),), count

    return samples


def _strangers(status: Status, _: float) -> Iterator[Sample]:
    """Yield the number of dropped packets of the senders that `flannelctl status` lists, by reason."""
    packets = Counter[str]()
    for stranger in status.strangers:
        packets[stranger.reason] += stranger.packets
    for reason, count in packets.items():
        yield (reason,), count


def _lease_refusals(status: Status, _: float) -> Iterator[Sample]:
    if status.lease_signing is not None:
        yield from (((fault,), count) for fault, count in status.lease_signing.refusals.items())


def _lease_keys_stale(status: Status) -> float | None:
    signing = status.lease_signing
    return None if signing is None or signing.allowed is None else signing.trouble is not None


FAMILIES = (
    Family(
        name="flannel_build_info",
        help="The version of flanneld, in a label; the value is always 1.",
        labels=("version",),
        samples=lambda status, _: [((status.version or "",), 1)],
    ),
    Family(
        name="flannel_ready",
        help="1 if packets can flow, this host holds its lease, and the latest pass succeeded.",
        samples=_one(lambda status: status.is_ready),
    ),
    # Metrics of this host's lease, and of the leases of other hosts.
    Family(
        name="flannel_lease_phase",
        help="Phase of the lease of this host: 1 for the current phase.",
        labels=("phase",),
        samples=_lease_phase,
    ),
    Family(
        name="flannel_lease_info",
        help="Subnet that this host holds or held last, in a label; the value is always 1.",
        labels=("subnet",),
        samples=_lease_info,
    ),
    Family(
        name="flannel_lease_expiry_timestamp_seconds",
        help="Time at which the lease of this host expires unless it is renewed; absent for a reservation.",
        samples=_lease_expiry,
    ),
    Family(
        name="flannel_lease_losses_total",
        kind="counter",
        help="Number of times that the lease of this host disappeared, or another host took its subnet.",
        samples=_one(lambda status: status.lease.losses if status.lease else None),
    ),
    Family(
        name="flannel_leases",
        help="Number of known leases, including that of this host.",
        samples=_one(lambda status: status.leases),
    ),
    Family(
        name="flannel_lease_conflicts",
        help="Number of leases that contradict each other or the network config.",
        samples=_one(lambda status: status.conflicts),
    ),
    Family(
        name="flannel_peers",
        help="Number of other hosts with a lease, by state: programmed or refused.",
        labels=("state",),
        samples=_peers,
    ),
    Family(
        name="flannel_lease_signatures_refused_total",
        kind="counter",
        help="Number of written leases whose signatures this host does not accept, by reason.",
        labels=("fault",),
        samples=_lease_refusals,
    ),
    Family(
        name="flannel_lease_keys_allowed",
        help="Number of keys whose leases are accepted; absent without an allow-list.",
        samples=_one(lambda status: status.lease_signing.allowed if status.lease_signing else None),
    ),
    Family(
        name="flannel_lease_keys_counter",
        help="Counter of the allow-list in force, if an operator signed it.",
        samples=_one(lambda status: status.lease_signing.counter if status.lease_signing else None),
    ),
    Family(
        name="flannel_lease_keys_stale",
        help="1 if the last valid allow-list is in use, because the latest allow-list is unusable.",
        samples=_one(_lease_keys_stale),
    ),
    # Metrics of the store.
    Family(
        name="flannel_datastore_up",
        help="1 if the store responds.",
        samples=_one(lambda status: status.store.is_connected if status.store else None),
    ),
    Family(
        name="flannel_datastore_stale",
        help="1 if the store has not responded since the start, so that flanneld uses its last known leases.",
        samples=_one(lambda status: status.store.is_stale if status.store else None),
    ),
    Family(
        name="flannel_datastore_staleness_seconds",
        help="Time since the store became unreachable; 0 while it responds.",
        samples=_one(
            lambda status: (
                (0.0 if status.store.is_connected else status.store.since_s) if status.store else None
            )
        ),
    ),
    Family(
        name="flannel_datastore_requests_total",
        kind="counter",
        help="Requests to the store, by operation and result.",
        labels=("op", "code"),
        samples=_requests,
    ),
    Family(
        name="flannel_watch_restarts_total",
        kind="counter",
        help="Watches of the store that ended and were opened again, because the connection was lost or "
        "the history was compacted.",
        labels=("reason",),
        samples=_lost_watches,
    ),
    # Metrics of the passes, which compare the host with the plan.
    Family(
        name="flannel_backend_info",
        help="Backend and its device, in labels; the value is always 1.",
        labels=("type", "link"),
        samples=_backend,
    ),
    Family(
        name="flannel_mtu_bytes",
        help="MTU of containers in bytes.",
        samples=_one(lambda status: status.backend.mtu if status.backend else None),
    ),
    Family(
        name="flannel_reconcile_passes_total",
        kind="counter",
        help="Number of times that flanneld compared the state of the host with the plan.",
        samples=_one(lambda status: status.reconcile.passes if status.reconcile else None),
    ),
    Family(
        name="flannel_reconcile_failures_total",
        kind="counter",
        help="Number of passes that could not read the state of the host.",
        samples=_one(lambda status: status.reconcile.failures if status.reconcile else None),
    ),
    Family(
        name="flannel_reconcile_last_duration_seconds",
        help="Duration of the latest pass.",
        samples=_one(lambda status: status.reconcile.duration_s if status.reconcile else None),
    ),
    Family(
        name="flannel_reconcile_duration_seconds",
        kind="histogram",
        help="Duration of the passes.",
        samples=_pass_durations,
    ),
    Family(
        name="flannel_peer_programming_duration_seconds",
        kind="histogram",
        help="Time from a change of peers, such as a host that joins, until its objects are in the kernel.",
        samples=_peer_durations,
    ),
    Family(
        name="flannel_repairs_total",
        kind="counter",
        help="Number of damaged objects that were repaired.",
        labels=("object",),
        samples=_repairs,
    ),
    Family(
        name="flannel_operations_refused",
        help="Number of operations of the latest pass that were refused.",
        samples=_one(lambda status: len(status.reconcile.refused) if status.reconcile else None),
    ),
    Family(
        name="flannel_operations_held",
        help="Number of repairs that are delayed because another program keeps undoing them.",
        samples=_one(lambda status: len(status.reconcile.held) if status.reconcile else None),
    ),
    # Metrics of the packets that the backends carry.
    Family(
        name="flannel_wireguard_peers",
        help="Number of WireGuard peers by their latest handshake: recent (3 minutes), old or never.",
        labels=("handshake",),
        samples=_handshakes,
    ),
    Family(
        name="flannel_wireguard_last_handshake_timestamp_seconds",
        help="Time of the latest handshake with any WireGuard peer.",
        samples=_latest_handshake,
    ),
    Family(
        name="flannel_fast_path_mode",
        help="Mode of the fast path: 1 for the current mode.",
        labels=("mode",),
        samples=_fast_path_mode,
    ),
    Family(
        name="flannel_forwarder_attached",
        help="1 if the forwarder is attached to the device.",
        samples=_one(lambda status: status.forwarder.is_attached if status.forwarder else None),
    ),
    Family(
        name="flannel_tunnel_transmit_packets_total",
        kind="counter",
        help="Inner packets sent to peers, by the forwarder and by the eBPF programs in the kernel.",
        labels=("path",),
        samples=_tunnel("sent", "packets"),
    ),
    Family(
        name="flannel_tunnel_transmit_bytes_total",
        kind="counter",
        help="Bytes of inner packets sent to peers.",
        labels=("path",),
        samples=_tunnel("sent", "bytes", lambda backend: backend.sent),
    ),
    Family(
        name="flannel_tunnel_receive_packets_total",
        kind="counter",
        help="Inner packets received from peers.",
        labels=("path",),
        samples=_tunnel("received", "packets"),
    ),
    Family(
        name="flannel_tunnel_receive_bytes_total",
        kind="counter",
        help="Bytes of inner packets received from peers.",
        labels=("path",),
        samples=_tunnel("received", "bytes", lambda backend: backend.received),
    ),
    Family(
        name="flannel_stranger_packets",
        help="Dropped tunnel packets of the senders that flannelctl status lists.",
        labels=("reason",),
        samples=_strangers,
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
        help="Packets lost because the kernel refused a system call of the forwarder, by errno.",
        labels=("call", "errno"),
        samples=_failures,
    ),
    Family(
        name="flannel_forwarder_batches_total",
        kind="counter",
        help="System calls of the forwarder that carried several packets.",
        labels=("call",),
        samples=_forwarder("batches"),
    ),
    Family(
        name="flannel_forwarder_icmp_errors_total",
        kind="counter",
        help="ICMP errors that the forwarder sent, or suppressed by its rate limit.",
        labels=("kind",),
        samples=_forwarder("icmp"),
    ),
    Family(
        name="flannel_fast_path_carried_packets_total",
        kind="counter",
        help="Packets that the eBPF programs in the kernel processed, by part of the path.",
        labels=("part",),
        samples=_programs(lambda outcome: outcome in _CARRIED),
    ),
    Family(
        name="flannel_fast_path_left_packets_total",
        kind="counter",
        help="Packets that the eBPF programs passed to user space or to the regular kernel path.",
        labels=("reason",),
        samples=_programs(lambda outcome: outcome.startswith("left_"), "left_"),
    ),
    Family(
        name="flannel_fast_path_dropped_packets_total",
        kind="counter",
        help="Packets that the eBPF programs dropped.",
        labels=("reason",),
        samples=_programs(lambda outcome: outcome not in _CARRIED and not outcome.startswith("left_")),
    ),
)


CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""The content type of the text format of Prometheus. Source: the document "Exposition formats" of
Prometheus."""


def expose(statuses: Mapping[str, Status], utc: float) -> bytes:
    """Return the text of all metrics, including those of this process.

    With several networks, each sample has the label `network`.

    Args:
        statuses: status by name of the network; "" for a single network.
        utc: current time in seconds since the epoch.
    """
    registry = CollectorRegistry()
    registry.register(_Statuses(statuses, utc))
    ProcessCollector(registry=registry)
    return generate_latest(registry)


class _Statuses(Collector):
    def __init__(self, statuses: Mapping[str, Status], utc: float) -> None:
        self._statuses = statuses
        self._utc = utc

    def collect(self) -> Iterator[Metric]:
        for family in FAMILIES:
            metric = self._metric(family)
            if metric.samples:
                yield metric

    def _metric(self, family: Family) -> Metric:
        are_named = any(self._statuses)
        if family.kind == "histogram":
            return self._histogram(family, are_named=are_named)
        kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
        labels = [*(["network"] if are_named else []), *family.labels]
        metric = kind(family.name, family.help, labels=labels)
        for name, status in self._statuses.items():
            for values, value in family.samples(status, self._utc):
                metric.add_metric([*([name] if are_named else []), *values], value)
        return metric

    def _histogram(self, family: Family, *, are_named: bool) -> Metric:
        metric = HistogramMetricFamily(family.name, family.help, labels=["network"] if are_named else [])
        for name, status in self._statuses.items():
            samples = {bound: value for (bound,), value in family.samples(status, self._utc)}
            if samples:
                total = samples.pop("")
                metric.add_metric([name] if are_named else [], list(samples.items()), total)
        return metric
