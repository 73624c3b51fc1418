"""All checks of doctor.

A check returns the evidence and a command. On a healthy host, no check returns a finding.
"""

from pyflannel.model.status import Finding
from pyflannel.plan.doctor import daemon, filters, objects, packets
from pyflannel.plan.doctor.observed import Observed

SAFE = frozenset({"forwarding-off", "bridge-down", "strict-reverse-path"})
"""Codes of the findings whose command `doctor --fix` runs.

Such a command sets one value of the kernel that the overlay needs, and changes neither a firewall nor the
underlay.
"""

_CHECKS = (*daemon.CHECKS, *filters.CHECKS, *packets.CHECKS, *objects.CHECKS)


def findings(seen: Observed) -> tuple[Finding, ...]:
    """Return all findings, the errors first."""
    ranks = {"error": 0, "warning": 1, "info": 2}
    return tuple(
        sorted((one for check in _CHECKS for one in check(seen)), key=lambda one: ranks[one.severity])
    )
