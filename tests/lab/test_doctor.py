"""flannelctl doctor on real hosts: it finds each fault, with evidence and a command that repairs it."""

import json
import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from pyflannel.lab.topology import Host
from pyflannel.lab.waiting import wait_until
from testlab.doctor import DEADLINE_S, examine, joined_pair, problems, without_problems
from testlab.documents import read_document
from testlab.faults import paused

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")


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
    return joined_pair(overlay, "vxlan")[0]


@pytest.fixture
def healthy(overlay, host: Host) -> Iterator[Host]:
    """The host without findings, before and after the test."""
    with without_problems(overlay, host):
        yield host


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
        assert problems(healthy) == []
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
    assert found["fix"].endswith("  # only if they are no remedy, and no program uses them")


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


def test_a_drop_policy_of_iptables_is_harmless_only_with_accept_rules(overlay, healthy: Host) -> None:
    """Docker sets the policy DROP for the chain FORWARD. Without pyflannel's accept rules, every packet is
    dropped.
    """
    healthy.run(["iptables", "-P", "FORWARD", "DROP"])
    assert not problems(healthy)
    healthy.run(["iptables", "-P", "FORWARD", "ACCEPT"])
    other = overlay.hosts["docker4"]
    overlay.daemons[other.name] = other.start_flanneld(
        f"--store={overlay.etcd.url}", "--iptables-forward-rules=false"
    )
    other.run(["iptables", "-P", "FORWARD", "DROP"])

    found = examine(other, exit_code=1)["forward-dropped"]

    assert "iptables chain FORWARD in filter" in found["cause"]
    other.run(["sh", "-c", found["fix"]])
    assert not problems(other)
    other.flannelctl("--store", overlay.etcd.url, "cleanup")


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
        (hanging,) = problems(healthy)
        with paused(engine):
            (stopped,) = problems(healthy)
            healthy.run(["sh", "-c", stopped["fix"]])
            state = healthy.run(["sh", "-c", "cat /proc/$(cat /run/docker.pid)/stat"]).stdout
    finally:
        engine.kill()

    assert hanging["code"] == stopped["code"] == "docker-away"
    assert "hangs" in hanging["cause"]
    assert "is stopped" in stopped["cause"]
    assert state.rpartition(") ")[2][0] == "S"
    assert problems(healthy) == []
    healthy.run(["rm", "/run/docker.pid", "/run/docker.sock", "/run/dockerd"])


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
        assert problems(healthy) == []
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
        assert problems(healthy) == []
    finally:
        healthy.run(["ip", "xfrm", "policy", "flush"], check=False)
