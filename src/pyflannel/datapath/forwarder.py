"""The forwarder: a relay of packets, and the control socket that tells it where they go."""

import os
import sys
from socket import inet_ntoa

from pyflannel.datapath.control import Answer, ControlServer, listen
from pyflannel.datapath.poller import Poller
from pyflannel.datapath.relay import Relay
from pyflannel.datapath.underlay_socket import open_underlay_socket
from pyflannel.errors import WireError
from pyflannel.wire.forwarder_control import (
    SOCKET_NAME,
    ForwarderState,
    Kind,
    Settings,
    decode_change,
    decode_peers,
    encode_counters,
    encode_frame,
    encode_refusal,
    encode_state,
)


class Forwarder:
    """One tunnel's user-space data path.

    It starts with no peers and without the device: a table comes first, then ATTACH, so that no packet ever
    meets an empty table.

    Raises:
        BusyError: another forwarder answers in the run directory.
        OSError: the UDP port or the run directory cannot be used.
    """

    def __init__(self, run_dir: str, settings: Settings, version: str) -> None:
        self._settings = settings
        self._version = version
        self._is_stopping = False
        self._path = os.path.join(run_dir, SOCKET_NAME)
        self._poller = Poller()
        listener = listen(self._path)
        try:
            udp = open_underlay_socket(inet_ntoa(settings.listen_address.to_bytes(4, "big")), settings.port)
        except OSError:
            os.unlink(self._path)
            raise
        self._control = ControlServer(listener, self._poller, self._answer)
        self._relay = Relay(settings, udp, self._poller, self._control.notify, _say)

    def run(self) -> None:
        """Move packets until a client asks to stop."""
        while not self._is_stopping:
            self._poller.run_round()

    def stop(self) -> None:
        """Let go of device, port and control socket, so that a successor finds them free; once."""
        if not self._is_stopping:
            self._is_stopping = True
            self._relay.close()
            self._control.stop_listening()
            os.unlink(self._path)

    def _answer(self, kind: Kind, payload: bytes) -> Answer:
        """Perform one request.

        Raises:
            WireError: it is no request, or its payload is not well formed; nothing took effect.
        """
        match kind:
            case Kind.READ_STATE:
                return Answer(encode_frame(Kind.STATE, encode_state(self._state())))
            case Kind.READ_COUNTERS:
                counters = self._relay.counters.by_name()
                return Answer(encode_frame(Kind.COUNTERS, encode_counters(counters)))
            case Kind.REPLACE_PEERS:
                self._relay.peers.replace(decode_peers(payload))
            case Kind.CHANGE_PEERS:
                self._relay.peers.change(*decode_change(payload))
            case Kind.ATTACH:
                return self._attach()
            case Kind.STOP:
                self.stop()
            case _:
                raise WireError(f"{kind.name} is no request", hint="Only the forwarder sends it.")
        return Answer(encode_frame(Kind.DONE), is_change=kind is not Kind.STOP)

    def _attach(self) -> Answer:
        try:
            self._relay.attach()
        except OSError as error:
            refusal = encode_refusal(error.errno or 0, error.strerror or str(error))
            return Answer(encode_frame(Kind.REFUSED, refusal))
        return Answer(encode_frame(Kind.DONE), is_change=True)

    def _state(self) -> ForwarderState:
        return ForwarderState(
            self._version, os.getpid(), self._relay.is_attached, self._settings, self._relay.peers.peers
        )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
