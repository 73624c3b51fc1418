"""TCP sockets that a server of ours listens on."""

import errno
import os
import socket
from ipaddress import IPv4Address, IPv6Address

from pyflannel.errors import BusyError, TargetError

_BACKLOG = 64


def listen_tcp(ip: IPv4Address | IPv6Address, port: int) -> socket.socket:
    """Return a listening socket; `::` takes IPv4 too, as with Go.

    Raises:
        BusyError: another program has the port.
        TargetError: the kernel refuses it otherwise: the address is not this host's, or the port is kept for
            root.
    """
    family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
    is_dual = ip == IPv6Address("::")
    if is_dual and not socket.has_dualstack_ipv6():
        raise TargetError(
            f"TCP port {format_address(ip, port)} cannot be listened on: this kernel has no IPv6",
            hint="Name an IPv4 address, or 0.0.0.0 for all.",
        )
    try:
        return socket.create_server((str(ip), port), family=family, backlog=_BACKLOG, dualstack_ipv6=is_dual)
    except OSError as error:
        where = format_address(ip, port)
        if error.errno == errno.EADDRINUSE:
            raise BusyError(
                f"TCP port {where} is in use", hint=f"See who has it: ss -ltnp 'sport = :{port}'."
            ) from error
        raise TargetError(
            f"TCP port {where} cannot be listened on: {os.strerror(error.errno or 0)}",
            hint="Name an address of this host, or 0.0.0.0 for all, and a port that we may have.",
        ) from error


def format_address(ip: IPv4Address | IPv6Address, port: int) -> str:
    """Return `IP:PORT`, an IPv6 address in brackets."""
    return f"{ip}:{port}" if ip.version == 4 else f"[{ip}]:{port}"
