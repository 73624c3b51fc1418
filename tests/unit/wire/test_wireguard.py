"""The formats of `wg`: its output is read, and its input equals the values that were read."""

from ipaddress import IPv4Network

import pytest

from pyflannel.errors import WireError
from pyflannel.model.store_record import Secret
from pyflannel.model.wireguard import WireguardPeer, parse_key, wireguard_link
from pyflannel.wire.wireguard import format_device, format_peers, parse_dump

KEY = "hKkG9PwcKtL6B6MdnWAsbASTyQkr88DF+WHHWMIMnzc="
OTHER = "FqDGdFD1HvXfiGVm3k2sLPhRDQA3ZwrFHKuwbxFKvXo="
PSK = "pNmrd3Fb+REOszVXyYCjYEOs3QqhHEFA9OO8TRK98Hc="
PRIVATE = "uMECOej34HzTVXtNGC3C8j9AQnDlqRa1VigTQK8D01w="


def test_a_device_with_peers_is_read() -> None:
    text = (
        f"{PRIVATE}\t{KEY}\t51820\toff\n"
        f"{OTHER}\t{PSK}\t10.10.10.102:51820\t10.100.9.0/24,10.100.3.0/24\t1796042511\t476\t532\t25\n"
        f"{PSK}\t(none)\t(none)\t(none)\t0\t0\t0\toff\n"
    )

    device = parse_dump("flannel-wg", text)

    first, second = device.peers
    assert (device.public_key, device.port) == (KEY, 51820)
    assert first.peer == WireguardPeer(
        link="flannel-wg",
        public_key=OTHER,
        allowed=(IPv4Network("10.100.3.0/24"), IPv4Network("10.100.9.0/24")),
        endpoint="10.10.10.102:51820",
        keepalive_s=25,
        preshared_key=Secret(PSK),
    )
    assert (first.handshake_at, first.received, first.sent) == (1796042511, 476, 532)
    assert second.peer == WireguardPeer(link="flannel-wg", public_key=PSK, allowed=())


def test_a_device_without_a_key_has_none() -> None:
    assert parse_dump("flannel-wg", f"(none)\t{KEY}\t40000\toff\n").public_key == ""


@pytest.mark.parametrize(
    "text", ["", "x", f"{PRIVATE}\t{KEY}\tport\toff", f"{PRIVATE}\t{KEY}\t1\toff\n{OTHER}\t{PRIVATE}"]
)
def test_another_format_is_refused_without_a_key_in_the_message(text: str) -> None:
    with pytest.raises(WireError) as error:
        parse_dump("flannel-wg", text)

    assert PRIVATE not in error.value.in_full


def test_peers_are_written_with_an_endpoint_only_if_it_changes() -> None:
    peer = WireguardPeer(
        link="flannel-wg",
        public_key=OTHER,
        allowed=(IPv4Network("10.100.3.0/24"),),
        endpoint="10.10.10.102:51820",
        preshared_key=Secret(PSK),
    )

    text = format_peers([(peer, True), (peer, False)])

    section = f"[Peer]\nPublicKey = {OTHER}\nAllowedIPs = 10.100.3.0/24\n"
    rest = f"PersistentKeepalive = 0\nPresharedKey = {PSK}\n"
    assert text == f"{section}Endpoint = 10.10.10.102:51820\n{rest}{section}{rest}"
    assert PSK not in repr(peer)


def test_a_device_is_written_with_its_private_key() -> None:
    assert (
        format_device(Secret(PRIVATE), 51820) == f"[Interface]\nPrivateKey = {PRIVATE}\nListenPort = 51820\n"
    )


@pytest.mark.parametrize("text", ["", KEY[:-1], KEY[:-4], f"{KEY}{KEY}", KEY.replace("h", "é", 1), "x" * 44])
def test_text_of_another_length_is_no_key(text: str) -> None:
    assert parse_key(text) is None


def test_a_key_is_kept_as_wg_writes_it() -> None:
    assert parse_key(KEY) == KEY
    assert parse_key(f"{KEY[:42]}d=") == KEY  # the last bits of the base64 text have no meaning


def test_each_daemon_of_a_host_has_a_device_of_its_own() -> None:
    assert [wireguard_link(device) for device in ("flannel0", "flannel1", "flannel12")] == [
        "flannel-wg",
        "flannel-wg1",
        "flannel-wg12",
    ]
