"""Faults of the store, and of the path to it."""

from collections.abc import Iterator, Sequence

from msgspec.structs import replace

from pyflannel.model.status import Finding, Status, StoreTimes

SLOW_S = 0.25
"""A store is slow if each of some requests takes longer than this time in seconds. A cluster of etcd in one
region answers within a few milliseconds."""


def store_findings(status: Status, times: StoreTimes | None) -> Iterator[Finding]:
    """Yield a finding if the store answers slowly, or not at all although its watch is open. `times` is None
    if no request was measured.
    """
    store = status.store
    if store is None or not store.is_connected or times is None:
        return
    if times.remedy is not None:
        yield Finding(
            code="store-refuses",
            severity="error",
            cause=f"requests to the store fail, so leases expire: {times.failure}",
            evidence=(f"{store.url}: the watch of flanneld is open, new requests fail",),
            fix=times.remedy,
        )
        return
    answered = [f"{time_s * 1000:.0f} ms" for time_s in times.answered_s]
    if times.failure is None and min(times.answered_s, default=0.0) <= SLOW_S:
        return
    evidence = [f"{store.url}: requests answered in {', '.join(answered)}"] if answered else []
    evidence += [] if times.failure is None else [f"{store.url}: a request failed: {times.failure}"]
    if store.answer_age_s is not None:
        evidence.append(f"latest answer to flanneld: {store.answer_age_s:.0f} s before these requests")
    how = "slowly" if answered else "no request"
    yield Finding(
        code="store-slow",
        severity="warning",
        cause=f"the store answers {how}: changes of peers take effect late, and leases may not be renewed in "
        "time",
        evidence=tuple(evidence),
        fix=_slow_store_fix(store.url),
    )


def _slow_store_fix(url: str) -> str:
    """Return the command that shows why a store is slow."""
    scheme, _, rest = url.partition("://")
    if scheme in ("etcd", "etcds"):
        hosts = rest.partition("/")[0].rpartition("@")[2]
        first, *_ = hosts.split(",")
        name = first.rpartition(":")[0].strip("[]") or first
        return f"ping -c 3 {name}  # if it is slow, repair the network path; else examine disk and load there"
    if url == "kube:":
        return "kubectl get --raw /readyz  # asks the API server; then examine its load, and that of its etcd"
    return "iostat -x 1 3  # examine disk and load of the host that stores the file"


_CAUSES = frozenset({"address-gone", "address-taken", "frames-taken", "store-dropped", "ttl-low"})
"""Codes of the findings that explain the silence of the store if they are errors."""


_SILENCE = frozenset({"store-away", "store-refuses"})
"""Codes of the findings about a store that answers no requests. Until flanneld notices that its watch is
dead, only its requests fail."""


def under_their_cause(found: Sequence[Finding]) -> tuple[Finding, ...]:
    """Return the findings. If rules of this host drop the packets to the store, or all packets on the
    underlay are lost, the silence of the store is a consequence, and not a finding of its own.
    """
    causes = [one for one in found if one.code in _CAUSES and one.severity == "error"]
    away = [one for one in found if one.code in _SILENCE]
    if not causes or not away:
        return tuple(found)
    lines = [line for one in away for line in (f"consequence: {one.cause}", *one.evidence)]
    named = replace(causes[0], evidence=(*causes[0].evidence, *lines))
    return tuple(named if one is causes[0] else one for one in found if one not in away)
