"""Batches on real devices: data arrives unchanged, with any peer, and with any missing offload."""

import errno
import os
import re
import signal
import sys
from pathlib import Path

import pytest

from pyflannel.lab.waiting import wait_until
from pyflannel.model.state import Add
from pyflannel.processes import forwarder_descriptors

DEADLINE_S = 60.0
SIZE_BYTES = 48 << 20
RECEIVE = """
import hashlib, socket, sys
listener = socket.create_server((sys.argv[1], int(sys.argv[2])))
print("listening", flush=True)
connection, _ = listener.accept()
digest, received = hashlib.sha256(), 0
while piece := connection.recv(1 << 18):
    digest.update(piece)
    received += len(piece)
print(received, digest.hexdigest(), flush=True)
"""
SEND = """
import hashlib, random, socket, sys
connection = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=60)
connection.settimeout(60)
digest, left = hashlib.sha256(), int(sys.argv[3])
piece = random.Random(left).randbytes(1 << 20)
while left > 0:
    # Writes of every size, so that segments of every size come.
    part = piece[: 1 + random.randrange(1 << 18)][:left]
    connection.sendall(part)
    digest.update(part)
    left -= len(part)
    piece = piece[7:] + piece[:7]
connection.close()
print(digest.hexdigest())
"""
PLAIN_PEER = """
import fcntl, os, select, socket, struct, sys
tun = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(tun, 0x400454CA, struct.pack("16sH22x", b"flannel0", 0x1001))
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)
udp.bind((sys.argv[1], 8285))
print("ready", flush=True)

while True:
    for ready in select.select([tun, udp], [], [])[0]:
        if ready is udp:
            packet = udp.recv(65535)
            if len(packet) != int.from_bytes(packet[2:4], "big"):
                print("datagram with several packets", flush=True)
            os.write(tun, packet)
        else:
            udp.sendto(os.read(tun, 65535), (sys.argv[2], 8285))
"""
"""A forwarder like the original: it sends one datagram per read, and uses no virtio header and no offload."""

LACKING = """
from pyflannel.datapath import relay, underlay

lacking = "{}"
if lacking == "SEGMENTED_SEND":
    underlay._UDP_SEGMENT = 9999
elif lacking == "JOINED_RECEIVE":
    relay._UDP_GRO = 9999
"""
"""A forwarder on a kernel that lacks one offload."""


def refuse_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no device support a header before each packet, as on an old kernel."""
    real = forwarder_descriptors.ioctl

    def ioctl(descriptor, request, argument):
        has_header = request == forwarder_descriptors._TUNSETIFF and argument[17] & 0x40
        if has_header:
            raise OSError(errno.EINVAL, "as on an old kernel")
        return real(descriptor, request, argument)

    monkeypatch.setattr(forwarder_descriptors, "ioctl", ioctl)


def transfer(source, destination, size: int = SIZE_BYTES) -> bool:
    """Send bytes by TCP and return whether all arrived unchanged."""
    address, port = destination.tunnel_address, "5400"
    receiver = destination.spawn(sys.executable, "-c", RECEIVE, address, port)
    assert receiver.stdout.readline() == "listening\n"
    sent = source.namespace.command(sys.executable, "-c", SEND, address, port, str(size)).strip()
    output, _ = receiver.communicate(timeout=DEADLINE_S)
    return output.split() == [str(size), sent]


def checksum_errors(host) -> int:
    """Return the number of damaged TCP segments that the host's stack received."""
    found = re.search(r"TcpInCsumErrors\s+(\d+)", host.namespace.command("nstat", "-asz", "TcpInCsumErrors"))
    return int(found[1])


def test_a_stream_arrives_unchanged(linked):
    """Streams between two hosts with pyflannel, in both directions, with batches of every kind.

    The memory of the forwarders does not grow.
    """
    one, two = linked

    assert transfer(one, two)
    assert transfer(two, one)

    for host in linked:
        counters = host.counters()
        assert counters["batches_sent"] > 100
        assert counters["batches_received"] > 100
        assert counters["batches_written"] > 100
        assert checksum_errors(host) == 0
        (resident,) = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{host.pid}/status").read_text())
        assert int(resident) <= 16 * 1024


def test_a_peer_that_reads_one_packet_from_each_datagram(hosts):
    """The peer is like the original. Streams arrive in both directions."""
    one, two = hosts
    assert not one.apply(Add(one.forwarder), Add(two.peer()))
    plain = two.spawn(sys.executable, "-c", PLAIN_PEER, two.address, one.address)
    try:
        assert plain.stdout.readline() == "ready\n"

        assert transfer(one, two, 8 << 20)
        assert transfer(two, one, 8 << 20)

        counters = one.counters()
        assert counters["batches_sent"] > 10
        assert counters["batches_written"] > 10  # of single datagrams
        assert checksum_errors(two) == checksum_errors(one) == 0
    finally:
        plain.kill()
        said, _ = plain.communicate()
    assert said == ""


@pytest.mark.parametrize(
    ("piece", "counter"),
    [
        ("RUN_WRITE", "batches_written"),
        ("SEGMENTED_SEND", "batches_sent"),
        ("JOINED_RECEIVE", "batches_received"),
    ],
)
def test_without_one_offload_the_others_are_used(hosts, monkeypatch, piece, counter):
    """The log reports the missing offload once. Data arrives unchanged."""
    one, two = hosts
    assert not two.apply(Add(two.forwarder), Add(one.peer()))
    if piece == "RUN_WRITE":
        refuse_headers(monkeypatch)
    assert not one.apply(Add(one.forwarder), Add(two.peer()), python=one.changed(LACKING.format(piece)))

    assert transfer(one, two, 8 << 20)
    assert transfer(two, one, 8 << 20)

    counters = one.counters()
    batches = {name for name in ("batches_written", "batches_sent", "batches_received") if counters[name]}
    assert batches == {"batches_written", "batches_sent", "batches_received"} - {counter}
    said = (one.run_dir / "forwarder.log").read_text()
    assert said.count("\n") == 1
    assert said.startswith(f"{piece} is unavailable, packets are handled one by one: ")


def test_a_path_mtu_too_small_for_batches(linked):
    """The kernel splits no run for a path MTU smaller than its packets.

    Packets larger than the path MTU are sent one by one, in fragments.
    """
    one, two = linked
    for host in linked:
        host.namespace.ip("link set eth0 mtu 1000")

    assert transfer(one, two, 4 << 20)

    assert "SEGMENTED_SEND is unavailable" in (one.run_dir / "forwarder.log").read_text()
    assert not [name for name in one.counters() if name.startswith("send_failed")]


def test_a_damaged_segment_is_not_repaired(linked):
    """A run with a wrong TCP checksum reaches the stack unchanged.

    The stack counts the damaged segment, and accepts the other segments.
    """
    one, two = linked
    send = """
import socket, sys
device = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM)
for packet in sys.argv[1:]:
    device.sendto(bytes.fromhex(packet), ("flannel0", 0x0800))
"""
    packets = []
    for number in range(3):
        header = bytearray.fromhex(f"4500002c{number:04x}4000400600000a6401000a640200")
        header[10:12] = checksum(header)
        segment = f"1f901f91{1000 + 4 * number:08x}000000015010010012340000" + b"data".hex()
        packets.append(header.hex() + segment)
    before = checksum_errors(two)

    pid = one.pid
    os.kill(pid, signal.SIGSTOP)  # so that all packets are queued when the forwarder reads
    one.namespace.command(sys.executable, "-c", send, *packets)
    os.kill(pid, signal.SIGCONT)

    wait_until(
        lambda: checksum_errors(two) == before + 3, what="three damaged segments", deadline_s=DEADLINE_S
    )
    assert two.counters()["batches_received"] == 1


def checksum(data: bytes) -> bytes:
    total = sum(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))
    return (~((total & 0xFFFF) + (total >> 16)) & 0xFFFF).to_bytes(2, "big")
