"""Route protocols: by which number a daemon knows its routes again, where several share a host.

A route has no alias and no name, and its protocol is one octet, of which the kernel only keeps account. The
daemon of flannel0 writes 80, that of flannel1 101, that of flannel2 102, and so on. Other programs have
numbers around these: 84 is OVN's, 99 openr's, 186 to 198 are those of routing daemons
(linux/rtnetlink.h, iproute2's rt_protos).
"""

from pyflannel.model.filter_name import FIRST_DEVICE
from pyflannel.model.route import PROTOCOL_FLANNEL

_STEM = "flannel"
_BEFORE_OTHERS = 100
_OTHERS = range(1, 80)

PROTOCOLS = frozenset({PROTOCOL_FLANNEL, *(_BEFORE_OTHERS + number for number in _OTHERS)})
"""Every number that a daemon of ours may write."""

DEVICES = (FIRST_DEVICE, *(f"{_STEM}{number}" for number in _OTHERS))
"""Every name that a daemon may claim; each has a number of its own."""


def route_protocol(device: str) -> int:
    """Return the rtm_protocol of the routes of the daemon that claims this name."""
    number = device.removeprefix(_STEM)
    if device != FIRST_DEVICE and number.isdecimal() and int(number) in _OTHERS:
        return _BEFORE_OTHERS + int(number)
    return PROTOCOL_FLANNEL
