"""The forwarder: a relay of packets, and a control socket that sets its peers."""

import os
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from errno import EBUSY, EINVAL
from time import monotonic

from pyflannel.datapath.control import Answer, ControlServer
from pyflannel.datapath.relay import Poller, Relay
from pyflannel.errors import WireError
from pyflannel.wire.forwarder_control import (
    ForwarderState,
    FrameReader,
    Kind,
    Restriction,
    Summary,
    decode_change,
    decode_counters,
    decode_handed,
    decode_peers,
    encode_counters,
    encode_frame,
    encode_handed,
    encode_refusal,
    encode_state,
    encode_strangers,
    encode_summary,
)

_START_S = 5.0
"""Deadline in seconds for START, which the daemon sends immediately after it has started this process."""

_READ_BYTES = 65536
_DESCRIPTORS = 3


class Start:
    """The first message of the daemon that started this process.

    Attributes:
        starter: the connection to the daemon.
        listener: the bound control socket, on which this process listens later.
        udp: the bound socket of the tunnel.
        device: the attachment to the device from the previous forwarder, or None.
        state: version, settings and peers. The process ID in this state has no meaning.

    Raises:
        OSError: the daemon exited, or sent nothing in time.
        WireError: the daemon sent another message.
    """

    def __init__(self, connection: int) -> None:
        self.starter = socket.socket(fileno=connection)
        self.starter.settimeout(_START_S)
        payload, descriptors = _receive(self.starter)
        count, self.state = decode_handed(payload)
        if len(descriptors) != count or not 2 <= count <= _DESCRIPTORS:
            raise WireError(f"received {len(descriptors)} descriptors instead of {count}", hint="")
        self.listener, self.udp = (_socket_of(descriptor) for descriptor in descriptors[:2])
        self.device = descriptors[2] if count > 2 else None


def _socket_of(descriptor: int) -> socket.socket:
    found = socket.socket(fileno=descriptor)
    found.setblocking(False)
    return found


def _receive(connection: socket.socket) -> tuple[bytes, list[int]]:
    frames, descriptors = FrameReader(), list[int]()
    while True:
        data, received, _, _ = socket.recv_fds(connection, _READ_BYTES, _DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
        descriptors += received
        if not data:
            raise ConnectionResetError("the daemon closed the connection")
        for kind, payload in frames.feed(data):
            if kind is not Kind.START:
                raise WireError(f"received {kind.name} instead of START", hint="")
            return payload, descriptors


class Watchdog:
    """Sends watchdog messages to systemd, so that systemd kills the forwarder if it hangs. The daemon cannot
    kill a forwarder of another user.

    Attributes:
        interval_s: interval in seconds between two messages; None without a watchdog.

    Source: sd_watchdog_enabled(3), sd_notify(3).
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.interval_s: float | None = None
        self._due = 0.0
        address, time_us = environ.get("NOTIFY_SOCKET"), environ.get("WATCHDOG_USEC", "")
        if address and time_us.isdecimal() and environ.get("WATCHDOG_PID") == str(os.getpid()):
            self.interval_s = int(time_us) / 1e6 / 3
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)
            self._socket.connect(address.replace("@", "\0", 1) if address[0] == "@" else address)

    def sign(self) -> None:
        """Send a watchdog message if it is due."""
        if self.interval_s is not None and (now := monotonic()) >= self._due:
            self._due = now + self.interval_s
            # the queue of systemd is full; the next watchdog message arrives early enough
            with suppress(OSError):
                self._socket.send(b"WATCHDOG=1")


_CHANGES = frozenset({Kind.REPLACE_PEERS, Kind.CHANGE_PEERS, Kind.ATTACH, Kind.STOP})
"""Requests that are refused during a hand-over, because the new forwarder would not learn of them."""

_GENERATIONS = 1 << 64


class Forwarder:
    """One tunnel's user-space data path.

    The forwarder starts without the device. The forwarder gets the peers first and then ATTACH, so that it
    never searches an empty table for the peer of a packet. During a replacement, the new forwarder starts
    with the peers and the device of the old forwarder, and both forward packets. If the daemon exits before
    LISTEN, the forwarder exits.

    Raises:
        WireError: a descriptor has the wrong type.
    """

    def __init__(self, start: Start) -> None:
        self._settings = start.state.settings
        self._version = start.state.version
        self._is_stopping = False
        self._successor: int | None = None
        self._starter: int | None = start.starter.fileno()
        self._restrictions = Restriction(0)
        self._generation = int.from_bytes(os.urandom(8), "big")
        self._poller = Poller()
        self._relay = Relay(self._settings, start.udp, self._poller, self._tell, _say, start.device)
        self._relay.peers.replace(start.state.peers)
        self._control = ControlServer(start.starter, start.listener, self._poller, self._answer, self._forget)

    def begin(self, restrictions: Restriction) -> None:
        """Report to the daemon that this process forwards packets with these restrictions."""
        self._restrictions = restrictions
        self._control.greet(encode_frame(Kind.SUMMARY, encode_summary(self._summary())))

    def run(self, watchdog: Watchdog) -> None:
        """Forward packets until a client requests to stop."""
        while not self._is_stopping:
            self._poller.run_round(watchdog.interval_s)
            watchdog.sign()

    def stop(self) -> None:
        """Close device, port and control socket, so that a new forwarder can use them. Later calls do
        nothing.
        """
        if not self._is_stopping:
            self._is_stopping = True
            self._relay.close()
            self._control.stop_listening()

    def _answer(self, client: int, kind: Kind, payload: bytes, descriptors: list[int]) -> Answer:
        """Perform one request.

        Raises:
            WireError: the frame is not a request, or its payload is invalid; nothing took effect.
        """
        if kind in _CHANGES and self._successor is not None:
            return _refuse(EBUSY, "the forwarder is being handed over to another process")
        match kind:
            case Kind.READ_STATE:
                return Answer(encode_frame(Kind.STATE, encode_state(self._state())))
            case Kind.READ_SUMMARY:
                return Answer(encode_frame(Kind.SUMMARY, encode_summary(self._summary())))
            case Kind.READ_COUNTERS:
                return self._count()
            case Kind.READ_STRANGERS:
                payload = encode_strangers(self._relay.counters.strangers.all())
                return Answer(encode_frame(Kind.STRANGERS, payload))
            case Kind.REPLACE_PEERS:
                self._relay.peers.replace(decode_peers(payload))
            case Kind.CHANGE_PEERS:
                self._relay.peers.change(*decode_change(payload))
            case Kind.ATTACH:
                return self._attach(descriptors)
            case Kind.LISTEN if client == self._starter:
                self._relay.counters.add(decode_counters(payload))
                self._control.listen()
                self._starter = None
                return Answer(encode_frame(Kind.DONE))
            case Kind.STOP:
                self.stop()
            case Kind.HAND_OVER:
                return self._hand_over(client)
            case Kind.TAKEN if client == self._successor:
                self.stop()
                return self._count()
            case _:
                raise WireError(f"{kind.name} is not a valid request in this state", hint="")
        self._generation = (self._generation + 1) % _GENERATIONS
        return Answer(encode_frame(Kind.DONE), is_change=kind is not Kind.STOP)

    def _attach(self, descriptors: list[int]) -> Answer:
        if not descriptors:
            return _refuse(EINVAL, "the descriptor of the device is missing")
        try:
            self._relay.attach(descriptors.pop())
        except OSError as error:
            return _refuse(error.errno or 0, error.strerror or str(error))
        return Answer(encode_frame(Kind.DONE), is_change=True)

    def _hand_over(self, client: int) -> Answer:
        if self._successor is not None:
            return _refuse(EBUSY, "the forwarder is already being handed over to another process")
        self._successor = client
        descriptors = self._control.descriptor, *self._relay.descriptors
        payload = encode_handed(len(descriptors), self._state())
        return Answer(encode_frame(Kind.HANDED, payload), descriptors=descriptors)

    def _count(self) -> Answer:
        return Answer(encode_frame(Kind.COUNTERS, encode_counters(self._relay.counters.by_name())))

    def _forget(self, client: int) -> None:
        """Continue if the new forwarder disconnected before TAKEN.

        Exit if the daemon disconnected before LISTEN.
        """
        if client == self._successor:
            self._successor = None
        if client == self._starter:
            self.stop()

    def _tell(self) -> None:
        self._control.notify()

    def _state(self) -> ForwarderState:
        return ForwarderState(
            self._version, os.getpid(), self._relay.is_attached, self._settings, self._relay.peers.peers
        )

    def _summary(self) -> Summary:
        return Summary(self._generation, self._relay.is_attached, self._relay.offloads, self._restrictions)


def _refuse(errno: int, text: str) -> Answer:
    return Answer(encode_frame(Kind.REFUSED, encode_refusal(errno, text)))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
