"""Settings of the network namespace that decide whether packets are forwarded, as they are now."""

import contextlib
import os
from pathlib import Path

from pyflannel.errors import TargetError, WireError
from pyflannel.kernel.filters.iptables_programs import PROGRAMS, read_saved, version_of
from pyflannel.kernel.filters.program import run_program
from pyflannel.model.forward_chain import ForwardChain
from pyflannel.wire.iptables_forward import dropping_forward
from pyflannel.wire.nft_ruleset import parse_forward_chains

_IPV4 = Path("/proc/sys/net/ipv4")
_DEVICES = Path("/sys/class/net")


def forwards() -> bool | None:
    """Return whether the host forwards IPv4 packets; None when that cannot be read."""
    value = _number(_IPV4 / "ip_forward")
    return None if value is None else value != 0


def is_strict(link: str) -> bool:
    """Return whether the host drops what comes in by a link that it would not answer by (RFC 3704, strict).

    The greater of the setting for all and that of the link counts (Documentation/networking/ip-sysctl).
    """
    return max(_number(_IPV4 / f"conf/{name}/rp_filter") or 0 for name in ("all", link)) == 1


def port_mtus(bridge: str) -> dict[str, int]:
    """Return the MTU of each port of a bridge, in octets, by name."""
    with contextlib.suppress(OSError):
        ports = os.listdir(_DEVICES / bridge / "brif")
        return {port: mtu for port in sorted(ports) if (mtu := _number(_DEVICES / port / "mtu")) is not None}
    return {}


async def forward_chains() -> list[ForwardChain]:
    """Return the chains at the forward hook that drop what they do not accept.

    Raises:
        TargetError: nft failed, or is not installed.
        WireError: it said what makes no sense.
    """
    ran = await run_program("nft", "--json", "list", "ruleset")
    if ran.status:
        raise TargetError(f"nft failed: {ran.cause}", hint="Run flannelctl as root.")
    return parse_forward_chains(ran.output)


async def legacy_forward_chains() -> list[ForwardChain]:
    """Return FORWARD of legacy iptables, if it drops what it does not accept; nothing where there is none."""
    version = await version_of(PROGRAMS[4])
    is_legacy = version is not None and not version.is_nft
    program = PROGRAMS[4] if is_legacy else f"{PROGRAMS[4]}-legacy"
    try:
        chain = dropping_forward(await read_saved(program), program)
    except (TargetError, WireError):
        return []
    return [] if chain is None else [chain]


def _number(path: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        return int(path.read_text(encoding="ascii"))
    return None
