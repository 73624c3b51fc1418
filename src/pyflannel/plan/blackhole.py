"""The blackhole for our own subnet: what takes packets to it where no bridge of containers does.

Without it such a packet leaves the host by another route, comes back, as the subnet is ours, and goes round
until its TTL ends.
"""

from pyflannel.model.host import Host
from pyflannel.model.route import Route
from pyflannel.model.state import State

METRIC = 2**32 - 1
"""The last of all: the route of a bridge with this very subnet comes before it, whenever it is made."""


def plan_blackhole(host: Host) -> State:
    """Return the route that drops what nobody on this host takes; IPv6 will be a second one."""
    return State.of(
        Route(destination=host.lease.subnet, link="", kind="blackhole", metric=METRIC, protocol=host.protocol)
    )
