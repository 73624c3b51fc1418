"""flannelctl ping, peers and status on real hosts name the peers that answer, and the step that fails."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pyflannel.assembly.directories import Places
from pyflannel.lab.lab import PREFIX
from pyflannel.lab.topology import Host
from pyflannel.lab.waiting import together, wait_until
from testlab.documents import read_document
from testlab.faults import paused
from testlab.overlay import SOON_S, Overlay

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")


@pytest.fixture(scope="module")
def pair(overlay) -> tuple[Host, Host]:
    """Two hosts of a vxlan network on both sides of a router, each with a bridge as Docker would have."""
    overlay.set_backend("vxlan")
    hosts = overlay.hosts["docker1"], overlay.hosts["docker3"]
    together([lambda host=host: overlay.join(host) for host in hosts])
    overlay.settle(*hosts)
    for host in hosts:
        batch = f"link add br7 type bridge\nlink set br7 up\naddress add {host.gateway()} dev br7\n"
        host.run(["ip", "-batch", "-"], text=batch)
    return hosts


@contextmanager
def fault(host: Host, do: str, undo: str) -> Iterator[None]:
    host.run(["sh", "-c", do])
    try:
        yield
    finally:
        host.run(["sh", "-c", undo])


def ping(host: Host, name: object, *, exit_code: int = 0) -> dict[str, Any]:
    ran = host.run(["flannelctl", "ping", str(name), "--json"], check=False)
    assert ran.returncode == exit_code, ran.stdout + ran.stderr
    return read_document(["ping"], ran.stdout)


def states(report: dict[str, Any]) -> dict[str, str]:
    return {step["name"]: step["state"] for step in report["steps"]}


def test_ping_reaches_a_host_by_each_of_its_names(pair: tuple[Host, Host]) -> None:
    one, other = pair
    for name in (other.address, other.gateway().ip):
        report = ping(one, name)

        assert states(report) == dict.fromkeys(("underlay", "tunnel", "container"), "reached")
        assert [step["mtu"] for step in report["steps"]] == [1500, 1450, 1450]
        assert (report["ok"], report["stops"]) == (True, None)


def test_bench_measures_each_path_and_names_a_silent_path(pair: tuple[Host, Host]) -> None:
    one, other = pair
    drop = "iptables -I INPUT -p udp --dport 8472 -j DROP"

    ran = one.run(["flannelctl", "bench", str(other.address), "--json"])
    with fault(other, drop, "iptables -F INPUT"):
        broken = one.run(["flannelctl", "bench", str(other.address)], check=False)

    report = read_document(["bench"], ran.stdout)
    assert [(line["name"], line["size"]) for line in report["lines"]] == [
        (name, size) for size in (84, 1450) for name in ("measurement", "underlay", "tunnel", "container")
    ]
    assert all(line["received"] > 0 for line in report["lines"])
    assert [line["ratio"] is not None for line in report["lines"]] == [False, False, True, True] * 2
    assert broken.returncode == 1
    assert [line.split()[3:6] for line in broken.stdout.splitlines() if line.startswith("tunnel")] == [
        ["0", "of", "1"]
    ] * 2


def test_peers_and_status_show_the_answers(pair: tuple[Host, Host]) -> None:
    one, _ = pair
    (peer,) = read_document(["peers"], one.flannelctl("peers", "--json"))["peers"]
    assert peer["is_reached"]
    assert peer["path_mtu"] == 1450
    assert 0 < peer["rtt_ms"] < 1000
    assert ", ready, the peer answers" in one.flannelctl("status").splitlines()[0]


def test_peers_counts_the_losses_on_a_path(pair: tuple[Host, Host]) -> None:
    one, other = pair

    def losses() -> tuple[int, int, bool]:
        (peer,) = read_document(["peers"], one.flannelctl("peers", "--json"))["peers"]
        return peer["probes_sent"], peer["probes_lost"], peer["is_reached"]

    assert losses() == (10, 0, True)
    # Of the packets of each size, every second packet is lost.
    rule = "icmp type echo-request meta length 84 numgen inc mod 2 0 drop"
    chain = f"chain c {{ type filter hook input priority 0; {rule}; }}"
    with fault(other, f"nft 'table ip lossy {{ {chain}; }}'", "nft delete table ip lossy"):
        sent, lost, is_reached = losses()
    assert sent == 10
    assert 3 <= lost <= 7  # other probes of the same size are also counted by the rule
    assert is_reached
    with fault(other, "iptables -I INPUT -p udp --dport 8472 -j DROP", "iptables -F INPUT"):
        assert losses() == (10, 10, False)


def test_peers_shows_the_bytes_that_vxlan_received_from_a_peer(pair: tuple[Host, Host]) -> None:
    one, other = pair

    def received() -> int:
        (peer,) = read_document(["peers"], one.flannelctl("peers", "--no-probe", "--json"))["peers"]
        size: int = peer["received_bytes"]
        return size

    before = received()
    source, target = str(other.gateway().ip), str(one.gateway().ip)
    other.run(["ping", "-q", "-c", "20", "-i", "0.01", "-s", "972", "-I", source, target])

    grown = received() - before
    assert 20 * (1000 + 50) <= grown < 21 * (1000 + 50)  # daemons may send further, smaller packets


def test_the_matrix_shows_each_direction_and_names_a_host_without_an_answer(
    pair: tuple[Host, Host], overlay: Overlay
) -> None:
    one, other = pair

    def matrix() -> dict[str, Any]:
        return read_document(["peers"], one.flannelctl("peers", "--matrix", "--json"))["matrix"]

    def found(document: dict[str, Any]) -> dict[str, list[str] | str]:
        return {
            row["subnet"]: row["failure"] or [cell["state"] for cell in row["cells"]]
            for row in document["rows"]
        }

    here, there = str(one.lease()), str(other.lease())
    assert found(matrix()) == {here: ["reached"], there: ["reached"]}
    rule = 'iifname "flannel.1" icmp type echo-request drop'
    chain = f"chain c {{ type filter hook input priority 0; {rule}; }}"
    with fault(other, f"nft 'table ip fw {{ {chain}; }}'", "nft delete table ip fw"):
        assert found(matrix()) == {here: ["silent"], there: ["reached"]}
    with paused(overlay.daemons[other.name]):
        partly = matrix()
        shown = one.flannelctl("peers", "--matrix")
    assert found(partly)[here] == ["reached"]
    assert found(partly)[there] == "no answer within 2.8 s"
    assert partly["silent"] == [there]
    assert f"{other.name}: no answer" in shown or f"{other.address}: no answer" in shown


def test_status_shows_the_rules_of_this_host_that_drop_packets(pair: tuple[Host, Host]) -> None:
    one, _ = pair

    def firewall() -> tuple[dict[str, Any], str]:
        document = read_document(["status"], one.run(["flannelctl", "status", "--json"], check=False).stdout)
        return document["firewall"], one.run(["flannelctl", "status"], check=False).stdout

    found, _ = firewall()
    assert (found["engine"], found["is_in_place"], found["missing"]) == ("iptables", True, [])
    assert found["drops"] == []
    assert any("FLANNEL-FWD" in name for name in found["objects"])
    with fault(one, "iptables -I INPUT -p udp --dport 8472 -j DROP", "iptables -F INPUT"):
        found, shown = firewall()
    assert len(found["drops"]) == 1
    assert "drops tunnel packets of peers to UDP port 8472" in found["drops"][0]
    assert "dropped by" in shown
    setting = "sysctl -qw net/ipv4/conf/br7/forwarding"
    with fault(one, f"{setting}=0", f"{setting}=1"):
        found, shown = firewall()
    assert [line.partition(":")[0] for line in found["drops"]] == [
        "the host does not forward the packets that arrive at br7"
    ]
    assert "this host drops packets: run flannelctl doctor" in shown.splitlines()[0]
    with fault(one, "ip link set br7 down", "ip link set br7 up"):
        found, _ = firewall()
    assert found["drops"] == [
        "the bridge br7 of the containers of this host is down: ip link show br7: state DOWN"
    ]


def test_status_without_a_daemon_still_shows_the_rules(pair: tuple[Host, Host], overlay: Overlay) -> None:
    one, other = pair
    drop = "iptables -I OUTPUT -p udp --dport 8472 -j DROP"
    saved = ["grep", "-q", str(other.address), str(Places().last_known)]
    wait_until(
        lambda: one.run(saved, check=False).returncode == 0, what="the peer is saved", deadline_s=SOON_S
    )
    with paused(overlay.daemons[one.name]), fault(one, drop, "iptables -F OUTPUT"):
        ran = one.run(["flannelctl", "status", "--json"], check=False)

    assert ran.returncode == 3
    found = read_document(["status"], ran.stdout)["firewall"]
    assert (found["engine"], found["is_in_place"]) == ("iptables", None)
    assert any("FLANNEL-FWD" in name for name in found["objects"])
    assert ["drops tunnel packets to UDP port 8472 of peers" in line for line in found["drops"]] == [True]


@pytest.mark.parametrize(("link", "is_named"), [("flannel.1", True), ("eth0", False)])
def test_status_without_a_daemon_evaluates_the_packets_of_containers_at_the_tunnel_device(
    pair: tuple[Host, Host], overlay: Overlay, link: str, is_named: bool
) -> None:
    one, _ = pair
    drop = f"iptables {{}} FORWARD -o {link} -s 10.100.0.0/16 -d 10.100.0.0/16 -j DROP"
    with paused(overlay.daemons[one.name]), fault(one, drop.format("-I"), drop.format("-D")):
        document = read_document(["status"], one.run(["flannelctl", "status", "--json"], check=False).stdout)

    assert document["backend"]["link"] == "flannel.1"
    assert [f"-o {link} " in line for line in document["firewall"]["drops"]] == [True] * is_named


def test_ping_names_the_step_at_which_packets_stop(pair: tuple[Host, Host]) -> None:
    one, other = pair
    nobody = other.lease().broadcast_address - 1

    assert ping(one, nobody, exit_code=1)["stops"] == "container"

    drop = "iptables -I INPUT -p udp --dport 8472 -j {}"
    undo = "iptables -F INPUT"
    with fault(other, drop.format("DROP"), undo):
        report = ping(one, other.address, exit_code=1)
        assert states(report) == {"underlay": "reached", "tunnel": "silent", "container": "silent"}
        assert report["stops"] == "tunnel"
        assert "UDP port 8472" in report["cause"]
        shown = one.flannelctl("status").splitlines()[0]
        assert "but 1 of 1 probed peers do not answer" in shown
    with fault(other, drop.format("REJECT"), undo):
        report = ping(one, other.address, exit_code=1)
        assert report["stops"] == "tunnel"
        assert f"{other.address} answers: port unreachable" in report["cause"]
    with fault(other, "ip link set eth0 mtu 1400", "ip link set eth0 mtu 1500"):
        one.run(["ip", "route", "flush", "cache"])
        report = ping(one, other.address, exit_code=1)
        assert report["stops"] == "tunnel"
        assert "1450 bytes, the MTU of the network, do not" in report["cause"]


def test_a_hanging_daemon_does_not_hang_ping(overlay, pair: tuple[Host, Host]) -> None:
    one, other = pair
    with paused(overlay.daemons[one.name]):
        assert ping(one, other.address)["ok"]
        ran = one.run(["flannelctl", "trace", "--json", str(other.gateway().ip)])
        assert read_document(["trace"], ran.stdout)["ok"]


def test_doctor_reports_a_peer_whose_tunnel_is_blocked_there(pair: tuple[Host, Host]) -> None:
    one, other = pair
    with fault(other, "iptables -I INPUT -p udp --dport 8472 -j DROP", "iptables -F INPUT"):
        ran = one.run(["flannelctl", "doctor", "--json"], check=False)

    found = json.loads(ran.stdout)["findings"]
    assert [one["code"] for one in found if one["severity"] != "info"] == ["tunnel-blocked"]
    assert ran.returncode == 1


def test_doctor_finds_a_policy_rule_for_one_of_several_peers(
    pair: tuple[Host, Host], overlay: Overlay
) -> None:
    one, _ = pair
    overlay.put_peers("vxlan", 6)
    overlay.wait_status(one, lambda status: status.peers == 7, "knows the peers")
    rule = "to 10.100.128.64/28 lookup 1643 priority 6982"
    do = f"ip route add blackhole default table 1643; ip rule add {rule}"
    with fault(one, do, f"ip rule delete {rule}; ip route flush table 1643"):
        ran = one.run(["flannelctl", "doctor", "--json"], check=False)
    for number in range(6):
        overlay.etcd.etcdctl("del", f"{PREFIX}/subnets/10.100.128.{16 * number}-28")
    overlay.wait_status(one, lambda status: status.peers == 1, "has forgotten the peers")

    found = json.loads(ran.stdout)["findings"]
    assert [one["evidence"][0] for one in found if one["code"] == "policy-rule"] != []


def test_top_shows_a_peer_that_joins_and_one_that_leaves(pair: tuple[Host, Host], overlay: Overlay) -> None:
    from testlab.terminal import Terminal

    (one, other), joining = pair, overlay.hosts["docker2"]
    with Terminal(one.entering(["flannelctl", "top"]), columns=120, environment=one.environment) as terminal:
        terminal.wait("all is well: the peer answers")
        terminal.wait(lambda text: any(other.name in line and "B/s" in line for line in text.splitlines()))
        overlay.join(joining)
        terminal.wait(lambda text: "all is well: 2 peers answer" in text and "docker2" in text)
        overlay.daemons[joining.name].kill()
        overlay.etcd.etcdctl("del", f"{PREFIX}/subnets/{str(joining.lease()).replace('/', '-')}")
        terminal.wait(lambda text: "all is well: the peer answers" in text and "docker2" not in text)
        terminal.type("q")

        assert terminal.wait_ended() == 0
        assert terminal.is_restored
