"""flannelctl doctor names settings and links of the host that stop packets, and its commands repair them."""

import json
import os
from typing import NamedTuple

import pytest

from pyflannel.lab.topology import Host
from pyflannel.lab.waiting import wait_until
from testlab.doctor import joined_pair, problems
from testlab.overlay import Overlay

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")


class Fault(NamedTuple):
    """A fault, its reversal, and the only finding about it."""

    do: str
    undo: str
    code: str
    severity: str
    evidence: str
    fix: str


FAULTS = [
    Fault(
        do="sysctl -qw net.ipv4.ip_default_ttl=1",
        undo="sysctl -qw net.ipv4.ip_default_ttl=64",
        code="ttl-low",
        severity="error",
        evidence="net.ipv4.ip_default_ttl = 1",
        fix="sysctl -w net.ipv4.ip_default_ttl=64",
    ),
    Fault(
        do="sysctl -qw net.ipv4.ipfrag_low_thresh=0 net.ipv4.ipfrag_high_thresh=0",
        undo="sysctl -qw net.ipv4.ipfrag_high_thresh=4194304",
        code="fragments-dropped",
        severity="error",
        evidence="net.ipv4.ipfrag_high_thresh = 0",
        fix="sysctl -w net.ipv4.ipfrag_high_thresh=4194304",
    ),
    Fault(
        do="ip link add link eth0 name passthru0 type macvlan mode passthru; ip link set passthru0 up",
        undo="ip link delete passthru0 2>/dev/null",
        code="frames-taken",
        severity="error",
        evidence="ip -details link show passthru0: above eth0, mode passthru",
        fix="ip link delete passthru0",
    ),
]


@pytest.fixture(scope="module")
def host(overlay: Overlay) -> Host:
    """One of two hosts of a udp network on one link, with a bridge like Docker's."""
    host = joined_pair(overlay, "udp")[0]
    wait_until(lambda: problems(host) == [], what="doctor finds nothing", deadline_s=60.0)
    return host


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.evidence)
def test_a_setting_is_the_only_finding_and_its_command_repairs_it(host: Host, fault: Fault) -> None:
    host.run(["sh", "-c", fault.do])
    try:
        (found,) = problems(host)
        assert (found["code"], found["severity"]) == (fault.code, fault.severity)
        assert found["evidence"][0] == fault.evidence
        assert found["fix"] == fault.fix
        host.run(["sh", "-c", found["fix"]])
        wait_until(lambda: problems(host) == [], what="the command repairs the fault", deadline_s=20.0)
    finally:
        host.run(["sh", "-c", fault.undo], check=False)


def test_a_lost_address_is_named_with_its_prefix_length(host: Host) -> None:
    """Without an address, the link has no prefix that shows the length."""
    gateway = host.run(["ip", "route", "show", "default"]).stdout.split()[2]
    (link,) = json.loads(host.run(["ip", "-json", "-4", "address", "show", "dev", "eth0"]).stdout)
    address = f"{host.address}/{link['addr_info'][0]['prefixlen']}"
    host.run(["ip", "address", "delete", address, "dev", "eth0"])
    try:
        errors = {one["code"]: one for one in problems(host) if one["severity"] == "error"}
        assert errors.keys() == {"address-gone"}, errors
        error = errors["address-gone"]
        assert error["fix"].startswith(f"ip address add {address} dev eth0  # then add the default route")
        host.run(["sh", "-c", error["fix"]])
    finally:
        host.run(["ip", "address", "replace", address, "dev", "eth0"])
        host.run(["ip", "route", "replace", "default", "via", gateway])
    wait_until(lambda: problems(host) == [], what="doctor finds nothing again", deadline_s=60.0)


_ENGINE = """
ln -sf "$(command -v sleep)" /run/dockerd
/run/dockerd 1000 &
echo $! >/run/docker.pid
wait
"""


def test_packets_of_containers_that_no_rule_masquerades_are_found(host: Host) -> None:
    """The router has no route to the subnet of the host."""
    network = "10.100.0.0/16"
    link = "ip link add port7 type veth peer name end7; ip link set end7 up; ip link set port7 mtu 1472"
    host.run(["sh", "-c", f"{link}; ip link set port7 master br7 up"])
    assert problems(host) == []
    engine = host.start(["sh", "-c", _ENGINE], name="dockerd")
    try:
        wait_until(lambda: problems(host) != [], what="doctor finds the fault", deadline_s=60.0)
        (found,) = problems(host)
        rule = f"POSTROUTING -s {host.lease()} ! -d {network} -j MASQUERADE"
        assert found["code"] == "not-masqueraded"
        assert found["fix"].startswith(f"iptables -t nat -A {rule}  # ")
        host.run(["sh", "-c", found["fix"]])
        assert problems(host) == []
        host.run(["sh", "-c", f"iptables -t nat -D {rule}"])
    finally:
        engine.kill()
        host.run(["sh", "-c", "ip link delete port7; rm -f /run/docker.pid /run/dockerd"], check=False)
