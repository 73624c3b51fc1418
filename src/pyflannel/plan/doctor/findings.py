"""All checks of doctor.

A check returns the evidence and a command. On a healthy host, no check returns a finding.
"""

from collections.abc import Iterable

from msgspec.structs import replace

from pyflannel.model.status import Finding
from pyflannel.plan.doctor import (
    addresses,
    container_routes,
    containers,
    daemon,
    docker,
    filters,
    inside,
    ipsec,
    links,
    masquerading,
    mtus,
    objects,
    packets,
    policy_rules,
)
from pyflannel.plan.doctor.observed import Observed

SAFE = frozenset({"forwarding-off", "bridge-down", "strict-reverse-path"})
"""Codes of the findings whose command `doctor --fix` runs.

The command of each of these findings sets values of the kernel that the overlay needs, or adds the lost
address of a bridge. It changes neither a firewall nor the addresses and routes of the underlay.
"""

_CHECKS = (
    *filters.CHECKS,
    *docker.CHECKS,
    *packets.CHECKS,
    *policy_rules.CHECKS,
    *links.CHECKS,
    *addresses.CHECKS,
    *containers.CHECKS,
    *masquerading.CHECKS,
    *container_routes.CHECKS,
    *mtus.CHECKS,
    *inside.CHECKS,
    *ipsec.CHECKS,
    *objects.CHECKS,
)


def findings_of_host(seen: Observed) -> tuple[Finding, ...]:
    """Return the findings that do not depend on a family, the errors first."""
    return merged(one for check in daemon.CHECKS for one in check(seen))


def findings_in_family(seen: Observed) -> tuple[Finding, ...]:
    """Return the findings in one family of the network, the errors first. Containers that are silent for an
    unknown reason are a finding only if there is no error.
    """
    found = merged(one for check in _CHECKS for one in check(seen))
    is_explained = any(one.severity == "error" for one in found)
    return tuple(one for one in found if one.code != "container-silent" or not is_explained)


def findings(seen: Observed) -> tuple[Finding, ...]:
    """Return all findings in a network with one family, the errors first."""
    return merged((*findings_of_host(seen), *findings_in_family(seen)))


def merged(found: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return the findings, the errors first. Findings that differ only in their evidence are one finding."""
    alike: dict[Finding, list[str]] = {}
    for one in found:
        known = alike.setdefault(replace(one, evidence=()), [])
        known += [line for line in one.evidence if line not in known]
    whole = (replace(one, evidence=tuple(lines)) for one, lines in alike.items())
    ranks = {"error": 0, "warning": 1, "info": 2}
    return tuple(sorted(whole, key=lambda one: ranks[one.severity]))
