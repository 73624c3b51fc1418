"""The security associations of IPsec in this network namespace."""

import contextlib

from pyflannel.errors import TargetError
from pyflannel.kernel.network.netlink_socket import RequestSocket
from pyflannel.model.network_config import IpAddress
from pyflannel.wire.netlink import xfrm


async def security_associations() -> frozenset[IpAddress] | None:
    """Return the destinations of the negotiated security associations; None if they cannot be read."""
    try:
        with contextlib.closing(RequestSocket(xfrm.PROTOCOL)) as requests:
            return frozenset(await requests.dump(xfrm.dump_associations(), xfrm.parse_association))
    except TargetError:
        return None
