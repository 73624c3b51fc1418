"""The wireguard backend on three hosts: every packet crosses the underlay encrypted, in any situation.

The kernel of the test machine may lack WireGuard. Then wireguard-go encrypts.
"""

import json
import os
import signal
import stat
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Interface
from itertools import permutations
from typing import Any

import pytest

from pyflannel.lab.lab import PREFIX, EtcdServer, Lab
from pyflannel.lab.program import Program
from pyflannel.lab.topology import LEFT, Host, HostPlace, Topology
from pyflannel.lab.waiting import wait_until
from testlab.sniffing import SniffedHosts

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

SOON_S = 60.0
PING_INTERVAL_S = 0.01
DEVICE = "flannel-wg"
PSK = b64encode(bytes(range(32))).decode()

THREE = Topology(
    (LEFT,),
    tuple(HostPlace(f"docker{n}", LEFT, IPv4Interface(f"10.10.10.{100 + n}/24")) for n in (1, 2, 3)),
)

_SNIFFER = """
import signal, socket, sys
sniffer = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))  # sent ones too: ETH_P_ALL
sniffer.bind(("eth0", 3))
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
encrypted = 0
print("sniffing", flush=True)
while True:
    packet, source = sniffer.recvfrom(65536)
    if source[1] != 0x0800:
        continue
    header = (packet[0] & 15) * 4
    if b"\\n\\x64" in (packet[12:14], packet[16:18]):
        print("clear", socket.inet_ntoa(packet[12:16]), socket.inet_ntoa(packet[16:20]), flush=True)
    elif packet[9] == 17 and packet[header + 2 : header + 4] == (51820).to_bytes(2, "big"):
        encrypted += 1
        if encrypted % 10 == 1:
            print("encrypted", encrypted, flush=True)
"""
"""Prints packets on eth0 with an outer address of 10.100.0.0/16, and datagrams of WireGuard."""


class Network(SniffedHosts):
    """Three hosts with a bridge of containers each, and a sniffer on each underlay."""

    def __init__(self, overlay: Any, ping_stream: Callable[..., Any]) -> None:
        super().__init__(list(overlay.hosts.values()), _SNIFFER)
        self.overlay = overlay
        self._ping_stream = ping_stream
        overlay.lab.each(self._join)
        overlay.settle(*self.hosts)
        for host, other in permutations(self.hosts, 2):
            self._wait_for_session(host, other)

    def _join(self, host: Host) -> None:
        self.overlay.join(host)
        bridge = (
            f"link add docker0 type bridge\naddress add {host.gateway()} dev docker0\nlink set docker0 up\n"
        )
        host.run(["ip", "-batch", "-"], text=bridge)

    def _wait_for_session(self, host: Host, other: Host) -> None:
        """Wait for an answer. A peer drops a handshake as long as it does not know the sender, and WireGuard
        repeats the handshake after 5 s (REKEY_TIMEOUT).
        """
        ping = ["ping", "-c1", "-W1", "-I", str(host.gateway().ip), str(other.gateway().ip)]
        wait_until(
            lambda: host.run(ping, check=False).returncode == 0,
            what=f"{host.name} has a session with {other.name}",
            deadline_s=60.0,
        )

    def has_encrypted(self, host: Host) -> bool:
        return any(line.startswith("encrypted") for line in self.sniffed(host))

    @contextmanager
    def pings(self, host: Host, interval_s: float = PING_INTERVAL_S) -> Iterator[tuple[Any, Any]]:
        """Ping between a host and its neighbour, in both directions, with addresses of containers."""
        other = self.neighbour(host)
        with (
            self._ping_stream(host, other.gateway().ip, interval_s=interval_s) as there,
            self._ping_stream(other, host.gateway().ip, interval_s=interval_s) as back,
        ):
            there.wait_answered()
            back.wait_answered()
            yield there, back

    def key(self, host: Host) -> str:
        return host.run(["wg", "show", DEVICE, "public-key"]).stdout.strip()

    def peers(self, host: Host) -> dict[str, str]:
        """Return the allowed IPs of each peer, by its key."""
        lines = host.run(["wg", "show", DEVICE, "allowed-ips"], check=False).stdout.splitlines()
        return dict(line.split("\t") for line in lines)

    def state(self, host: Host) -> dict[str, Any]:
        shown = host.run(["sh", "-c", f"ip -json route; ip -json address show {DEVICE}"], check=False).stdout
        lines = [*shown.splitlines(), ""]  # without the device, there is no second line
        routes, addresses = (json.loads(line or "[]") for line in lines[:2])
        for address in addresses:
            address.pop("ifindex")
        port = host.run(["wg", "show", DEVICE, "listen-port"], check=False).stdout
        return {"routes": routes, "addresses": addresses, "port": port, "peers": self.peers(host)}


@pytest.fixture(scope="module")
def network(make_overlay, ping_stream) -> Iterator[Network]:
    with Lab(f"wireguard-{os.getpid()}", THREE) as lab:
        etcd = EtcdServer(lab.router, str(LEFT.gateway.ip))
        program = etcd.start()
        backend = {"Type": "wireguard", "PSK": PSK}
        etcd.etcdctl("put", f"{PREFIX}/config", make_overlay.config(Backend=backend))
        yield Network(make_overlay(lab, etcd, program), ping_stream)


def process_of(host: Host) -> list[str]:
    """Return the process IDs of wireguard-go on a host; none if the kernel encrypts."""
    return host.run(["pgrep", "-f", f"wireguard-go -f {DEVICE}"], check=False).stdout.split()


def test_containers_reach_each_other_and_no_unencrypted_packet_is_on_the_underlay(network) -> None:
    for host in network.hosts:
        for other in network.hosts:
            if other is not host:
                host.run(["ping", "-c1", "-W5", "-I", str(host.gateway().ip), str(other.gateway().ip)])

    assert all(network.has_encrypted(host) for host in network.hosts)
    assert network.unencrypted() == []


def test_the_lease_and_the_key_file_are_as_documented(network) -> None:
    host = network.hosts[0]
    subnet = str(host.lease()).replace("/", "-")

    value = network.overlay.etcd.etcdctl("get", "--print-value-only", f"{PREFIX}/subnets/{subnet}")
    file = host.directory / "var/lib/flannel/wgkey"

    data = f'"BackendType":"wireguard","BackendData":{{"PublicKey":"{network.key(host)}","Port":51820}}'
    assert data in value
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert host.run(["wg", "pubkey"], text=file.read_text()).stdout.strip() == network.key(host)


DAMAGE = {
    "peer removed": ("wg set flannel-wg peer {peer} remove", "WireGuard peer {peer} of flannel-wg: missing"),
    "subnet taken from a peer": (
        "wg set flannel-wg peer {peer} allowed-ips 10.7.0.0/24",
        "WireGuard peer {peer} of flannel-wg: allowed 10.7.0.0/24",
    ),
    "port": ("wg set flannel-wg listen-port 5555", "WireGuard of flannel-wg: port 5555, wanted 51820"),
    "route": ("ip route delete 10.100.0.0/16 dev flannel-wg", "route 10.100.0.0/16: missing"),
    "device deleted": ("ip link delete flannel-wg", "link flannel-wg: missing"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_repaired_and_no_packet_crosses_unencrypted(network, figures, name: str) -> None:
    host = network.next_victim()
    words, found = DAMAGE[name]
    peer = network.key(network.neighbour(host))
    before, said = network.state(host), len(network.overlay.log(host))

    with network.pings(host) as (there, _):
        began = time.monotonic()
        host.run(["sh", "-c", words.format(peer=peer)])
        wait_until(lambda: network.state(host) == before, what=f"{host.name} heals", deadline_s=SOON_S)
        healed_s = time.monotonic() - began
        network.overlay.wait_logged(host, "Repaired", found.format(peer=peer), after=said)
        there.wait_answered()

    figures(f"{name}: as before {healed_s * 1e3:.0f} ms after the command began")
    assert network.unencrypted() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_a_restart_of_flanneld_adopts_the_device_and_loses_no_packet(network, number: int) -> None:
    host, overlay = network.next_victim(), network.overlay
    key, processes, said = network.key(host), process_of(host), len(overlay.log(host))

    with network.pings(host) as (there, back):
        overlay.daemons[host.name].send(number)
        overlay.daemons[host.name].wait()
        there.wait_answered()
        overlay.join(host)
        there.wait_answered()
        back.wait_answered()

    assert there.lost() == []
    assert back.lost() == []
    assert (network.key(host), process_of(host)) == (key, processes)
    assert "Repaired" not in overlay.log(host)[said:]
    assert network.unencrypted() == []


def test_a_killed_wireguard_go_starts_again(network, figures) -> None:
    host = network.next_victim()
    (process,) = process_of(host) or pytest.skip("the kernel has WireGuard, so there is no wireguard-go")

    with network.pings(host) as (there, back):
        began = time.time()
        host.run(["kill", "-9", process])
        wait_until(lambda: process_of(host) not in ([], [process]), what="a new process", deadline_s=SOON_S)
        there.wait_answered()
        back.wait_answered()

    figures(f"wireguard-go killed: longest time without an answer {there.longest_gap_s(began - 0.05):.2f} s")
    assert network.unencrypted() == []


def test_a_rotation_of_the_key_loses_no_packet(network, figures) -> None:
    host = network.next_victim()
    old, file = network.key(host), host.directory / "var/lib/flannel/wgkey"

    # A device queues 128 packets for each peer during a rotation.
    with network.pings(host, interval_s=0.05) as (there, back):
        began = time.time()
        new = host.flannelctl("rotate-key").strip()
        there.wait_answered()
        back.wait_answered()

    gaps = f"{there.longest_gap_s(began - 0.05):.3f} and {back.longest_gap_s(began - 0.05):.3f} s"
    figures(f"rotation: longest times without an answer {gaps}")
    assert there.lost() == []
    assert back.lost() == []
    assert network.key(host) == new != old
    assert host.run(["wg", "pubkey"], text=file.read_text()).stdout.strip() == new
    assert [path.name for path in file.parent.glob("wgkey*")] == ["wgkey"]
    for other in network.hosts:
        if other is not host:
            wait_until(lambda other=other: new in network.peers(other), what="the new key", deadline_s=SOON_S)
            wait_until(
                lambda other=other: old not in network.peers(other), what="no old key", deadline_s=SOON_S
            )
    assert network.unencrypted() == []


def test_the_status_shows_the_encryption_and_the_last_handshake_of_each_peer(network) -> None:
    host = network.hosts[0]
    for other in network.hosts[1:]:
        host.run(["ping", "-c1", "-W5", str(other.gateway().ip)])

    status = network.overlay.status(host)
    text, peers = host.flannelctl("status"), host.flannelctl("peers")

    assert status.backend.is_encrypted
    assert status.wireguard.public_key == network.key(host)
    assert {peer.subnet: peer.endpoint for peer in status.wireguard.peers} == {
        other.lease(): f"{other.address}:51820" for other in network.hosts[1:]
    }
    assert all(peer.handshake_age_s < SOON_S for peer in status.wireguard.peers)
    assert all(peer.received and peer.sent for peer in status.wireguard.peers)
    assert "flannel-wg, mtu 1420, encrypted" in text
    assert text.count("encrypted, last handshake ") == peers.count("encrypted, last handshake ") == 2


def test_without_its_store_a_host_continues_to_encrypt_and_keeps_its_key(network) -> None:
    host, overlay = network.next_victim(), network.overlay
    key = network.key(host)

    with network.pings(host) as (there, back):
        overlay.etcd_program.kill()
        overlay.wait_status(host, lambda status: not status.store.is_connected, "misses its store")
        refused = host.run(["flannelctl", "rotate-key"], check=False)
        overlay.daemons[host.name].kill()
        overlay.daemons[host.name] = host.launch_flanneld(f"--store={overlay.etcd.url}")
        overlay.wait_logged(host, "starting with the last known config")
        there.wait_answered()
        back.wait_answered()
    overlay.etcd_program = overlay.etcd.start()
    overlay.wait_ready(host)

    assert "the store is unreachable" in refused.stderr
    assert network.key(host) == key
    assert there.lost() == back.lost() == []
    assert network.unencrypted() == []


@contextmanager
def counted_echoes(host: Host) -> Iterator[Callable[[], int]]:
    """Count the echo requests to the address of the container bridge. Probes of peers have other
    destinations.
    """
    chain = "{ type filter hook input priority 0; }"
    rule = f"ip daddr {host.gateway().ip} icmp type echo-request counter"
    host.run(["nft", f"add table ip seen; add chain ip seen echoes {chain}; add rule ip seen echoes {rule}"])

    def count() -> int:
        shown = host.run(["nft", "list", "chain", "ip", "seen", "echoes"]).stdout
        return int(shown.partition("counter packets ")[2].split()[0])

    try:
        yield count
    finally:
        host.run(["nft", "delete table ip seen"])


def test_unencrypted_packets_from_outside_are_not_delivered(network) -> None:
    """The source is an address of the underlay, or the address of another host's container."""
    host, router = network.hosts[0], network.overlay.lab.router
    other = network.neighbour(host).gateway().ip

    router.run(["ip", "route", "add", str(host.lease()), "via", str(host.address)])
    router.run(["ip", "address", "add", f"{other}/32", "dev", "lo"])
    try:
        with counted_echoes(host) as received:
            for source in ([], ["-I", str(other)]):
                ping = ["ping", "-c3", "-i0.01", "-W0.2", *source, str(host.gateway().ip)]
                assert router.run(ping, check=False).returncode
            router.run(["ping", "-c1", "-W5", str(host.address)])
            assert received() == 0
    finally:
        router.run(["ip", "address", "delete", f"{other}/32", "dev", "lo"])
        router.run(["ip", "route", "delete", str(host.lease())])

    for each in network.hosts:  # the sniffers captured these pings
        network.ignored[each.name] = len(network.sniffed(each))


def test_a_host_without_a_key_of_a_lease_gets_no_session(network) -> None:
    """The host knows the content of the store: the public key of the other host, and the preshared key."""
    host, router = network.hosts[0], network.overlay.lab.router
    inside = network.neighbour(host).gateway().ip
    key = router.run(["wg", "genkey"]).stdout
    if router.run(["ip", "link", "add", "stranger", "type", "wireguard"], check=False).returncode:
        router.start(["env", "WG_PROCESS_FOREGROUND=1", "wireguard-go", "-f", "stranger"], name="stranger")
    wait_until(
        lambda: not router.run(["wg", "show", "stranger"], check=False).returncode,
        what="the device of the stranger",
        deadline_s=SOON_S,
    )
    (router.directory / "stranger.conf").write_text(
        f"[Interface]\nPrivateKey={key}\n[Peer]\nPublicKey={network.key(host)}\nPresharedKey={PSK}\n"
        f"Endpoint={host.address}:51820\nAllowedIPs=10.100.0.0/16\n"
    )
    router.run(["wg", "setconf", "stranger", str(router.directory / "stranger.conf")])
    router.run(["ip", "address", "add", f"{inside}/32", "dev", "stranger"])
    router.run(["ip", "link", "set", "stranger", "up"])
    router.run(["ip", "route", "add", str(host.lease()), "dev", "stranger"])
    try:
        with counted_echoes(host) as received:
            assert router.run(["ping", "-c2", "-W1", str(host.gateway().ip)], check=False).returncode
            assert received() == 0
        shown = router.run(["wg", "show", "stranger", "dump"]).stdout.splitlines()[1].split("\t")
    finally:
        router.run(["ip", "link", "delete", "stranger"])

    handshake_at, received_bytes, sent_bytes = map(int, shown[4:7])
    assert (handshake_at, received_bytes) == (0, 0)
    assert sent_bytes > 0


def test_a_member_sends_only_as_its_own_containers(network) -> None:
    host, member = network.hosts[0], network.hosts[1]
    inside, of_other = host.gateway().ip, network.hosts[2].gateway().ip

    with counted_echoes(host) as received:
        member.run(["ip", "address", "add", f"{of_other}/32", "dev", "lo"])
        try:
            forged = ["ping", "-c3", "-i0.01", "-W0.2", "-I", str(of_other), str(inside)]
            assert member.run(forged, check=False).returncode
        finally:
            member.run(["ip", "address", "delete", f"{of_other}/32", "dev", "lo"])
        member.run(["ping", "-c1", "-W5", "-I", str(member.gateway().ip), str(inside)])
        assert received() == 1


def test_the_store_contains_no_private_key(network) -> None:
    """A reader of the store gets the public keys and the preshared key."""
    content = network.overlay.etcd.etcdctl("get", "--prefix", "")

    assert PSK in content
    for host in network.hosts:
        private = (host.directory / "var/lib/flannel/wgkey").read_text().strip()
        assert network.key(host) in content
        assert private not in content
        assert b64decode(private).hex() not in content


def test_a_cleanup_drops_later_packets_of_containers(network) -> None:
    host = network.hosts[0]
    (host.directory / "var/lib/flannel/wgkey").stat()

    with network.pings(host) as (there, _):
        said = host.flannelctl("cleanup", "--yes", "--json")
        wait_until(lambda: there.is_silent_for(0.3), what="no answer", deadline_s=SOON_S)

    report = json.loads(said)
    assert report["problems"] == []
    assert any("would otherwise send unencrypted packets" in line for line in report["kept"])
    assert network.unencrypted() == []
    assert [route["dst"] for route in host.routes("type", "blackhole")] == ["10.100.0.0/16"]
    assert DEVICE not in {link["ifname"] for link in host.links()}
    assert process_of(host) == []
    assert not list((host.directory / "var/lib/flannel").glob("*"))

    host.run(["ip", "link", "delete", "docker0"])
    host.flannelctl("cleanup", "--yes")
    assert host.routes("type", "blackhole") == []


STORE = "sqlite:///var/lib/leases.db"


def test_require_encryption_refuses_a_backend_without_encryption() -> None:
    """At its start, flanneld removes the objects of an earlier flanneld without encryption, and drops the
    packets.
    """
    one = Topology((LEFT,), (HostPlace("docker1", LEFT, IPv4Interface("10.10.10.101/24")),))
    with Lab(f"require-{os.getpid()}", one) as lab:
        (host,) = lab.hosts.values()

        def write(kind: str) -> None:
            config = json.dumps({"Network": "10.100.0.0/16", "Backend": {"Type": kind}})
            host.flannelctl(f"--store={STORE}", "config", "set", config)

        def links() -> set[str]:
            return {link["ifname"] for link in host.links()} & {"flannel.1", DEVICE}

        def wait_logged(text: str, times: int = 1) -> None:
            log = host.directory / "log/flanneld.log"
            wait_until(lambda: log.read_text().count(text) == times, what=text, deadline_s=SOON_S)

        def start() -> Program:
            return host.launch_flanneld(f"--store={STORE}", "--require-encryption")

        write("vxlan")
        host.start_flanneld(f"--store={STORE}").stop()
        assert links() == {"flannel.1"}

        daemon = start()
        wait_logged("waiting for a network config that encrypts: Backend.Type vxlan does not")
        wait_until(lambda: links() == set(), what="no device", deadline_s=SOON_S)
        assert [route["dst"] for route in host.routes("type", "blackhole")] == ["10.100.0.0/16"]

        write("wireguard")
        wait_until(lambda: links() == {DEVICE}, what="another device", deadline_s=SOON_S)

        write("host-gw")
        wait_logged("waiting for a network config that encrypts: Backend.Type host-gw does not")
        daemon.stop()
        start()
        wait_logged("No usable network config: starting with the last known config")
        warnings = json.loads(host.run(["flannelctl", "status", "--json"], check=False).stdout)["warnings"]
        assert any("Backend.Type host-gw does not" in warning for warning in warnings)
        assert links() == {DEVICE}
