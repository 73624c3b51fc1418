"""WireGuard in text: the formats of the program `wg` (wg(8), wireguard-tools 1.0)."""

from collections.abc import Iterable, Iterator
from ipaddress import ip_network

from msgspec import Struct

from pyflannel.errors import WireError
from pyflannel.model.store_record import Secret
from pyflannel.model.wireguard import WireguardPeer, sorted_networks

_NONE = "(none)"
_OFF = "off"
_DEVICE_FIELDS = 4
_PEER_FIELDS = 8
_HINT = "Install wireguard-tools 1.0 or newer."


class DumpedPeer(Struct, frozen=True, kw_only=True):
    """A peer as `wg show DEVICE dump` prints it.

    Attributes:
        peer: configuration of the peer, with the current endpoint.
        handshake_at: seconds since the epoch; 0 if there was no handshake.
    """

    peer: WireguardPeer
    handshake_at: int
    received: int
    sent: int


class DumpedDevice(Struct, frozen=True, kw_only=True):
    """A device as `wg show DEVICE dump` prints it; `public_key` is "" if the device has no private key."""

    link: str
    public_key: str
    port: int
    peers: tuple[DumpedPeer, ...]


def parse_dump(link: str, text: str) -> DumpedDevice:
    """Return the device and its peers.

    The first line is: private key, public key, port, mark. Each further line is: public key, preshared key,
    endpoint, allowed IPs, latest handshake, received, sent, keepalive. Tabs separate the fields.

    Raises:
        WireError: the text does not follow this format.
    """
    first, *rest = text.splitlines() or [""]
    try:
        fields = first.split("\t")
        if len(fields) != _DEVICE_FIELDS:
            raise ValueError("the first line does not have four fields")
        return DumpedDevice(
            link=link,
            public_key="" if fields[0] == _NONE else fields[1],
            port=int(fields[2]),
            peers=tuple(_peer(link, line.split("\t")) for line in rest),
        )
    except ValueError as error:
        # The message does not contain the text, because the text contains keys.
        raise WireError("the output of wg show dump has an unknown format", hint=_HINT) from error


def _peer(link: str, fields: list[str]) -> DumpedPeer:
    if len(fields) != _PEER_FIELDS:
        raise ValueError("a line does not have eight fields")
    public_key, preshared_key, endpoint, allowed, handshake, received, sent, keepalive = fields
    return DumpedPeer(
        peer=WireguardPeer(
            link=link,
            public_key=public_key,
            allowed=() if allowed == _NONE else sorted_networks(map(ip_network, allowed.split(","))),
            endpoint="" if endpoint == _NONE else endpoint,
            keepalive_s=0 if keepalive == _OFF else int(keepalive),
            preshared_key=Secret("" if preshared_key == _NONE else preshared_key),
        ),
        handshake_at=int(handshake),
        received=int(received),
        sent=int(sent),
    )


def format_device(private_key: Secret, port: int) -> str:
    """Return the section of a device for `wg addconf`."""
    return f"[Interface]\nPrivateKey = {private_key.reveal()}\nListenPort = {port}\n"


def format_peers(peers: Iterable[tuple[WireguardPeer, bool]]) -> str:
    """Return the sections of peers for `wg addconf`, and include an endpoint only if its flag is set.

    A section replaces the allowed IPs of the peer, and takes them from any other peer.
    """
    return "".join(line for peer, has_endpoint in peers for line in _section(peer, has_endpoint))


def _section(peer: WireguardPeer, has_endpoint: bool) -> Iterator[str]:
    yield f"[Peer]\nPublicKey = {peer.public_key}\nAllowedIPs = {', '.join(map(str, peer.allowed))}\n"
    if has_endpoint and peer.endpoint:
        yield f"Endpoint = {peer.endpoint}\n"
    yield f"PersistentKeepalive = {peer.keepalive_s}\n"
    if peer.preshared_key:
        yield f"PresharedKey = {peer.preshared_key.reveal()}\n"
