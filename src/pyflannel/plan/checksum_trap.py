"""Where tunnel packets arrive with a wrong checksum, unless the sending host makes the inner ones itself.

A container's packet may enter the tunnel without its checksum, which the network card is to fill in. Kernels
before the fix filled a wrong one in for packets that were masqueraded on their way; the cards of VMware do
the same for tunnels on ports that they do not know. The receiver drops them: a connection takes a minute to
come up, or never does. Elsewhere leaving it to the card is right, and worth a good part of the throughput.

Source: kubernetes issue 88986, whose fix is in Linux 5.7 and in the releases below.
"""

import re
from collections.abc import Mapping

_FIXED_SINCE = (5, 7)
_FIXED_IN: Mapping[tuple[int, int], int] = {(5, 6): 13, (5, 4): 41, (4, 19): 123, (4, 14): 181}
"""By series, the first release with the fix."""

_DRIVERS = frozenset({"vmxnet3"})
_RELEASE = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?")


def checksum_trap(kernel: str, driver: str) -> str | None:
    """Return why a tunnel must not leave inner checksums to the device, in a line; None where it may.

    Args:
        kernel: release of the kernel, as exact as it is known; "" when it is not.
        driver: of the interface that carries the tunnel; "" when it does not say.
    """
    if driver in _DRIVERS:
        return f"the driver {driver} fills in wrong checksums inside tunnels"
    found = _RELEASE.match(kernel)
    if found is None:
        return None
    series, patch = (int(found[1]), int(found[2])), int(found[3] or 0)
    if series >= _FIXED_SINCE or (series in _FIXED_IN and patch >= _FIXED_IN[series]):
        return None
    return f"Linux {kernel} fills in wrong checksums of masqueraded packets inside tunnels"
