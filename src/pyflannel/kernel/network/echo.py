"""Sends ICMP echo and timestamp requests and receives the answers, for many hosts at the same time."""

import asyncio
import contextlib
import errno
import os
import secrets
import socket
import struct
import time
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from msgspec import Struct, field
from msgspec.structs import replace

from pyflannel.errors import TargetError, remedy
from pyflannel.model.network_config import Family
from pyflannel.model.probe import SILENT, Echo, EchoResult
from pyflannel.wire.icmp import (
    ECHO_REPLY,
    ECHO_REPLY_V6,
    OVERHEADS,
    TIME_EXCEEDED,
    TIME_EXCEEDED_V6,
    TIMESTAMP_REPLY,
    TOO_BIG_V6,
    UNREACHABLE,
    UNREACHABLE_V6,
    IcmpMessage,
    clock_offset,
    format_echo,
    format_timestamp,
    parse_icmp,
    parse_icmpv6,
)

DEADLINE_S = 1.5
"""Seconds after which a request without an answer counts as lost."""

_AGAIN_S = (0.0, 0.4, 0.9)
"""Times of the attempts after the start in seconds. More than one attempt is needed, because the first packet
may be lost while an address is resolved."""

ROUND_S, LAST_REPLY_S = 0.1, 0.5
"""Interval in seconds between two rounds of requests that are counted, and the time after the last round
within which a reply must arrive."""

_NONCE_BYTES = 16
_BURST, _PAUSE_S = 32, 0.005
"""Number of requests that are sent without a pause, and the pause in seconds after them."""

_WAITING = 4096
"""Maximum number of packets in the buffer of a socket that are read after the deadline."""

_SOL_RAW, _ICMP_FILTER = 255, 1  # linux/socket.h, linux/icmp.h
_IP_MTU_DISCOVER, _IP_PMTUDISC_PROBE = 10, 3  # linux/in.h: set DF, and do not use the cached path MTU
_IP_PKTINFO = 8
_ICMPV6_FILTER, _ICMPV6_KINDS = 1, 256  # linux/icmpv6.h: a bit per type, set for each dropped type
_IPV6_MTU_DISCOVER, _IPV6_PMTUDISC_PROBE, _IPV6_DONTFRAG = 23, 3, 62  # linux/in6.h
_LARGEST = 65535


class _Pending(Struct):
    """A request that has no answer yet. The random nonce proves that an answer belongs to this request.

    Attributes:
        sent_at: the times of the attempts; the sequence number is the number of the attempt.
    """

    echo: Echo
    nonce: bytes = field(default_factory=lambda: secrets.token_bytes(_NONCE_BYTES))
    sent_at: list[float] = field(default_factory=list)
    refusal: EchoResult | None = None


async def send_echoes(echoes: Sequence[Echo], *, deadline_s: float = DEADLINE_S) -> list[EchoResult]:
    """Return the result of each request, within `deadline_s` seconds. No request is fragmented.

    A reply is accepted if its sender is the destination and it contains the nonce of the request. An ICMP
    error is accepted if it quotes the nonce, even if a tunnel header precedes it.

    Raises:
        TargetError: this process has no permission to open a raw socket.
    """
    with _sockets_for(echoes) as sockets:
        sender = _Sender(sockets, echoes)
        await sender.exchange(sender.send(), deadline_s)
        return sender.results()


@contextlib.contextmanager
def _sockets_for(echoes: Sequence[Echo]) -> Iterator[Mapping[Family, socket.socket]]:
    """Give a raw socket for each family of the requests."""
    with contextlib.ExitStack() as stack:
        yield {
            family: stack.enter_context(contextlib.closing(_open_echo(family)))
            for family in sorted({echo.family for echo in echoes})
        }


async def count_replies(echoes: Sequence[Echo], rounds: int, *, interval_s: float = ROUND_S) -> list[int]:
    """Send each request once in each round, and return the number of its replies. A lost request is not
    repeated. A round begins `interval_s` seconds after the previous round.

    Raises:
        TargetError: this process has no permission to open a raw socket.
    """
    with _sockets_for(echoes) as sockets:
        sender = _Sender(sockets, [echo for _ in range(rounds) for echo in echoes])
        await sender.exchange_all(sender.send_once(len(echoes), interval_s))
        reached = [result.state == "reached" for result in sender.results()]
    return [sum(reached[place :: len(echoes)]) for place in range(len(echoes))]


async def clock_offsets(
    addresses: Sequence[IPv4Address], *, deadline_s: float = DEADLINE_S
) -> dict[IPv4Address, float]:
    """Return the seconds by which the clocks of these hosts are ahead of the clock of this host.

    Differences of whole days are not detected, because an ICMP timestamp contains the time of the day. Hosts
    that do not answer are omitted, because firewalls often drop these requests.

    Raises:
        TargetError: this process has no permission to open a raw socket.
    """
    identifier = secrets.randbits(16)
    numbers = {secrets.randbits(16): address for address in addresses}
    found: dict[IPv4Address, float] = {}
    loop = asyncio.get_running_loop()
    with contextlib.closing(_open(TIMESTAMP_REPLY)) as opened:
        for number, address in numbers.items():
            with contextlib.suppress(OSError):
                opened.sendto(format_timestamp(identifier, number, time.time()), (str(address), 0))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline_s):
                while len(found) < len(numbers):
                    message = parse_icmp(await loop.sock_recv(opened, _LARGEST))
                    if message is None or message.identifier != identifier:
                        continue
                    offset, sender = clock_offset(message.body, time.time()), numbers.get(message.sequence)
                    if sender is not None and sender == message.sender and offset is not None:
                        found[sender] = offset
    return found


def _open_echo(family: Family) -> socket.socket:
    if family == 4:
        return _open(ECHO_REPLY, UNREACHABLE, TIME_EXCEEDED)
    opened = _raw_socket(socket.AF_INET6, socket.IPPROTO_ICMPV6)
    received = sum(1 << kind for kind in (ECHO_REPLY_V6, UNREACHABLE_V6, TOO_BIG_V6, TIME_EXCEEDED_V6))
    dropped = ((1 << _ICMPV6_KINDS) - 1) ^ received
    words = [dropped >> shift & 0xFFFFFFFF for shift in range(0, _ICMPV6_KINDS, 32)]
    opened.setsockopt(socket.IPPROTO_ICMPV6, _ICMPV6_FILTER, struct.pack("=8I", *words))
    opened.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _IPV6_PMTUDISC_PROBE)
    opened.setsockopt(socket.IPPROTO_IPV6, _IPV6_DONTFRAG, 1)
    return opened


def _open(*kinds: int) -> socket.socket:
    opened = _raw_socket(socket.AF_INET, socket.IPPROTO_ICMP)
    received = sum(1 << kind for kind in kinds)
    opened.setsockopt(_SOL_RAW, _ICMP_FILTER, struct.pack("=I", ~received & 0xFFFFFFFF))
    opened.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_PROBE)
    return opened


def _raw_socket(family: int, protocol: int) -> socket.socket:
    try:
        opened = socket.socket(family, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, protocol)
    except OSError as error:
        raise TargetError(
            f"cannot send ICMP echo requests: {error.strerror}",
            hint=remedy(error, "Run flannelctl as root, or with CAP_NET_RAW."),
        ) from error
    with contextlib.suppress(OSError):
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    return opened


class _Sender:
    def __init__(self, sockets: Mapping[Family, socket.socket], echoes: Sequence[Echo]) -> None:
        self.is_answered = asyncio.Event()
        self._sockets = sockets
        self._identifier = os.getpid() & 0xFFFF
        self._order = [_Pending(echo) for echo in echoes]
        self._pending = {one.nonce: one for one in self._order}
        self._results: dict[bytes, EchoResult] = {}
        if not self._pending:
            self.is_answered.set()

    def results(self) -> list[EchoResult]:
        return [self._results.get(one.nonce) or _unanswered(one) for one in self._order]

    async def exchange(self, sending: Coroutine[Any, Any, None], deadline_s: float) -> None:
        """Send, and receive until each request has a result, but at most `deadline_s` seconds."""
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(sending, name="echo requests"), *self._receivers(tasks)]
            await self._end_at_reply(running, deadline_s)

    async def exchange_all(self, sending: Coroutine[Any, Any, None]) -> None:
        """Send all requests, also if this takes long on a busy host. Receive until each request has a result,
        but at most `LAST_REPLY_S` seconds after the last request.
        """
        async with asyncio.TaskGroup() as tasks:
            running = self._receivers(tasks)
            await sending
            await self._end_at_reply(running, LAST_REPLY_S)

    def _receivers(self, tasks: asyncio.TaskGroup) -> list[asyncio.Task[None]]:
        return [
            tasks.create_task(self.receive(family), name=f"answers of IPv{family}")
            for family in self._sockets
        ]

    async def _end_at_reply(self, running: Iterable[asyncio.Task[None]], deadline_s: float) -> None:
        """Cancel these tasks when each request has a result, or after `deadline_s` seconds. Then read the
        replies that arrived while the process was busy.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline_s):
                await self.is_answered.wait()
        for task in running:
            task.cancel()
        for family, opened in self._sockets.items():
            with contextlib.suppress(OSError):
                for _ in range(_WAITING):
                    self._read(family, *opened.recvfrom(_LARGEST))

    async def send_once(self, count: int, interval_s: float) -> None:
        """Send the requests in rounds of `count`, each request once. A round begins each `interval_s`."""
        started = time.monotonic()
        for place, one in enumerate(self._order):
            number, of_round = divmod(place, count)
            if of_round == 0:
                await asyncio.sleep(max(0.0, started + number * interval_s - time.monotonic()))
            self._send(one)
            if (of_round + 1) % _BURST == 0:
                await asyncio.sleep(_PAUSE_S)

    async def send(self) -> None:
        started = time.monotonic()
        for after_s in _AGAIN_S:
            await asyncio.sleep(max(0.0, started + after_s - time.monotonic()))
            for count, one in enumerate(list(self._pending.values()), 1):
                self._send(one)
                if count % _BURST == 0:
                    await asyncio.sleep(_PAUSE_S)
            if not self._pending:
                return

    def _send(self, one: _Pending) -> None:
        echo, family = one.echo, one.echo.family
        payload = one.nonce + bytes(max(0, echo.size - OVERHEADS[family] - _NONCE_BYTES))
        one.sent_at.append(time.monotonic())
        options = [] if echo.source is None else [_from(echo.source)]
        options += [] if echo.ttl is None else [_with_ttl(echo.ttl, family)]
        try:
            self._sockets[family].sendmsg(
                [format_echo(self._identifier, len(one.sent_at), payload, family)],
                options,
                0,
                (str(echo.destination), 0),
            )
        except OSError as error:
            one.refusal = EchoResult(state="unsent", text=_refusal(error))
        else:
            one.refusal = None

    async def receive(self, family: Family) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._read(family, *await loop.sock_recvfrom(self._sockets[family], _LARGEST))

    def _read(self, family: Family, packet: bytes, address: Any) -> None:
        """Process a packet from the socket of this family, with its sender as the socket returns it."""
        if family == 4:
            message = parse_icmp(packet)
        else:
            message = parse_icmpv6(packet, IPv6Address(address[0].partition("%")[0]))
        if message is not None:
            self._take(message, time.monotonic())

    def _take(self, message: IcmpMessage, now: float) -> None:
        if message.is_echo_reply:
            one = self._pending.get(message.body[:_NONCE_BYTES])
            if one is not None and message.sender == one.echo.destination:
                attempt = max(1, min(message.sequence, len(one.sent_at)))
                rtt_s = now - one.sent_at[attempt - 1]
                self._settle(one, EchoResult(state="reached", rtt_s=rtt_s, attempts=attempt))
            return
        quoted = next((one for one in self._pending.values() if one.nonce in message.body), None)
        if quoted is not None:
            text = f"{message.sender} answers: {message.text}"
            self._settle(
                quoted,
                EchoResult(
                    state="rejected",
                    text=text,
                    sender=message.sender,
                    mtu=message.mtu,
                    attempts=len(quoted.sent_at),
                ),
            )

    def _settle(self, one: _Pending, result: EchoResult) -> None:
        self._results[one.nonce] = result
        del self._pending[one.nonce]
        if not self._pending:
            self.is_answered.set()


def _from(source: IPv4Address | IPv6Address) -> tuple[int, int, bytes]:
    """Return the control message that sets the source address: struct in_pktinfo, struct in6_pktinfo."""
    if source.version == 4:
        return socket.IPPROTO_IP, _IP_PKTINFO, struct.pack("=i4s4s", 0, source.packed, bytes(4))
    return socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, struct.pack("=16si", source.packed, 0)


def _with_ttl(ttl: int, family: Family) -> tuple[int, int, bytes]:
    """Return the control message that sets the TTL or the hop limit."""
    level, kind = (
        (socket.IPPROTO_IP, socket.IP_TTL) if family == 4 else (socket.IPPROTO_IPV6, socket.IPV6_HOPLIMIT)
    )
    return level, kind, struct.pack("=i", ttl)


def _unanswered(one: _Pending) -> EchoResult:
    return replace(one.refusal or SILENT, attempts=max(1, len(one.sent_at)))


def _refusal(error: OSError) -> str:
    match error.errno:
        case errno.EPERM:
            return "the firewall of this host drops the packet (EPERM)"
        case errno.ENETUNREACH | errno.EHOSTUNREACH:
            return "this host has no usable route to the destination"
        case errno.EMSGSIZE:
            return "the packet is larger than the MTU of the device"
        case errno.EINVAL | errno.EADDRNOTAVAIL:
            return "this host refuses the route or the source address"
        case _:
            return (error.strerror or str(error)).lower()
