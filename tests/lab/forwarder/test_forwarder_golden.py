"""The original's packets through the forwarder on a real device: written and sent bytes are identical."""

import json
import socket
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from pyflannel.lab.waiting import wait_until
from pyflannel.model.forwarder import Forwarder, ForwarderPeer
from pyflannel.model.state import Add, Remove
from pyflannel.processes.forwarder import ForwarderTarget

DEADLINE_S = 20.0
GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "udp-proxy.json").read_text())["cases"]
DIFFERENT = {4, 5, 8, 26, 29, 31, 32, 35, 37, 38, 59, 64, 71, 73, 74, 76, 77, 79, 80, 94, 98, 100, 101}
"""Cases that show a defect of the original; the unit tests of forwarding give the reasons."""


def test_the_recorded_cases_of_the_original_agree_on_a_real_device(make_namespace, tmp_path):
    """The forwarder writes and sends the same bytes as the original, through the kernel."""
    cases = [case for case in GOLDEN if int(case["id"][-3:]) not in DIFFERENT]
    ns, run_dir = make_namespace(), tmp_path / "run"
    run_dir.mkdir()
    for words in (
        *(f"address add 192.168.50.{host}/24 dev lo" for host in (101, 102, 103)),
        "tuntap add flannel0 mode tun",
        "link set flannel0 mtu 1472 up",
    ):
        ns.ip(words)
    forwarder = Forwarder(
        link="flannel0",
        tunnel_address=IPv4Address("10.77.40.0"),
        subnet=IPv4Network("10.77.40.0/24"),
        listen_address=IPv4Address("192.168.50.101"),
        port=8285,
        mtu=1472,
    )
    peers = [
        ForwarderPeer(link="flannel0", subnet=IPv4Network(subnet), address=IPv4Address(address), port=8285)
        for subnet, address in (
            ("10.77.50.0/24", "192.168.50.102"),
            ("10.77.50.128/25", "192.168.50.103"),
            ("10.77.60.0/24", "192.168.50.103"),
        )
    ]

    async def replay():
        target = ForwarderTarget(run_dir)
        assert not await target.apply([Add(forwarder), *(Add(peer) for peer in peers)])
        try:
            # The kernel opens the device's queue a moment after an attachment.
            wait_until(
                lambda: "state UP" in ns.ip("link show flannel0"), what="the queue", deadline_s=DEADLINE_S
            )
            with PlainHosts() as plain:
                return [(case, *plain.inject(case)) for case in cases]
        finally:
            await target.apply([Remove(forwarder)])

    results = ns.run(replay, 60)

    for case, sent, written in results:
        assert sent == [(out["to"], out["payload"]) for out in case["datagrams_out"]], case["name"]
        assert written == case["written_to_tun"], case["name"]
    assert len(results) > 40


MARK = b"mark"
MARKS_OUT = {
    "192.168.50.102": bytes.fromhex("4500001800000000401100000a4d28050a4d321e") + MARK,
    "192.168.50.103": bytes.fromhex("4500001800000000401100000a4d28050a4d3c1e") + MARK,
}
MARK_IN = bytes.fromhex("4500001800000000401100000a4d32050a4d281e") + MARK
"""Packets to and from a peer.

These packets arrive after the packets of a case, because the forwarder keeps the order.
"""


class PlainHosts:
    """Peers that are plain sockets, and a packet socket on the device."""

    def __enter__(self):
        self.peers = {}
        for address in ("192.168.50.102", "192.168.50.103"):
            udp = self.peers[address] = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            udp.bind((address, 8285))
        self.device = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM)
        self.device.bind(("flannel0", 3))  # ETH_P_ALL
        for each in (*self.peers.values(), self.device):
            each.settimeout(DEADLINE_S)
        return self

    def __exit__(self, *error):
        for each in (*self.peers.values(), self.device):
            each.close()

    def inject(self, case):
        """Return packets to peers as (endpoint, payload), and packets that were written to the device, in
        hexadecimal.
        """
        packet = bytes.fromhex(case["packet"])
        if case["into"] == "tun":
            self.device.sendto(packet, ("flannel0", 0x0800))
            return self.sent(), self.written()
        self.peers[case["from"].partition(":")[0]].sendto(packet, ("192.168.50.101", 8285))
        written = self.written()
        return self.sent(), written

    def sent(self):
        sent = []
        for address, mark in MARKS_OUT.items():
            self.device.sendto(mark, ("flannel0", 0x0800))
            while (payload := self.peers[address].recv(65535))[20:] != MARK:
                sent.append((f"{address}:8285", payload.hex()))
        return sent

    def written(self):
        self.peers["192.168.50.102"].sendto(MARK_IN, ("192.168.50.101", 8285))
        written = []
        while True:
            packet, address = self.device.recvfrom(65535)
            if address[2] == socket.PACKET_OUTGOING:
                continue  # packets of the test itself
            if packet[20:] == MARK:
                return written
            written.append(packet.hex())
