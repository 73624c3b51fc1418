"""The forwarder: a relay of packets, and the control socket that tells it where they go."""

import os
import sys
from errno import EBUSY
from socket import inet_ntoa, socket

from pyflannel.datapath.control import Answer, ControlServer, listen, listen_on, remove_stale
from pyflannel.datapath.hand_over import Inheritance
from pyflannel.datapath.relay import Poller, Relay
from pyflannel.datapath.underlay import open_underlay_socket
from pyflannel.errors import WireError
from pyflannel.wire.forwarder_control import (
    SOCKET_NAME,
    ForwarderState,
    Kind,
    Settings,
    Summary,
    decode_change,
    decode_peers,
    encode_counters,
    encode_frame,
    encode_handed,
    encode_refusal,
    encode_state,
    encode_strangers,
    encode_summary,
)

_CHANGES = frozenset({Kind.REPLACE_PEERS, Kind.CHANGE_PEERS, Kind.ATTACH, Kind.STOP})
"""What a successor would not learn of."""

_GENERATIONS = 1 << 64


class Forwarder:
    """One tunnel's user-space data path.

    Without an inheritance it starts with no peers and without the device: a table comes first, then ATTACH,
    so that no packet ever meets an empty table. With one it goes on where the other leaves off; a socket for
    another port or address is its own.

    Raises:
        BusyError: another forwarder answers in the run directory.
        OSError: the UDP port or the run directory cannot be used, or the predecessor does not let go.
    """

    def __init__(
        self, run_dir: str, settings: Settings, version: str, inheritance: Inheritance | None = None
    ) -> None:
        self._settings = settings
        self._version = version
        self._is_stopping = False
        self._successor: int | None = None
        self._generation = int.from_bytes(os.urandom(8), "big")
        self._path = os.path.join(run_dir, SOCKET_NAME)
        self._poller = Poller()
        listener = self._start() if inheritance is None else self._take_over(inheritance)
        self._control = ControlServer(listener, self._poller, self._answer, self._forget)

    def _start(self) -> socket:
        remove_stale(self._path)
        udp = _open_socket(self._settings)
        try:
            listener = listen(self._path)  # last: a client that can connect treats the start as complete
        except OSError:
            udp.close()
            raise
        self._relay = Relay(self._settings, udp, self._poller, self._tell, _say)
        return listener

    def _take_over(self, inheritance: Inheritance) -> socket:
        """Make everything ready before the predecessor is let end: until then it moves the packets too."""
        other, settings = inheritance.state.settings, self._settings
        if (other.listen_address, other.port) == (settings.listen_address, settings.port):
            udp = socket(fileno=inheritance.udp)
            udp.setblocking(False)
        else:
            os.close(inheritance.udp)
            udp = _open_socket(settings)
        self._relay = Relay(settings, udp, self._poller, self._tell, _say, inheritance.device)
        self._relay.peers.replace(inheritance.state.peers)
        self._relay.counters.add(inheritance.take())
        return listen_on(inheritance.listener)

    def run(self) -> None:
        """Move packets until a client asks to stop."""
        while not self._is_stopping:
            self._poller.run_round()

    def stop(self) -> None:
        """Let go of device, port and control socket, so that a successor finds them free; once."""
        if not self._is_stopping:
            self._let_go()
            os.unlink(self._path)

    def _let_go(self) -> None:
        self._is_stopping = True
        self._relay.close()
        self._control.stop_listening()

    def _answer(self, client: int, kind: Kind, payload: bytes) -> Answer:
        """Perform one request.

        Raises:
            WireError: it is no request, or its payload is not well formed; nothing took effect.
        """
        if kind in _CHANGES and self._successor is not None:
            return _refuse(EBUSY, "it is being handed over to another process")
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
                return self._attach()
            case Kind.STOP:
                self.stop()
            case Kind.HAND_OVER:
                return self._hand_over(client)
            case Kind.TAKEN if client == self._successor:
                self._let_go()
                return self._count()
            case _:
                raise WireError(f"{kind.name} is no request, or not now", hint="")
        self._generation = (self._generation + 1) % _GENERATIONS
        return Answer(encode_frame(Kind.DONE), is_change=kind is not Kind.STOP)

    def _attach(self) -> Answer:
        try:
            self._relay.attach()
        except OSError as error:
            return _refuse(error.errno or 0, error.strerror or str(error))
        return Answer(encode_frame(Kind.DONE), is_change=True)

    def _hand_over(self, client: int) -> Answer:
        if self._successor is not None:
            return _refuse(EBUSY, "it is being handed over to another process already")
        self._successor = client
        descriptors = self._control.descriptor, *self._relay.descriptors
        payload = encode_handed(len(descriptors), self._state())
        return Answer(encode_frame(Kind.HANDED, payload), descriptors=descriptors)

    def _count(self) -> Answer:
        return Answer(encode_frame(Kind.COUNTERS, encode_counters(self._relay.counters.by_name())))

    def _forget(self, client: int) -> None:
        """Go on, if it was our successor that left: it has taken nothing."""
        if client == self._successor:
            self._successor = None

    def _tell(self) -> None:
        self._control.notify()

    def _state(self) -> ForwarderState:
        return ForwarderState(
            self._version, os.getpid(), self._relay.is_attached, self._settings, self._relay.peers.peers
        )

    def _summary(self) -> Summary:
        return Summary(self._generation, self._relay.is_attached, self._relay.offloads)


def _open_socket(settings: Settings) -> socket:
    return open_underlay_socket(inet_ntoa(settings.listen_address.to_bytes(4, "big")), settings.port)


def _refuse(errno: int, text: str) -> Answer:
    return Answer(encode_frame(Kind.REFUSED, encode_refusal(errno, text)))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
