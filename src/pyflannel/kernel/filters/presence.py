"""Whether a network namespace has rules of netfilter, which is known faster than the rules are read."""

import contextlib
from pathlib import Path

from pyflannel.errors import TargetError
from pyflannel.kernel.network.namespaces import in_namespace_of
from pyflannel.kernel.network.netlink_socket import RequestSocket
from pyflannel.wire.netlink import nftables


async def has_filters(pid: int) -> bool:
    """Return whether the network namespace of a process has chains of netfilter that may drop packets. Chains
    of the type nat do not count; those of Docker for its resolver are in many containers.
    """
    with contextlib.suppress(OSError):
        names = Path(f"/proc/{pid}/net/ip_tables_names").read_text(encoding="ascii").split()
        names += Path(f"/proc/{pid}/net/ip6_tables_names").read_text(encoding="ascii").split()
        if set(names) - {"nat"}:
            return True
    with contextlib.suppress(OSError, TargetError):
        opened = in_namespace_of(pid, lambda: RequestSocket(nftables.PROTOCOL))
        with contextlib.closing(opened) as requests:
            kinds = await requests.dump(nftables.dump_chains(nftables.ANY_FAMILY), nftables.parse_base_type)
            return any(kind != "nat" for kind in kinds)
    return False
