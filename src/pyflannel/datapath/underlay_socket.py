"""The UDP socket that carries the tunnel on the underlay."""

import socket

_BUFFER_OCTETS = 4 << 20

_IP_MTU_DISCOVER = 10
_IP_PMTUDISC_WANT = 1
"""linux/in.h; the socket module does not name them."""

_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33
"""asm-generic/socket.h: beyond the system's limits, with CAP_NET_ADMIN."""


def open_underlay_socket(address: str, port: int) -> socket.socket:
    """Return the tunnel's socket, bound and non-blocking.

    Datagrams leave as those of any UDP socket do (IP_PMTUDISC_WANT, the kernel's default, whatever the host's
    ip_no_pmtu_disc says): what is longer than a path's known MTU goes in fragments and is never refused.

    Raises:
        OSError: EADDRINUSE when another program has the port, EADDRNOTAVAIL when the host lacks the address.
    """
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        udp.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_WANT)
        _enlarge(udp, _SO_SNDBUFFORCE, socket.SO_SNDBUF)
        _enlarge(udp, _SO_RCVBUFFORCE, socket.SO_RCVBUF)
        udp.bind((address, port))
    except OSError as error:
        udp.close()
        raise OSError(error.errno, f"UDP {address}:{port}: {error.strerror}") from None
    return udp


def _enlarge(udp: socket.socket, forced: int, plain: int) -> None:
    try:
        udp.setsockopt(socket.SOL_SOCKET, forced, _BUFFER_OCTETS)
    except PermissionError:
        udp.setsockopt(socket.SOL_SOCKET, plain, _BUFFER_OCTETS)
