"""What a host shows to whoever watches it: strangers in log, status and doctor, on the real kernel."""

import json
import os
import re
import struct
import sys
from ipaddress import IPv4Address

import pytest

from pyflannel.lab.traffic import wait_reached

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

DEADLINE_S = 30.0
NOBODY_S = "10.100.250.2"
"""An address of the network that no host has."""

_SEND = (
    "import socket, sys; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
    "for _ in range(int(sys.argv[3])): s.sendto(bytes.fromhex(sys.argv[2]), (sys.argv[1], 8285))"
)


def send(sender, receiver, source: str, destination: str, packets: int) -> None:
    """Let a host send inner packets in tunnel datagrams, whether it has a lease or not."""
    ends = IPv4Address(source).packed + IPv4Address(destination).packed
    inner = struct.pack("!BBHHHBBH", 0x45, 0, 20, 0, 0, 64, 17, 0) + ends
    sender.run([sys.executable, "-c", _SEND, str(receiver.address), inner.hex(), str(packets)])


@pytest.fixture(scope="module")
def ends(overlay):
    """docker1 and docker4 on one network, with a container each."""
    ends = [overlay.hosts["docker1"], overlay.hosts["docker4"]]
    for host in ends:
        overlay.join(host)
    overlay.settle(*ends)
    containers = [host.container("box", gateway=host.gateway(), mtu=1472) for host in ends]
    wait_reached(containers, deadline_s=DEADLINE_S)
    return ends, containers


def test_a_stranger_is_named_by_log_status_and_doctor(overlay, ends):
    """docker2 has no lease. What the programs drop and what they leave to the forwarder is told alike."""
    (one, other), (box, far) = ends
    docker2 = overlay.hosts["docker2"]
    after = len(overlay.log(one))

    send(docker2, one, str(far.address), str(box.address), 3)
    send(docker2, one, NOBODY_S, str(box.address), 2)

    said = f"Turned away tunnel packets from={docker2.address} reason="
    log = overlay.wait_logged(one, f"{said}impostor packets=", f"{said}stranger packets=", after=after)
    impostor, stranger = sorted(re.findall(rf"{re.escape(said)}(.*)", log))  # once each, within a minute
    assert f": it holds no lease, and the inner source {far.address} is in {other.lease()} of" in impostor
    assert f": it holds no lease, and no host has the inner source {NOBODY_S}. If it is" in stranger
    status = overlay.status(one)
    assert [(one.reason, one.packets) for one in status.strangers] == [("impostor", 3), ("stranger", 2)]
    assert status.fast_path.counters["impostor"] == 3
    assert status.forwarder.counters["dropped_in_stranger"] == 2
    assert f"stranger   {docker2.address}, impostor, 3 packets, the latest " in one.flannelctl("status")
    found = json.loads(one.flannelctl("doctor", "--json"))["findings"]
    strangers = [finding for finding in found if finding["code"] == "stranger"]
    assert [(finding["severity"], finding["evidence"][0][:9]) for finding in strangers] == [
        ("warning", "3 packets"),
        ("warning", "2 packets"),
    ]
    assert f"ip neigh show to {docker2.address}" in strangers[0]["fix"]
