"""The finding that the clocks of hosts differ."""

from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address
from statistics import median

from pyflannel.model.status import Finding
from pyflannel.plan.doctor.observed import some

_SKEW_S = 5.0
"""Minimum difference of two clocks in seconds that is reported as a finding."""


def clock_findings(offsets: Mapping[IPv4Address, float]) -> Iterator[Finding]:
    """Yield the finding that the clocks of hosts differ.

    `offsets`: number of seconds by which the clock of a peer is ahead.
    """
    apart = {address: offset for address, offset in offsets.items() if abs(offset) > _SKEW_S}
    if not apart:
        return
    is_own = len(offsets) > 1 and abs(median(offsets.values())) > _SKEW_S
    if is_own:
        offset = median(apart.values())
        cause = (
            f"the clock of this host is {_ahead(-offset)} the clocks of {len(apart)} of {len(offsets)} peers"
        )
    else:
        cause = f"the clocks of {len(apart)} of {len(offsets)} peers differ from the clock of this host"
    lines = [
        f"the clock of {address} is {_ahead(offset)} the clock of this host"
        for address, offset in apart.items()
    ]
    yield Finding(
        code="clock-skew",
        severity="warning",
        cause=f"{cause}: certificates may seem invalid, and peers may refuse handshakes of WireGuard",
        evidence=some(lines),
        fix="timedatectl set-ntp true  # on the host whose clock is wrong",
    )


def _ahead(offset: float) -> str:
    return f"{abs(offset):.0f} s {'ahead of' if offset > 0 else 'behind'}"
