"""Sends one ICMP echo request and follows it, and its reply, through nf_tables of this network namespace.

A separate table marks only these packets. A netlink socket owns the table, so the kernel removes the table
when the socket is closed, also if this process is killed.
"""

import asyncio
import contextlib
import os
import secrets
import socket
import time
from ipaddress import IPv6Address

from pyflannel.errors import TargetError, remedy
from pyflannel.kernel.network.namespaces import in_namespace_of
from pyflannel.kernel.network.netlink_socket import NotificationSocket, RequestSocket
from pyflannel.model.network_config import Family, IpAddress
from pyflannel.model.probe import PacketTrace
from pyflannel.ports import in_thread
from pyflannel.wire.icmp import IcmpMessage, format_echo, parse_icmp, parse_icmpv6
from pyflannel.wire.netlink.links import dump_links, parse_link
from pyflannel.wire.netlink.message import Message
from pyflannel.wire.netlink.nftables import BRIDGE, PROTOCOL
from pyflannel.wire.netlink.packet_trace import (
    GROUP,
    INET,
    TABLE,
    TracedEcho,
    TraceMessage,
    decisions,
    parse_trace,
    tracing_table,
)

REPLY_S = 1.0
"""Seconds after which the request counts as lost."""

_QUIET_S = 0.05
"""Seconds without a message after which all messages have arrived. The kernel sends the messages before the
reply."""

_NONCE_BYTES = 16
_LARGEST = 65535
_HINT = "Run flannelctl as root. Tracing needs Linux 5.12."


async def trace_echo(source: IpAddress, destination: IpAddress, pid: int | None) -> PacketTrace:
    """Send an echo request, and return the decisions of nf_tables about it and about its reply.

    Args:
        source: address of the sender.
        destination: address to which the request is sent.
        pid: a process in the network namespace of the sender; None for this namespace.

    Raises:
        TargetError: the table, the socket or the packet cannot be created, or another trace runs.
    """
    echo = TracedEcho(source=source, destination=destination, identifier=secrets.randbits(16))
    messages: list[TraceMessage] = []

    def take(message: Message) -> bool:
        if (found := parse_trace(message)) is not None:
            messages.append(found)
        return False

    with (
        contextlib.closing(RequestSocket(PROTOCOL)) as requests,
        contextlib.closing(NotificationSocket(GROUP, PROTOCOL)) as traces,
        contextlib.closing(await in_thread(_open_in, pid, source.version)) as opened,
    ):
        refusal = await requests.transact_whole(tracing_table(echo, INET))
        if refusal is not None:
            raise TargetError(
                f"the table {TABLE} cannot be created: {os.strerror(refusal.errno)}",
                hint=f"{_HINT} Only one trace can run at a time.",
            )
        await requests.transact_whole(tracing_table(echo, BRIDGE))  # a kernel may lack this family
        rtt_s = await _ask(opened, echo)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_QUIET_S):
                await traces.wait(take)
    return PacketTrace(
        events=tuple(decisions(messages, echo, await _link_names())),
        rtt_ms=None if rtt_s is None else rtt_s * 1000,
    )


async def _ask(opened: socket.socket, echo: TracedEcho) -> float | None:
    """Send the request; return the round-trip time in seconds, or None without a reply."""
    nonce = secrets.token_bytes(_NONCE_BYTES)
    loop = asyncio.get_running_loop()
    try:
        opened.bind((str(echo.source), 0))
        opened.sendto(format_echo(echo.identifier, 1, nonce, echo.source.version), (str(echo.destination), 0))
    except PermissionError:
        return None  # a rule dropped the request
    except OSError as error:
        raise TargetError(
            f"{echo.source} cannot send to {echo.destination}: {error.strerror}",
            hint="flannelctl trace without --probe shows the route of the packet.",
        ) from error
    sent_at = time.monotonic()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(REPLY_S):
            while True:
                reply = _message(*await loop.sock_recvfrom(opened, _LARGEST))
                if reply is not None and reply.is_echo_reply and reply.body[:_NONCE_BYTES] == nonce:
                    return time.monotonic() - sent_at
    return None


def _message(packet: bytes, sender: tuple[str, int]) -> IcmpMessage | None:
    """Return the message that a raw socket received. Only for IPv4, the packet contains the header of IP."""
    host = sender[0].partition("%")[0]
    return parse_icmpv6(packet, IPv6Address(host)) if ":" in host else parse_icmp(packet)


def _open_in(pid: int | None, family: Family) -> socket.socket:
    """Open a raw socket for ICMP in the network namespace of a process."""
    if pid is None:
        return _open(family)
    try:
        return in_namespace_of(pid, lambda: _open(family))
    except OSError as error:
        raise _refused(error) from error


def _open(family: Family) -> socket.socket:
    kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    try:
        if family == 4:
            return socket.socket(socket.AF_INET, kind, socket.IPPROTO_ICMP)
        return socket.socket(socket.AF_INET6, kind, socket.IPPROTO_ICMPV6)
    except OSError as error:
        raise _refused(error) from error


def _refused(error: OSError) -> TargetError:
    return TargetError(
        f"cannot send an ICMP echo request from this network namespace: {error.strerror}",
        hint=remedy(error, _HINT),
    )


async def _link_names() -> dict[int, str]:
    with contextlib.closing(RequestSocket()) as requests:
        return {one.index: one.name for one in await requests.dump(dump_links(), parse_link)}
