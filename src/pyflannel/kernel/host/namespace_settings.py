"""The sysctls of a network namespace that stop its own packets."""

import contextlib
from pathlib import Path

from pyflannel.plan.doctor.observed import NamespaceSettings

_IPV4 = Path("/proc/sys/net/ipv4")


def read_settings() -> NamespaceSettings | None:
    """Return the settings of the network namespace of this thread; None if they are unreadable."""
    with contextlib.suppress(OSError, ValueError):
        low, high = map(int, _read("ip_local_port_range").split())
        reserved = _read("ip_local_reserved_ports")
        return NamespaceSettings(
            ports=range(low, high + 1),
            reserved=tuple(map(_range, filter(None, reserved.split(",")))),
            ttl=int(_read("ip_default_ttl")),
        )
    return None


def _range(text: str) -> range:
    """Return the ports of a part of a list: `80` or `80-90` (networking/ip-sysctl.rst)."""
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def _read(name: str) -> str:
    return (_IPV4 / name).read_text(encoding="ascii").strip()
