"""The place where the packets of a ping stop, and the reason."""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from msgspec.structs import replace

from pyflannel.model.lease import LeaseEntry
from pyflannel.model.network_config import Family
from pyflannel.model.probe import PingReport, PingStep, StepName
from pyflannel.model.status import Finding, Status
from pyflannel.plan.doctor.peers import (
    MTU_FIX,
    carrier_of,
    fix_of_tunnel,
    host_name,
    mtus_on_routes,
    obstacle,
)

Place = Literal["this host", "underlay", "tunnel", "peer", "container"]


class _Stop(NamedTuple):
    place: Place
    cause: str
    fix: str


def judged(
    peer: LeaseEntry,
    steps: Sequence[PingStep],
    *,
    is_container: bool,
    status: Status,
    local: Sequence[Finding],
) -> PingReport:
    """Return the report of a ping with the place where the packets stop, and the reason.

    Args:
        peer: the lease of the other host.
        steps: the results, from the underlay to the container.
        is_container: True if the user specified the address of a container, which must answer.
        status: the status of this host.
        local: the findings of doctor about this host.
    """
    stop = _stop(peer, {step.name: step for step in steps}, is_container, status, local)
    return PingReport(
        subnet=peer.subnet,
        public_ip=peer.public_ip,
        host_name=peer.host_name,
        ok=stop is None,
        steps=tuple(steps),
        stops=None if stop is None else stop.place,
        cause=None if stop is None else stop.cause,
        fix=None if stop is None else stop.fix,
        containers=None if stop is not None else _error_of_containers(local),
    )


_OF_CONTAINERS = frozenset(
    {
        "bridge-down",
        "bridge-unstable",
        "container-gateway",
        "container-neighbour",
        "docker-drops",
        "forward-dropped",
        "forwarding-off",
        "policy-rule",
        "port-mtu",
        "port-not-learning",
    }
)
"""Codes of findings that are errors about packets which this host forwards, but not about its own packets."""


def _error_of_containers(local: Sequence[Finding]) -> str | None:
    errors = (one.cause for one in local if one.severity == "error" and one.code in _OF_CONTAINERS)
    return next(errors, None)


def joined(reports: Mapping[Family, PingReport]) -> PingReport:
    """Return one report about the paths to a host in several families. If packets stop in a family, the
    report names this family.
    """
    first = next(iter(reports.values()))
    if len(reports) == 1:
        return first
    lost = [family for family, report in reports.items() if not report.ok]
    stop = reports[lost[0]] if lost else first
    alike = [family for family in lost if reports[family].stops == stop.stops]
    names = " and ".join(f"IPv{family}" for family in alike)
    return replace(
        first,
        ok=not lost,
        steps=tuple(step for report in reports.values() for step in report.steps),
        stops=stop.stops,
        cause=None if stop.cause is None else f"{names}: {stop.cause}",
        fix=stop.fix,
        containers=next((one.containers for one in reports.values() if one.containers), None),
    )


def _stop(
    peer: LeaseEntry,
    steps: Mapping[StepName, PingStep],
    is_container: bool,
    status: Status,
    local: Sequence[Finding],
) -> _Stop | None:
    tunnel, container = steps.get("tunnel"), steps["container"]
    decisive = container if is_container or tunnel is None else tunnel
    if decisive.state == "reached":
        return _too_small(peer, tunnel, status)
    refused = next((one.reason for one in status.refused_peers if one.subnet == peer.subnet), None)
    if refused is not None:
        return _Stop(
            "this host", f"this host does not send to {host_name(peer)}: {refused}", "flannelctl peers"
        )
    underlay = steps.get("underlay")
    is_near = underlay is not None and underlay.state != "reached"
    if (one := obstacle(local, on_underlay=is_near)) is not None:
        return _Stop("this host", one.cause, one.fix)
    if decisive.state == "unsent":
        return _Stop("this host", decisive.text, "flannelctl doctor")
    if tunnel is not None and tunnel.state != "reached":
        return _before_the_peer(peer, tunnel, underlay, status)
    is_own = status.lease is not None and status.lease.subnet == peer.subnet
    return _behind_the_tunnel(peer, container, underlay, is_own=is_own)


def _too_small(peer: LeaseEntry, tunnel: PingStep | None, status: Status) -> _Stop | None:
    wanted = status.backend.mtu if status.backend is not None else None
    if tunnel is None or tunnel.mtu is None or wanted is None or tunnel.mtu >= wanted:
        return None
    if tunnel.mtu >= mtus_on_routes(status).get(peer.subnet, wanted):
        return None
    return _Stop(
        "tunnel",
        f"packets of {tunnel.mtu} bytes arrive, packets of {wanted} bytes, the MTU of the network, do not",
        MTU_FIX,
    )


_ROUTE_FIX = (
    "flannelctl doctor  # here and on that host, which must run, have the address {}, and answer ICMP echo"
)


def _before_the_peer(peer: LeaseEntry, tunnel: PingStep, underlay: PingStep | None, status: Status) -> _Stop:
    carrier = carrier_of(status)
    is_lost = underlay is not None and underlay.state != "reached"
    if tunnel.state == "rejected" and not is_lost:
        return _Stop("tunnel", f"{carrier} is rejected: {tunnel.text}", fix_of_tunnel(status))
    if underlay is not None and is_lost:
        return _Stop(
            "underlay",
            f"{host_name(peer)} answers neither on the underlay nor through the tunnel: {underlay.text}",
            _ROUTE_FIX.format(peer.public_ip),
        )
    return _Stop(
        "tunnel",
        f"{host_name(peer)} answers on the underlay, but not through the tunnel: {carrier} is blocked in one"
        " direction, or flannel does not run there",
        fix_of_tunnel(status),
    )


def _behind_the_tunnel(
    peer: LeaseEntry, container: PingStep, underlay: PingStep | None, *, is_own: bool
) -> _Stop:
    if is_own:
        return _Stop(
            "container",
            f"{container.destination} of this host does not answer: no container has this address, or it"
            " ignores ICMP echo requests, or filter rules drop them",
            "flannelctl doctor",
        )
    if underlay is not None and underlay.state in ("silent", "rejected") and container.state == "silent":
        return _Stop(
            "underlay",
            f"{host_name(peer)} does not answer on the underlay: {underlay.text}",
            _ROUTE_FIX.format(peer.public_ip),
        )
    if container.state == "rejected":
        return _Stop(
            "peer",
            f"{container.destination} is not reachable on {host_name(peer)}: {container.text}",
            "flannelctl doctor  # on that host",
        )
    return _Stop(
        "container",
        f"{host_name(peer)} receives packets, but {container.destination} does not answer: no container has"
        " this address, or that host does not forward to it",
        "flannelctl doctor  # on that host",
    )
