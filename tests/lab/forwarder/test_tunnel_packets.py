"""Two forwarders on real devices and sockets carry packets, and count the packets that they drop."""

import sys
import time
from ipaddress import IPv4Address, IPv4Network

from pyflannel.lab.waiting import wait_until
from pyflannel.model.state import Add, Remove, Replace, State

DEADLINE_S = 60.0


def test_ping_crosses_two_forwarders(linked):
    """Each forwarder decrements the TTL: the reply to the ping has a TTL of 62."""
    one, two = linked

    output = one.namespace.command("ping", "-c", "3", "-i", "0.1", "-W", "30", two.tunnel_address)

    assert output.count("ttl=62") == 3
    assert one.counters()["sent_packets"] == one.counters()["received_packets"] == 3


def test_each_end_of_the_tunnel_decrements_the_ttl(linked):
    """Traceroute shows the host's tunnel address, then the peer's tunnel address, then the destination."""
    one, two = linked
    hops = [
        one.namespace.attempt("ping", "-c", "1", "-W", "30", "-t", ttl, two.tunnel_address)
        for ttl in ("1", "2", "3")
    ]

    assert f"From {one.tunnel_address} icmp_seq=1 Time to live exceeded" in hops[0]
    assert f"From {two.tunnel_address} icmp_seq=1 Time to live exceeded" in hops[1]
    assert f"64 bytes from {two.tunnel_address}" in hops[2]


def test_the_sender_receives_an_error_without_a_route(linked):
    """A program that requests errors receives "network unreachable", at a limited rate."""
    one, _ = linked
    ask = (
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM);"
        "s.setsockopt(0, 11, 1); s.settimeout(60); s.sendto(b'x', ('10.100.99.9', 9))\n"
        "try: s.recv(1)\n"
        "except OSError as error: print(error.strerror)\n"
        "f = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "for _ in range(300): f.sendto(b'x', ('10.100.99.9', 9))"
    )

    started = time.monotonic()
    said = one.namespace.command(sys.executable, "-c", ask)
    wait_until(
        lambda: one.counters()["dropped_out_no_route"] >= 301,
        what="301 dropped packets",
        deadline_s=DEADLINE_S,
    )
    counters = one.counters()

    assert said == "Network is unreachable\n"
    assert 1 <= counters["icmp_unreachable"] <= 50 + 100 * (time.monotonic() - started) + 1
    assert counters["icmp_unreachable"] + counters["icmp_held_back"] == counters["dropped_out_no_route"]


def test_no_packet_loops_if_a_peers_address_is_routed_into_the_tunnel(linked):
    """The forwarder drops each fragment of a tunnel datagram that returns. The second ping has fragments."""
    one, two = linked
    looped = two.peer(address=IPv4Address("10.100.2.9"))
    assert not one.apply(Replace(two.peer(), looped))

    for size in ("56", "1444"):
        one.namespace.attempt("ping", "-c", "1", "-W", "1", "-s", size, "10.100.2.5")

    wait_until(
        lambda: one.counters()["dropped_out_loop"] == 3, what="3 dropped packets", deadline_s=DEADLINE_S
    )
    assert int(one.namespace.command("cat", "/sys/class/net/flannel0/statistics/tx_packets")) < 10


def test_a_datagram_longer_than_the_path_mtu_is_fragmented(linked):
    """An underlay with a smaller MTU than planned causes fragments, but no packet is lost."""
    one, two = linked
    for host in linked:
        host.namespace.ip("link set eth0 mtu 1000")

    output = one.namespace.command(
        "ping", "-c", "3", "-i", "0.1", "-s", "1444", "-M", "do", "-W", "30", two.tunnel_address
    )

    assert output.count("ttl=62") == 3


def test_strangers_are_dropped_counted_and_remembered(linked):
    """Packets need a known sender and valid inner addresses. A packet from an unknown sender, or with invalid
    inner addresses, is dropped.
    """
    one, two = linked
    one.namespace.ip("address add 10.9.0.66/24 dev eth0")
    ours, theirs, else_where = (IPv4Address(a).packed for a in ("10.100.2.9", "10.100.1.9", "10.100.3.9"))
    header = bytes.fromhex("450000140000000040110000")
    send = (
        "import socket, sys; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind((sys.argv[1], 0))\n"
        "s.sendto(bytes.fromhex(sys.argv[2]), ('10.9.0.2', 8285))"
    )

    def counted() -> dict[str, int]:
        """Return the number of received packets by result."""
        counts = two.counters().items()
        return {
            name: value for name, value in counts if value and ("_in_" in name or name == "received_packets")
        }

    packets = (
        ("10.9.0.66", header + theirs + ours),
        ("10.9.0.1", header + else_where + ours),
        ("10.9.0.1", header + theirs + else_where),
        ("10.9.0.1", b"\x60" + bytes(39)),
        ("10.9.0.1", b"short"),
        ("10.9.0.1", (header + theirs + ours).ljust(1473, b"x")),
        ("10.9.0.1", header + theirs + ours),
    )
    for number, (sender, packet) in enumerate(packets, start=1):
        one.namespace.command(sys.executable, "-c", send, sender, packet.hex())
        wait_until(  # the packets of two processes may arrive in another order
            lambda number=number: sum(counted().values()) >= number,
            what=f"packet {number} of {len(packets)}",
            deadline_s=DEADLINE_S,
        )

    assert counted() == {
        "dropped_in_impostor": 1,
        "dropped_in_stranger": 1,
        "dropped_in_not_ours": 1,
        "dropped_in_not_ipv4": 1,
        "dropped_in_short": 1,
        "dropped_in_long": 1,
        "received_packets": 1,
    }
    assert [
        (str(one.address), one.reason, one.packets, str(one.inner_source), str(one.inner_destination))
        for one in two.strangers()
    ] == [
        ("10.9.0.66", "impostor", 1, "10.100.1.9", "10.100.2.9"),
        ("10.9.0.1", "stranger", 1, "10.100.3.9", "10.100.2.9"),
        ("10.9.0.1", "not_ours", 1, "10.100.1.9", "10.100.3.9"),
    ]


def test_no_failure_of_the_underlay_or_the_device_stops_the_forwarder(linked):
    """Without a route, or with the device down, lost packets are counted. The packets flow again after the
    failure.
    """
    one, two = linked
    for device, host, failure in (
        ("eth0", one, "send_failed_ENETUNREACH"),
        ("flannel0", two, "write_failed_EIO"),
    ):
        addresses = host.address + "/24" if device == "eth0" else host.tunnel_address + "/16"
        host.namespace.ip(f"link set {device} down")
        one.namespace.attempt("ping", "-c", "2", "-i", "0.05", "-W", "0.2", two.tunnel_address)
        wait_until(lambda h=host, f=failure: h.counters().get(f, 0) >= 2, what=failure, deadline_s=DEADLINE_S)
        host.namespace.ip(f"link set {device} up")
        host.namespace.attempt("ip", "address", "add", addresses, "dev", device)
        one.reach(two)


def test_ten_thousand_peers_in_one_request(linked):
    """The peers are added, read back and removed, while packets flow."""
    one, two = linked
    many = [
        two.peer(subnet=IPv4Network((0x0B000000 + (i << 8), 24)), address=IPv4Address(0x0A090100 + i))
        for i in range(10_000)
    ]

    with one.pinging(two, per_second=200, seconds=3) as pings:
        assert not one.apply(*(Add(peer) for peer in many))
        found = one.snapshot()
        assert not one.apply(*(Remove(peer) for peer in many))
        sent, received = pings()

    assert found == State.of(one.forwarder, two.peer(), *many)
    assert one.snapshot() == State.of(one.forwarder, two.peer())
    assert sent == received == 600
