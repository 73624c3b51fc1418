"""flannelctl doctor on real hosts: it finds each fault, with evidence and a command that repairs it."""

import json
import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pyflannel.lab.lab import PREFIX
from pyflannel.lab.topology import Host
from pyflannel.lab.waiting import together, wait_until
from testlab.documents import read_document
from testlab.faults import paused

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

DEADLINE_S = 60.0


@dataclass(frozen=True)
class Fault:
    """A fault on the host, its reversal, and the finding of doctor.

    Attributes:
        is_error: True if packets are lost, so that the exit code is 1.
    """

    do: str
    undo: str
    code: str
    is_error: bool
    evidence: str
    fix: str


FAULTS = [
    Fault(
        do="sysctl -qw net.ipv4.ip_forward=0",
        undo="sysctl -qw net.ipv4.ip_forward=1",
        code="forwarding-off",
        is_error=True,
        evidence="net.ipv4.ip_forward = 0",
        fix="sysctl -w net.ipv4.ip_forward=1",
    ),
    Fault(
        do="nft 'table inet fw { chain f { type filter hook forward priority 0; policy drop; }; }'",
        undo="nft delete table inet fw",
        code="forward-dropped",
        is_error=True,
        evidence="nft list chain inet fw f: policy drop, and no rule that accepts 10.100.0.0/16",
        fix="nft insert rule inet fw f ip saddr 10.100.0.0/16 accept;"
        " nft insert rule inet fw f ip daddr 10.100.0.0/16 accept",
    ),
    Fault(
        do="iptables-legacy -P FORWARD DROP",
        undo="iptables-legacy -P FORWARD ACCEPT; iptables-legacy -F FORWARD",
        code="forward-dropped",
        is_error=True,
        evidence="iptables-legacy -S FORWARD: policy drop, and no rule that accepts 10.100.0.0/16",
        fix="iptables-legacy -I FORWARD -s 10.100.0.0/16 -j ACCEPT;"
        " iptables-legacy -I FORWARD -d 10.100.0.0/16 -j ACCEPT",
    ),
    Fault(
        do="ip link set eth0 arp off",
        undo="ip link set eth0 arp on",
        code="arp-off",
        is_error=True,
        evidence="ip link show eth0: NOARP",
        fix="ip link set eth0 arp on",
    ),
    Fault(
        do="nft 'table arp f { chain c { type filter hook input priority 0; drop; }; }';"
        " ip neighbour flush dev eth0",
        undo="nft delete table arp f",
        code="neighbour-dropped",
        is_error=True,
        evidence="nft rule in arp f c: drop",
        fix="nft insert rule arp f c arp operation { request, reply } accept",
    ),
    Fault(
        do="ip neighbour replace 10.10.10.102 lladdr 02:00:00:00:00:99 dev eth0 nud permanent",
        undo="ip neighbour delete 10.10.10.102 dev eth0 2>/dev/null; true",
        code="neighbour-set",
        is_error=True,
        evidence="ip neighbour show 10.10.10.102 dev eth0: lladdr 02:00:00:00:00:99 PERMANENT",
        fix="ip neighbour delete 10.10.10.102 dev eth0  # the kernel then asks for it by ARP",
    ),
    Fault(
        do="ip route add 10.100.250.0/24 via 10.10.10.77 proto static",
        undo="ip route delete 10.100.250.0/24 2>/dev/null; true",
        code="unplanned-route",
        is_error=False,
        evidence="route 10.100.250.0/24 via 10.10.10.77 dev eth0 proto 4",
        fix="ip route delete 10.100.250.0/24 proto 4",
    ),
    Fault(
        do="ip route add 10.100.250.0/28 via 10.10.10.77",
        undo="ip route delete 10.100.250.0/28 2>/dev/null; true",
        code="left-by-original",
        is_error=False,
        evidence="route 10.100.250.0/28 via 10.10.10.77 dev eth0 proto 3",
        fix="ip route delete 10.100.250.0/28 proto 3",
    ),
    Fault(
        do="ip link add flannel.7 type vxlan id 7 dev eth0 dstport 4789",
        undo="ip link delete flannel.7 2>/dev/null; true",
        code="left-by-original",
        is_error=False,
        evidence="link flannel.7",
        fix="ip link delete flannel.7",
    ),
    Fault(
        do="for rule in '-s 10.100.0.0/16 -d 10.100.0.0/16 -j RETURN'"
        " '-s 10.100.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE'"
        " '! -s 10.100.0.0/16 -d 10.100.0.0/16 -j MASQUERADE';"
        " do iptables -t nat -A POSTROUTING $rule; done",
        undo="iptables -t nat -F POSTROUTING",
        code="left-by-original",
        is_error=False,
        evidence="iptables rule in nat POSTROUTING: -s 10.100.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE",
        fix="iptables -t nat -D POSTROUTING -s 10.100.0.0/16 -d 10.100.0.0/16 -j RETURN;"
        " iptables -t nat -D POSTROUTING -s 10.100.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE;"
        " iptables -t nat -D POSTROUTING ! -s 10.100.0.0/16 -d 10.100.0.0/16 -j MASQUERADE",
    ),
    Fault(
        do="iptables-legacy -t nat -N FLANNEL-POSTRTG; iptables-legacy -t nat -A FLANNEL-POSTRTG -j ACCEPT;"
        " iptables-legacy -t nat -A POSTROUTING -m comment --comment 'flanneld masq' -j FLANNEL-POSTRTG",
        undo="iptables-legacy -t nat -F; iptables-legacy -t nat -X",
        code="left-by-original",
        is_error=False,
        evidence="iptables-legacy chain FLANNEL-POSTRTG in nat",
        fix="iptables-legacy -t nat -D POSTROUTING"
        ' -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG;'
        " iptables-legacy -t nat -F FLANNEL-POSTRTG; iptables-legacy -t nat -X FLANNEL-POSTRTG",
    ),
    Fault(
        do="sysctl -qw net/ipv4/conf/flannel.1/rp_filter=1;"
        " ip route add 10.100.250.0/28 via 10.10.10.77 proto static",
        undo="sysctl -qw net/ipv4/conf/flannel.1/rp_filter=0; ip route delete 10.100.250.0/28",
        code="strict-reverse-path",
        is_error=False,
        evidence="route 10.100.250.0/28 via 10.10.10.77 dev eth0 proto 4",
        fix="sysctl -w net/ipv4/conf/all/rp_filter=2 net/ipv4/conf/flannel.1/rp_filter=2",
    ),
    Fault(
        do="ip route add blackhole 10.100.0.0/16 table 99;"
        " ip rule add to 10.100.0.0/16 table 99 priority 500",
        undo="ip route flush table 99; ip rule delete priority 500",
        code="policy-rule",
        is_error=True,
        evidence="ip -4 route show table 99: blackhole 10.100.0.0/16",
        fix="ip rule delete priority 500 from all to 10.100.0.0/16 lookup 99",
    ),
    Fault(
        do="ip link add large type veth peer name larger; ip link set large master br7",
        undo="ip link delete large",
        code="container-mtu",
        is_error=False,
        evidence="large has MTU 1500",
        fix="mk-docker-opts -c -d /etc/default/docker  # restart Docker with it, recreate containers",
    ),
]


@pytest.fixture(scope="module")
def host(overlay) -> Host:
    """One of two hosts of a vxlan network, with a bridge like Docker's."""
    overlay.set_backend("vxlan")
    pair = [overlay.hosts[name] for name in ("docker1", "docker2")]
    together([lambda host=host: overlay.join(host) for host in pair])
    overlay.settle(*pair)
    batch = f"link add br7 type bridge\nlink set br7 up\naddress add {pair[0].gateway()} dev br7\n"
    pair[0].run(["ip", "-batch", "-"], text=batch)
    return pair[0]


def examine(host: Host, *, exit_code: int = 0) -> dict[str, dict[str, Any]]:
    """Return the findings of doctor by code, and check their form."""
    ran = host.run(["flannelctl", "--json", "doctor"], check=False)
    assert ran.returncode == exit_code, ran.stdout + ran.stderr
    document = read_document(["doctor"], ran.stdout)
    assert document["ok"] == (exit_code == 0)
    for one in document["findings"]:
        assert one["severity"] in ("error", "warning", "info")
        assert one["cause"]
        assert one["fix"]
    return {one["code"]: one for one in document["findings"]}


@pytest.fixture
def healthy(overlay, host: Host) -> Iterator[Host]:
    """The host without findings, before and after the test."""
    assert not trouble(host)
    yield host
    # While two programs undo the changes of each other, a host may be ready for a moment.
    wait_until(
        lambda: host.run(["flannelctl", "doctor"], check=False).returncode == 0,
        what="doctor finds no error any more",
        deadline_s=DEADLINE_S,
    )
    overlay.wait_ready(host)
    assert not trouble(host)


def trouble(host: Host) -> dict[str, Any]:
    """Return the findings that are warnings or errors."""
    return {code: one for code, one in examine(host).items() if one["severity"] != "info"}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.code} {fault.evidence[:24]}")
def test_a_fault_is_found_and_its_fix_repairs_the_fault(healthy: Host, fault: Fault) -> None:
    """The finding contains the evidence, and its fix removes the finding."""
    healthy.run(["sh", "-c", fault.do])
    try:
        found = examine(healthy, exit_code=int(fault.is_error))[fault.code]
        assert found["severity"] == ("error" if fault.is_error else "warning")
        assert fault.evidence in found["evidence"]
        assert found["fix"] == fault.fix

        # One fix is for Docker, which does not run here, and one only shows the neighbour entry.
        if fault.code not in ("container-mtu", "no-neighbour"):
            healthy.run(["sh", "-c", found["fix"]])
            assert fault.code not in {**examine(healthy)}
    finally:
        healthy.run(["sh", "-c", fault.undo], check=False)


def test_a_filter_of_traffic_control_that_takes_packets_is_found(healthy: Host) -> None:
    """The command of the finding ends the loss."""
    script = """
        ip link add sink7 type veth peer name sink8 && ip link set sink7 up
        tc qdisc add dev eth0 clsact 2>/dev/null
        tc filter add dev eth0 ingress pref 77 protocol ip u32 match ip protocol 17 0xff \\
            match ip dport 8472 0xffff action mirred egress redirect dev sink7
    """
    healthy.run(["sh", "-c", script])
    try:
        healthy.flannelctl("doctor", check=False)  # its probes are the first packets
        found = examine(healthy, exit_code=1)
        assert found["tunnel-blocked"]["severity"] == "error"
        (line,) = found["filter-takes"]["evidence"]
        assert line.startswith("tc filter show dev eth0 ingress: pref 77 u32 redirects to sink7, ")
        assert found["filter-takes"]["severity"] == "warning"
        healthy.run(["sh", "-c", found["filter-takes"]["fix"]])
        assert trouble(healthy) == {}
    finally:
        healthy.run(
            ["sh", "-c", "tc filter delete dev eth0 ingress pref 77; ip link delete sink7"], check=False
        )


_CONTAINER = """
ip link add "$1" type bridge
ip link set "$1" mtu 9000 up
ip address add "$2" dev "$1"
exec sleep 1000
"""


def test_a_container_may_give_its_link_any_name(healthy: Host) -> None:
    """The name is not UTF-8, and a shell would execute it."""
    name, address = os.fsdecode(b"$(id)\xff"), healthy.lease().network_address + 9
    words = ["unshare", "--net", "sh", "-c", _CONTAINER, "sh", name, f"{address}/24"]
    container = healthy.start(words, name="container")
    try:
        wait_until(
            lambda: "container-mtu" in examine(healthy), what="the link is found", deadline_s=DEADLINE_S
        )
        found = examine(healthy)["container-mtu"]
        said = healthy.flannelctl("doctor")
    finally:
        container.kill()

    assert shlex.split(found["fix"])[-3:] == ["$(id)?", "mtu", "1450"]
    assert "ip link set '$(id)\\udcff' mtu 1450" in said


def test_a_link_with_a_wrong_mtu_is_found_in_any_of_twenty_containers(healthy: Host) -> None:
    address = healthy.lease().network_address + 9
    script = _CONTAINER.replace("9000", '"$3"')
    containers = [
        healthy.start(
            ["unshare", "--net", "sh", "-c", script, "sh", f"link{number}", f"{address}/24", str(mtu)],
            name=f"container{number}",
        )
        for number, mtu in enumerate([*[1450] * 19, 9000])
    ]
    try:
        wait_until(
            lambda: "container-mtu" in examine(healthy), what="the link is found", deadline_s=DEADLINE_S
        )
        found = examine(healthy)
    finally:
        for container in containers:
            container.kill()

    assert [line.partition(" ")[0] for line in found["container-mtu"]["evidence"]] == ["link19"]
    assert "examined-partly" not in found


def test_rules_of_unknown_origin_are_reported_only_as_information(healthy: Host) -> None:
    """An operator may want rules that earlier releases of the original wrote with the same text."""
    pair = [("-s", "10.100.0.0/16"), ("-d", "10.100.0.0/16")]
    for match in pair:
        healthy.run(["iptables", "-A", "FORWARD", *match, "-j", "ACCEPT"])

    found = examine(healthy)["rules-like-original"]

    for match in pair:
        healthy.run(["iptables", "-D", "FORWARD", *match, "-j", "ACCEPT"])
    assert found["severity"] == "info"
    assert found["evidence"][0] == "iptables rule in filter FORWARD: -s 10.100.0.0/16 -j ACCEPT"
    assert found["fix"].startswith("iptables -t filter -D FORWARD -s 10.100.0.0/16 -j ACCEPT; ")
    assert found["fix"].endswith("  # if no program uses them")


def test_the_text_output_contains_cause_evidence_and_command(healthy: Host) -> None:
    assert "found no problem on this host" in healthy.flannelctl("doctor")
    healthy.run(["sysctl", "-qw", "net.ipv4.ip_forward=0"])

    said = healthy.flannelctl("doctor", check=False)

    healthy.run(["sysctl", "-qw", "net.ipv4.ip_forward=1"])
    assert said.splitlines() == [
        "error: the host forwards no packets, so its containers cannot reach other hosts",
        "    seen: net.ipv4.ip_forward = 0",
        "    type: sysctl -w net.ipv4.ip_forward=1",
    ]


def test_doctor_repairs_a_value_of_the_kernel_if_asked(healthy: Host) -> None:
    healthy.run(["sysctl", "-qw", "net.ipv4.ip_forward=0"])

    document = read_document(["doctor"], healthy.flannelctl("doctor", "--fix", "--json"))

    assert document["fixed"] == ["sysctl -w net.ipv4.ip_forward=1"]
    assert document["ok"]


def test_peers_without_traffic_are_reported(overlay, healthy: Host) -> None:
    overlay.put_peers("host-gw", 1)
    overlay.wait_status(healthy, lambda status: bool(status.refused_peers), "refuses a peer")

    found = examine(healthy)["peers-refused"]

    assert found["cause"] == "1 of 2 peers are refused and unreachable"
    assert found["evidence"] == ["10.100.128.0/28 at 10.10.10.2: Ignoring non-vxlan subnet: type=host-gw"]
    overlay.etcd.etcdctl("del", "/coreos.com/network/subnets/10.100.128.0-28")
    overlay.wait_status(healthy, lambda status: not status.refused_peers, "refuses no peer")


def test_a_lease_with_the_mac_address_of_a_peer_does_not_affect_the_peer(overlay, healthy: Host) -> None:
    """The peer that published the address first remains. The other peer is refused, and doctor names both
    peers.
    """
    (peer,) = json.loads(healthy.run(["flannelctl", "--json", "peers"]).stdout)["peers"]
    key = "/coreos.com/network/subnets/" + peer["subnet"].replace("/", "-")
    lease = json.loads(overlay.etcd.etcdctl("get", "--print-value-only", key))
    vtep, copy = lease["BackendData"]["VtepMAC"], {**lease, "PublicIP": "10.10.10.77"}
    before = healthy.run(["bridge", "fdb", "show", "dev", "flannel.1"]).stdout

    overlay.etcd.etcdctl("put", "/coreos.com/network/subnets/10.100.0.0-28", json.dumps(copy))
    overlay.wait_status(healthy, lambda status: bool(status.refused_peers), "refuses the copy")

    (said,) = examine(healthy)["peers-refused"]["evidence"]
    name = peer["host_name"]
    assert said.startswith(f"10.100.0.0/28 at {name} (10.10.10.77): its VtepMAC {vtep} is also that of")
    assert f"also that of {peer['subnet']} at {name} ({peer['public_ip']}), which published it first" in said
    assert healthy.run(["bridge", "fdb", "show", "dev", "flannel.1"]).stdout == before
    assert peer["public_ip"] in before
    overlay.etcd.etcdctl("del", "/coreos.com/network/subnets/10.100.0.0-28")
    overlay.wait_status(healthy, lambda status: not status.refused_peers, "refuses no peer")


def test_two_running_hosts_with_one_address_are_reported_once(overlay, healthy: Host) -> None:
    """Both hosts report the common address, with a remedy."""
    other = overlay.hosts["docker4"]
    overlay.daemons[other.name] = other.start_flanneld(
        f"--store={overlay.etcd.url}", f"--public-ip={healthy.address}", "--iface=eth0"
    )
    for host in (healthy, other):
        overlay.wait_status(host, lambda status: bool(status.refused_peers), "refuses the other")

        found = json.loads(host.run(["flannelctl", "--json", "doctor"], check=False).stdout)["findings"]

        words = ("share an address", "an address of this host")
        told = [one for one in found if any(word in json.dumps(one) for word in words)]
        assert [one["code"] for one in told] == ["peers-refused"]
        assert "give one of them its own address (--public-ip, --iface)" in told[0]["evidence"][0]
    other.flannelctl("--store", overlay.etcd.url, "cleanup")
    overlay.wait_status(  # a deleted lease remains valid for some seconds
        healthy, lambda status: not status.refused_peers and not status.warnings, "refuses no peer"
    )


def test_an_invalid_network_config_is_reported_with_the_valid_values(overlay, healthy: Host) -> None:
    before = healthy.flannelctl("config", "get").strip()
    overlay.etcd.etcdctl("put", "/coreos.com/network/config", before.replace("{", '{"SubnetLen":"24",', 1))
    overlay.wait_status(healthy, lambda status: bool(status.warnings), "warns")

    found = examine(healthy)["bad-config"]

    overlay.etcd.etcdctl("put", "/coreos.com/network/config", before)
    assert found["cause"].endswith('waits for a valid network config: not a prefix length: SubnetLen="24"')
    assert found["fix"].startswith(
        "Write SubnetLen as a whole number without quotes, for example 24 for /24."
    )
    assert found["fix"].endswith("'flannelctl config set FILE' writes it.")
    overlay.wait_status(healthy, lambda status: not status.warnings, "warns of nothing")


def test_an_unknown_key_is_reported_once_in_each_place(overlay, healthy: Host) -> None:
    """The key is accepted, as by the original, and the host is ready."""
    before = healthy.flannelctl("config", "get").strip()
    overlay.etcd.etcdctl("put", "/coreos.com/network/config", before.replace("{", '{"SubnetLne":20,', 1))
    text = "SubnetLne has no effect: the network config knows Network, SubnetLen, "
    status = overlay.wait_status(
        healthy, lambda status: any(text in note for note in status.backend.notes), "has a note of it"
    )

    found = [one for one in examine(healthy).values() if text in one["cause"]]

    overlay.etcd.etcdctl("put", "/coreos.com/network/config", before)
    assert status.is_ready
    assert [one["code"] for one in found] == ["backend-note"]
    assert overlay.log(healthy).count(text) == 1
    overlay.wait_status(healthy, lambda status: not status.backend.notes, "has no note of it")


def test_a_drop_policy_of_iptables_is_harmless_only_with_accept_rules(overlay, healthy: Host) -> None:
    """Docker sets the policy DROP for the chain FORWARD. Without pyflannel's accept rules, every packet is
    dropped.
    """
    healthy.run(["iptables", "-P", "FORWARD", "DROP"])
    assert not trouble(healthy)
    healthy.run(["iptables", "-P", "FORWARD", "ACCEPT"])
    other = overlay.hosts["docker4"]
    overlay.daemons[other.name] = other.start_flanneld(
        f"--store={overlay.etcd.url}", "--iptables-forward-rules=false"
    )
    other.run(["iptables", "-P", "FORWARD", "DROP"])

    found = examine(other, exit_code=1)["forward-dropped"]

    assert "iptables chain FORWARD in filter" in found["cause"]
    other.run(["sh", "-c", found["fix"]])
    assert not trouble(other)
    other.flannelctl("--store", overlay.etcd.url, "cleanup")


@pytest.mark.parametrize("kind", ["udp", "host-gw", "vxlan"])
def test_a_healthy_host_has_no_findings_with_any_backend(overlay, host: Host, kind: str) -> None:
    overlay.set_backend(kind)

    overlay.wait_status(
        host,
        lambda status: status.is_ready and status.backend.type == kind and not status.refused_peers,
        f"runs {kind}, and so do its peers",
    )
    assert not trouble(host)


def test_status_and_doctor_report_a_network_without_a_free_subnet(overlay, healthy: Host) -> None:
    """A host joins while another host has the only available subnet."""
    other = overlay.hosts["docker4"]
    before = overlay.etcd.etcdctl("get", "--print-value-only", f"{PREFIX}/config")
    only = str(healthy.lease().network_address)
    ends = {"SubnetMin": only, "SubnetMax": only}
    overlay.etcd.etcdctl("put", f"{PREFIX}/config", json.dumps({**json.loads(before), **ends}))
    overlay.daemons[other.name] = other.launch_flanneld(f"--store={overlay.etcd.url}")
    text = "no /28 is free in 10.100.0.0/16"
    status = overlay.wait_status(
        other, lambda status: bool(status.lease and status.lease.trouble), "has no lease"
    )

    found = examine(other, exit_code=1)

    assert status.lease.trouble.text == text
    assert text in other.flannelctl("status", check=False)
    assert found["no-free-subnet"]["cause"] == f"flanneld has no lease: {text}"
    assert "not-ready" not in found
    overlay.etcd.etcdctl("put", f"{PREFIX}/config", before.strip())
    overlay.wait_ready(other)
    assert not trouble(other)
    other.flannelctl("--store", overlay.etcd.url, "cleanup")


def has_only_the_note_of_the_mtu(status: Any) -> bool:
    """Return whether the change of the backend is complete. A change in progress has another note."""
    notes = status.backend.notes
    return len(notes) == 1 and "Backend.MTU" in notes[0]


def test_an_unusual_state_of_the_backend_is_reported(overlay, healthy: Host) -> None:
    """An MTU that the underlay does not support is an unusual state."""
    overlay.set_backend("vxlan", MTU=9000)
    overlay.wait_status(healthy, has_only_the_note_of_the_mtu, "notes only the MTU")

    found = examine(healthy)["backend-note"]

    assert found["severity"] == "info"
    assert "Backend.MTU is 9000, and eth0 carries up to 1500" in found["cause"]
    overlay.set_backend("vxlan")
    overlay.wait_status(healthy, lambda status: not status.backend.notes, "has no note")


def test_doctor_reports_the_object_that_another_program_keeps_changing(overlay, healthy: Host) -> None:
    delete = "while :; do ip address flush dev flannel.1 2>/dev/null; sleep 0.02; done"
    opponent = healthy.start(["sh", "-c", delete], name="opponent")
    try:
        overlay.wait_status(healthy, lambda status: bool(status.reconcile.held), "is in a fight", DEADLINE_S)
        named: list[dict[str, Any]] = []

        def is_named() -> bool:
            """Between two repairs, the fight is briefly invisible."""
            said = json.loads(healthy.flannelctl("--json", "doctor", check=False))
            named[:] = [one for one in said["findings"] if one["code"] == "fight"]
            return bool(named)

        wait_until(is_named, what="doctor names the fight", deadline_s=DEADLINE_S)
    finally:
        opponent.kill()

    assert named[0]["severity"] == "error"
    assert any("on flannel.1: missing" in line for line in named[0]["evidence"])


def test_an_unreachable_store_is_reported(overlay, healthy: Host) -> None:
    with paused(overlay.etcd_program):
        overlay.wait_status(healthy, lambda status: not status.store.is_connected, "misses it", DEADLINE_S)
        found = examine(healthy, exit_code=1)["store-away"]

    assert overlay.etcd.url in found["evidence"][0]
    again = overlay.wait_status(healthy, lambda status: status.is_ready, "is ready again", DEADLINE_S)
    assert again.store is not None
    assert again.store.last_error
    assert again.store.last_error_age_s is not None


def test_without_a_daemon_the_rest_of_the_host_is_examined(overlay, healthy: Host) -> None:
    overlay.daemons[healthy.name].kill()
    healthy.run(["ip", "route", "add", "10.100.250.0/28", "via", "10.10.10.77"])

    found = examine(healthy, exit_code=1)

    healthy.run(["ip", "route", "delete", "10.100.250.0/28"])
    assert found.keys() - {"backend-note"} == {"daemon-away", "left-by-original"}
    overlay.join(healthy)


def test_a_stopped_daemon_is_found_and_the_command_continues_it(overlay, healthy: Host) -> None:
    with paused(overlay.daemons[healthy.name]):
        found = examine(healthy, exit_code=1)["daemon-away"]
        healthy.run(["sh", "-c", found["fix"]])

        assert re.fullmatch(r"kill -CONT \d+", found["fix"])
        assert "is stopped" in found["cause"]
        assert examine(healthy).keys() <= {"backend-note"}


def test_a_program_that_sets_the_bridge_down_again_is_named(healthy: Host) -> None:
    loop = "while :; do ip link set br7 down; sleep 0.02; ip link set br7 up; done"
    program = healthy.start(["sh", "-c", loop], name="opponent")
    seen: dict[str, Any] = {}

    def is_found() -> bool:
        ran = healthy.run(["flannelctl", "--json", "doctor"], check=False)
        seen.update({one["code"]: one for one in json.loads(ran.stdout)["findings"]})
        return "bridge-unstable" in seen

    try:
        wait_until(is_found, what="doctor names the bridge", deadline_s=DEADLINE_S)
        healthy.run(["sh", "-c", seen["bridge-unstable"]["fix"]])
    finally:
        program.kill()
        healthy.run(["ip", "link", "set", "br7", "up"])

    counted, *named = seen["bridge-unstable"]["evidence"]
    assert re.fullmatch(r"ip monitor link: br7 was set down \d+ times during the examination", counted)
    assert any(line.endswith(f": sh -c {loop}") for line in named)
    assert seen["bridge-unstable"]["severity"] == "error"
    assert "unplanned-route" not in seen


_SILENT_ENGINE = """
ln -sf "$(command -v python3)" /run/dockerd
exec /run/dockerd -c '
import os, socket, time
listener = socket.socket(socket.AF_UNIX)
listener.bind("/run/docker.sock")
listener.listen()
open("/run/docker.pid", "w").write(str(os.getpid()))
time.sleep(1000)'
"""


def test_a_docker_engine_that_hangs_or_is_stopped_is_named(healthy: Host) -> None:
    """The command continues a stopped engine. Without a process, the file of its ID is no finding."""
    engine = healthy.start(["sh", "-c", _SILENT_ENGINE], name="dockerd")
    try:
        wait_until(
            lambda: healthy.run(["test", "-s", "/run/docker.pid"], check=False).returncode == 0,
            what="the engine listens",
            deadline_s=DEADLINE_S,
        )
        hanging = trouble(healthy)
        with paused(engine):
            stopped = trouble(healthy)
            healthy.run(["sh", "-c", stopped["docker-away"]["fix"]])
            state = healthy.run(["sh", "-c", "cat /proc/$(cat /run/docker.pid)/stat"]).stdout
    finally:
        engine.kill()

    assert list(hanging) == list(stopped) == ["docker-away"]
    assert "hangs" in hanging["docker-away"]["cause"]
    assert "is stopped" in stopped["docker-away"]["cause"]
    assert state.rpartition(") ")[2][0] == "S"
    assert trouble(healthy) == {}
    healthy.run(["rm", "/run/docker.pid", "/run/docker.sock", "/run/dockerd"])


def test_a_user_without_permission_gets_the_reason(healthy: Host) -> None:
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "flannelctl"]

    said = {
        verb: healthy.run([*nobody, *verb.split()], check=False)
        for verb in ("doctor", "status", "ping docker2", "trace 10.100.1.1")
    }

    assert "this user has no permission to ask flanneld" in said["doctor"].stdout
    assert "    do: Run flannelctl as root" in said["doctor"].stdout
    assert "peers" not in said["status"].stdout
    for verb in ("ping docker2", "trace 10.100.1.1"):
        assert said[verb].returncode == 3
        assert "Run flannelctl as root" in said[verb].stderr


def test_remains_of_the_original_are_found_on_a_host_without_pyflannel(overlay) -> None:
    """All remains are found, and doctor recommends cleanup."""
    host = overlay.hosts["docker3"]
    rules = "*filter\n:FLANNEL-FWD - [0:0]\n-A FORWARD -j FLANNEL-FWD\nCOMMIT\n"
    host.run(["iptables-restore", "--noflush"], text=rules)
    host.run(["ip", "link", "add", "flannel.1", "type", "vxlan", "id", "1", "dev", "eth0", "dstport", "8472"])

    found = examine(host, exit_code=1)["left-by-original"]

    assert found["evidence"] == ["link flannel.1", "iptables chain FLANNEL-FWD in filter"]
    assert found["fix"] == "flannelctl cleanup"
    host.flannelctl("--store", overlay.etcd.url, "cleanup", check=False)
    wait_until(
        lambda: examine(host, exit_code=1).keys() == {"daemon-away"},
        what="it is clean",
        deadline_s=DEADLINE_S,
    )


def plan(host: Host, *words: str, exit_code: int = 0) -> Any:
    ran = host.run(["flannelctl", "plan", "--json", *words], check=False)
    assert ran.returncode == exit_code, ran.stdout + ran.stderr
    return read_document(["plan"], ran.stdout)


def test_the_plan_of_another_config_is_shown_and_nothing_is_changed(overlay, healthy: Host) -> None:
    """A config that is invalid, or that the host would refuse, has no plan."""
    before = healthy.routes()
    assert plan(healthy) == {"waits_for": None, "changes": []}

    config = overlay.config(SubnetLen=28, Backend={"Type": "vxlan", "MTU": 1400})
    changes = {one["text"]: one["action"] for one in plan(healthy, "--config", config)["changes"]}
    assert changes["link flannel.1: mtu 1450, wanted 1350"] == "change"
    assert "file /run/flannel/subnet.env: its text differs" in changes

    config = overlay.config(SubnetLen=28, Backend={"Type": "host-gw"})
    shown = healthy.flannelctl("plan", "--config", config).splitlines()
    assert shown[-1].endswith(" to remove")
    elsewhere = json.dumps({"Network": "10.200.0.0/16"})
    refused = plan(healthy, "--config", elsewhere, exit_code=2)["error"]["message"]
    assert refused.startswith("this host would keep its config, and wait for a network config that admits")
    assert plan(healthy, "--config", "{", exit_code=2)["error"]
    assert plan(healthy) == {"waits_for": None, "changes": []}
    assert healthy.routes() == before


def test_events_are_followed_while_they_happen(healthy: Host) -> None:
    """The damage is repeated until flannelctl has started."""
    program = healthy.start(["flannelctl", "events", "--since", "0s", "--follow"], name="events")
    shown = healthy.directory / "log/events.log"

    def is_shown() -> bool:
        healthy.run(["ip", "link", "set", "flannel.1", "mtu", "1234"])
        return "mtu 1234" in shown.read_text()

    try:
        wait_until(is_shown, what="the repair is shown", deadline_s=DEADLINE_S)
    finally:
        program.kill()
    lines = [line for line in shown.read_text().splitlines() if "mtu 1234" in line]
    assert lines[0].endswith("  repaired  link flannel.1: mtu 1234, wanted 1450")


FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)


def test_a_clock_that_differs_from_those_of_the_peers_is_reported(healthy: Host) -> None:
    """The clock of flannelctl is changed. The clock of the machine, with which the peer answers, does not
    change.
    """
    if FAKETIME is None:
        pytest.skip("needs libfaketime: scripts/setup --faults")
    variables = [f"LD_PRELOAD={FAKETIME}", "FAKETIME=+90s", "FAKETIME_DONT_FAKE_MONOTONIC=1"]

    ran = healthy.run(["env", *variables, "flannelctl", "doctor", "--json"], check=False)

    (found,) = [one for one in read_document(["doctor"], ran.stdout)["findings"] if one["severity"] != "info"]
    assert (found["code"], found["severity"]) == ("clock-skew", "warning")
    (line,) = found["evidence"]
    assert re.fullmatch(r"the clock of 10\.10\.10\.102 is (89|90|91) s behind the clock of this host", line)


def test_an_ipsec_policy_without_security_association_is_found(healthy: Host) -> None:
    policy = "src 10.10.10.101 dst 10.10.10.102 dir out"
    template = "tmpl src 10.10.10.101 dst 10.10.10.102 proto esp mode tunnel"
    healthy.run(["sh", "-c", f"ip xfrm policy add {policy} {template}"])
    try:
        found = examine(healthy, exit_code=1)
        assert "ipsec-no-association" in found
        missing = "ip xfrm state: no entry with src 10.10.10.101 dst 10.10.10.102"
        assert missing in found["ipsec-no-association"]["evidence"]
        assert "peers-silent" not in found

        ends = "src 10.10.10.101 dst 10.10.10.102"
        healthy.run(["sh", "-c", f"ip xfrm state allocspi {ends} proto esp"])
        assert "ipsec-no-association" not in examine(healthy, exit_code=1)
        healthy.run(["sh", "-c", found["ipsec-no-association"]["fix"]])
        assert trouble(healthy) == {}
    finally:
        healthy.run(["sh", "-c", "ip xfrm policy flush; ip xfrm state flush"], check=False)


def test_ipsec_policies_that_refuse_unencrypted_packets_are_found(healthy: Host) -> None:
    policies = (
        "src 10.10.10.102 dst 10.10.10.101 dir in",
        "src 10.100.0.0/16 dst 10.100.0.0/16 dir fwd",
    )
    template = "tmpl proto esp mode transport level required"
    healthy.run(["sh", "-c", "; ".join(f"ip xfrm policy add {one} {template}" for one in policies)])
    try:
        found = examine(healthy, exit_code=1)
        assert {code for code, one in found.items() if one["severity"] == "error"} == {"ipsec-no-association"}
        nouns = "tunnel packets of peers to UDP port 8472 and packets of 10.100.0.0/16"
        assert found["ipsec-no-association"]["cause"].endswith(f"the kernel drops {nouns}")
        healthy.run(["sh", "-c", found["ipsec-no-association"]["fix"]])
        assert trouble(healthy) == {}
    finally:
        healthy.run(["ip", "xfrm", "policy", "flush"], check=False)
