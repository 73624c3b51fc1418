"""The forwarder's control protocol: frames on a Unix stream socket, encoded and decoded.

A frame is a header of 8 bytes, the same in every version, and a payload; numbers are big-endian:

    magic "pf" 2 · version 1 · kind 1 · length of the payload 4

A client sends requests. The forwarder answers each request in order with one frame, for example STATE,
COUNTERS, DONE or REFUSED. The forwarder may send a CHANGED frame at any time between answers: the device was
removed, or another process changed the state. Later versions added the kinds from HAND_OVER on. A forwarder
that does not know a kind closes the connection.

A forwarder opens no file and no socket. A forwarder gets its descriptors by SCM_RIGHTS, together with the
first bytes of the frame. The first connection of a forwarder is its standard input. On this connection, the
daemon sends START, then LISTEN. If this connection ends before LISTEN, the forwarder exits.

    request          payload                                        answer
    READ_STATE       none                                           STATE
    REPLACE_PEERS    peers: the whole new table                     DONE
    CHANGE_PEERS     count 4 of removals, removals, then peers      DONE
    ATTACH           none, with the descriptor of the device        DONE, REFUSED
    READ_COUNTERS    none                                           COUNTERS
    STOP             none                                           DONE: socket and device are closed
    HAND_OVER        none                                           HANDED, with descriptors
    TAKEN            none                                           COUNTERS; then the forwarder exits
    READ_SUMMARY     none                                           SUMMARY
    READ_STRANGERS   none                                           STRANGERS
    START            as HANDED, with the same descriptors           SUMMARY: it forwards packets
    LISTEN           COUNTERS of the predecessor, or none           DONE: it accepts connections

    peer (11)        subnet 4 · prefix length 1 · address 4 · port 2
    removal (5)      subnet 4 · prefix length 1
    STATE            pid 4 · attached 1 · link 16 · tunnel address 4 · subnet 4 · prefix length 1
                     · listen address 4 · port 2 · MTU 2 · length of the version 1 · version, UTF-8 · peers
    COUNTERS         each: value 8 · length of the name 1 · name, ASCII
    REFUSED          errno 2 (0 for none) · text, UTF-8
    HANDED           number of descriptors 1 · STATE. Descriptors, by SCM_RIGHTS: the control socket's
                     listener, the UDP socket and, if it is attached, the device
    SUMMARY          generation 8 · attached 1 · offloads 1 · restrictions 1. The generation changes with the
                     table of peers and with the process. A later version added the restrictions.
    STRANGERS        each: address 4 · inner source 4 · inner destination 4 · packets 8 · milliseconds since
                     the latest 4 · length of the reason 1 · reason, ASCII. The payload contains the senders
                     of packets that the guard dropped, with the latest sender at the end.

During a hand-over, the daemon gets HANDED from the old forwarder, sends START to the new forwarder, then
TAKEN to the old forwarder and LISTEN to the new forwarder. From START to TAKEN, both forwarders forward
packets, and each packet is forwarded once. The old forwarder refuses changes. If the daemon exits before
TAKEN, the new forwarder exits and the old forwarder continues.

A change of peers is checked as a whole before any part takes effect. Addresses are integers, because the
forwarder does not import the module ipaddress.
"""

from collections.abc import Iterable, Iterator, Mapping
from enum import IntEnum, IntFlag
from struct import Struct
from typing import NamedTuple

from pyflannel.errors import WireError

VERSION = 1
MAGIC = b"pf"
LONGEST_PAYLOAD_BYTES = 2 << 20
"""Maximum length of a payload in bytes: enough for 190,000 peers."""

SOCKET_NAME = "forwarder.sock"
"""The file name of the socket in the run directory."""

LOG_NAME = "forwarder.log"
"""The name of the file in the run directory that receives the standard error of the forwarder."""

_HEADER = Struct("!2sBBI")
_PEER = Struct("!IBIH")
_REMOVAL = Struct("!IB")
_COUNT = Struct("!I")
_STATE = Struct("!IB16sIIBIHHB")
_COUNTER = Struct("!QB")
_REFUSAL = Struct("!H")
_SUMMARY = Struct("!QBB")
_RESTRICTIONS = Struct("!B")
_STRANGER = Struct("!IIIQIB")
_HINT = "Stop the program that uses the forwarder's socket, or run flanneld and forwarder of one version."


class Kind(IntEnum):
    """The kind of a frame."""

    READ_STATE = 1
    REPLACE_PEERS = 2
    CHANGE_PEERS = 3
    ATTACH = 4
    READ_COUNTERS = 5
    STOP = 6
    HAND_OVER = 7
    TAKEN = 8
    READ_SUMMARY = 9
    READ_STRANGERS = 10
    START = 11
    LISTEN = 12
    STATE = 128
    COUNTERS = 129
    DONE = 130
    REFUSED = 131
    CHANGED = 132
    HANDED = 133
    SUMMARY = 134
    STRANGERS = 135


class Peer(NamedTuple):
    """Packets to this subnet go to `address`:`port`."""

    subnet: int
    prefix_length: int
    address: int
    port: int


class Settings(NamedTuple):
    """The settings with which a forwarder was started. The settings never change."""

    link: str
    tunnel_address: int
    subnet: int
    prefix_length: int
    listen_address: int
    port: int
    mtu: int


class ForwarderState(NamedTuple):
    """The state of a running forwarder: its answer to READ_STATE."""

    version: str
    pid: int
    is_attached: bool
    settings: Settings
    peers: tuple[Peer, ...]


class Restriction(IntFlag):
    """The permissions that a forwarder gave up after its start."""

    OWN_USER = 1  # the user of the forwarder is neither the user of the daemon nor root
    NO_CAPABILITIES = 2
    FILTERED_CALLS = 4  # the kernel refuses all system calls that the forwarder does not need

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the restrictions in effect, such as `own_user`."""
        return tuple(str(one.name).lower() for one in Restriction if one in self)


class Summary(NamedTuple):
    """A summary of the state of a running forwarder.

    Attributes:
        generation: a number that changes with each table of peers, and that differs between any two
            processes.
        offloads: the offloads in use, as a number of datapath.tun.Offload.
        restrictions: empty for a forwarder of an older version.
    """

    generation: int
    is_attached: bool
    offloads: int
    restrictions: Restriction = Restriction(0)


class Stranger(NamedTuple):
    """A sender of packets that the guard dropped for one reason.

    Attributes:
        reason: name of the counter: `stranger`, `impostor` or `not_ours`.
        age_ms: milliseconds since the latest packet, at most 2**32 - 1.
        source: inner source of the latest packet.
        destination: inner destination of the latest packet.
    """

    address: int
    reason: str
    packets: int
    age_ms: int
    source: int
    destination: int


class FrameReader:
    """Splits the bytes of a stream into frames."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[Kind, bytes]]:
        """Yield kind and payload of each complete frame.

        Raises:
            WireError: the stream has an unknown format or version. The rest of the stream cannot be read.
        """
        self._pending += data
        while len(self._pending) >= _HEADER.size:
            magic, version, number, length = _HEADER.unpack_from(self._pending)
            if magic != MAGIC or version != VERSION or length > LONGEST_PAYLOAD_BYTES:
                raise WireError(
                    f"control frame starts with {magic!r}, version {version}, {length} bytes, "
                    f"not with {MAGIC!r}, version {VERSION}",
                    hint=_HINT,
                )
            try:
                kind = Kind(number)
            except ValueError:
                raise WireError(f"control frame has the unknown kind {number}", hint=_HINT) from None
            end = _HEADER.size + length
            if len(self._pending) < end:
                return
            payload = bytes(self._pending[_HEADER.size : end])
            del self._pending[:end]
            yield kind, payload


def encode_frame(kind: Kind, payload: bytes = b"") -> bytes:
    """Return the bytes of one frame."""
    return _HEADER.pack(MAGIC, VERSION, kind, len(payload)) + payload


def encode_peers(peers: Iterable[Peer]) -> bytes:
    """Return the payload of REPLACE_PEERS."""
    return b"".join(_PEER.pack(*peer) for peer in peers)


def decode_peers(payload: bytes | memoryview) -> list[Peer]:
    """Return the peers of a payload.

    Raises:
        WireError: the payload does not consist of whole peers, or a prefix has bits beyond its length.
    """
    if len(payload) % _PEER.size:
        raise WireError(f"peers take {len(payload)} bytes, which is no multiple of {_PEER.size}", hint=_HINT)
    peers = [Peer(*fields) for fields in _PEER.iter_unpack(payload)]
    for peer in peers:
        _check_prefix(peer.subnet, peer.prefix_length)
    return peers


def encode_change(removals: Iterable[tuple[int, int]], peers: Iterable[Peer]) -> bytes:
    """Return the payload of CHANGE_PEERS: (subnet, prefix length) pairs to remove, then peers to set."""
    removed = [_REMOVAL.pack(*removal) for removal in removals]
    return _COUNT.pack(len(removed)) + b"".join(removed) + encode_peers(peers)


def decode_change(payload: bytes) -> tuple[list[tuple[int, int]], list[Peer]]:
    """Return removals and peers of a CHANGE_PEERS payload.

    Raises:
        WireError: the payload ends early, or a prefix has bits beyond its length.
    """
    if len(payload) < _COUNT.size:
        raise WireError(f"change of peers takes {len(payload)} bytes, needs {_COUNT.size}", hint=_HINT)
    (count,) = _COUNT.unpack_from(payload)
    end = _COUNT.size + count * _REMOVAL.size
    if len(payload) < end:
        raise WireError(f"change of peers takes {len(payload)} bytes, needs {end}", hint=_HINT)
    view = memoryview(payload)
    removals = [(subnet, length) for subnet, length in _REMOVAL.iter_unpack(view[_COUNT.size : end])]
    for subnet, length in removals:
        _check_prefix(subnet, length)
    return removals, decode_peers(view[end:])


def encode_state(state: ForwarderState) -> bytes:
    """Return the payload of STATE."""
    version, settings = state.version.encode(), state.settings
    fixed = _STATE.pack(
        state.pid, state.is_attached, settings.link.encode(), *settings[1:], len(version)
    )  # fmt: skip
    return fixed + version + encode_peers(state.peers)


def decode_state(payload: bytes) -> ForwarderState:
    """Return the state in a STATE payload.

    Raises:
        WireError: the payload ends early, or a prefix has bits beyond its length.
    """
    if len(payload) < _STATE.size or len(payload) < (start := _STATE.size + payload[_STATE.size - 1]):
        raise WireError(f"state of the forwarder ends after {len(payload)} bytes", hint=_HINT)
    pid, attached, link, *numbers, _ = _STATE.unpack_from(payload)
    settings = Settings(link.rstrip(b"\0").decode(errors="replace"), *numbers)
    version = payload[_STATE.size : start].decode(errors="replace")
    peers = tuple(decode_peers(memoryview(payload)[start:]))
    return ForwarderState(version, pid, bool(attached), settings, peers)


def encode_handed(descriptors: int, state: ForwarderState) -> bytes:
    """Return the payload of HANDED and of START."""
    return bytes([descriptors]) + encode_state(state)


def decode_handed(payload: bytes) -> tuple[int, ForwarderState]:
    """Return the number of descriptors of HANDED or START, and the state.

    Raises:
        WireError: the payload ends early, or a prefix has bits beyond its length.
    """
    state = decode_state(payload[1:])
    return payload[0], state


def encode_summary(summary: Summary) -> bytes:
    """Return the payload of SUMMARY."""
    return _SUMMARY.pack(*summary[:3]) + _RESTRICTIONS.pack(summary.restrictions)


def decode_summary(payload: bytes) -> Summary:
    """Return the summary in a SUMMARY payload, which may be longer if the forwarder has a later version.

    Raises:
        WireError: the payload ends early.
    """
    if len(payload) < _SUMMARY.size:
        raise WireError(f"summary takes {len(payload)} bytes, needs {_SUMMARY.size}", hint=_HINT)
    generation, is_attached, offloads = _SUMMARY.unpack_from(payload)
    has_restrictions = len(payload) >= _SUMMARY.size + _RESTRICTIONS.size
    restrictions = _RESTRICTIONS.unpack_from(payload, _SUMMARY.size)[0] if has_restrictions else 0
    return Summary(generation, bool(is_attached), offloads, Restriction(restrictions))


def encode_counters(counters: Mapping[str, int]) -> bytes:
    """Return the payload of COUNTERS."""
    return b"".join(_COUNTER.pack(value, len(name)) + name.encode() for name, value in counters.items())


def decode_counters(payload: bytes) -> dict[str, int]:
    """Return the counters of a payload by name.

    Raises:
        WireError: the payload ends early.
    """
    counters: dict[str, int] = {}
    offset = 0
    while offset < len(payload):
        start = offset + _COUNTER.size
        if start > len(payload) or start + payload[start - 1] > len(payload):
            raise WireError(f"counters end after {len(payload)} bytes", hint=_HINT)
        value, length = _COUNTER.unpack_from(payload, offset)
        offset = start + length
        counters[payload[start:offset].decode(errors="replace")] = value
    return counters


def encode_strangers(strangers: Iterable[Stranger]) -> bytes:
    """Return the payload of STRANGERS."""
    return b"".join(
        _STRANGER.pack(one.address, one.source, one.destination, one.packets, one.age_ms, len(one.reason))
        + one.reason.encode()
        for one in strangers
    )


def decode_strangers(payload: bytes) -> list[Stranger]:
    """Return the strangers of a payload, in the order of the payload.

    Raises:
        WireError: the payload ends early.
    """
    strangers: list[Stranger] = []
    offset = 0
    while offset < len(payload):
        start = offset + _STRANGER.size
        if start > len(payload) or start + payload[start - 1] > len(payload):
            raise WireError(f"strangers end after {len(payload)} bytes", hint=_HINT)
        address, source, destination, packets, age_ms, length = _STRANGER.unpack_from(payload, offset)
        offset = start + length
        reason = payload[start:offset].decode(errors="replace")
        strangers.append(Stranger(address, reason, packets, age_ms, source, destination))
    return strangers


def encode_refusal(errno: int, text: str) -> bytes:
    """Return the payload of REFUSED; `errno` is 0 if no system call failed."""
    return _REFUSAL.pack(errno) + text.encode()


def decode_refusal(payload: bytes) -> tuple[int, str]:
    """Return errno and text of a REFUSED payload.

    Raises:
        WireError: the payload ends early.
    """
    if len(payload) < _REFUSAL.size:
        raise WireError(f"refusal takes {len(payload)} bytes, needs {_REFUSAL.size}", hint=_HINT)
    (errno,) = _REFUSAL.unpack_from(payload)
    return errno, payload[_REFUSAL.size :].decode(errors="replace")


def _check_prefix(subnet: int, prefix_length: int) -> None:
    if prefix_length > 32 or subnet & (0xFFFFFFFF >> prefix_length):
        raise WireError(
            f"subnet {subnet:#010x} has bits beyond its prefix length {prefix_length}",
            hint=_HINT,
        )
