"""flannelctl doctor names routes, policy rules and queueing disciplines that divert or drop single packets,
with the command that deletes exactly these objects.
"""

import os
from typing import NamedTuple

import pytest

from pyflannel.lab.topology import Host
from pyflannel.lab.waiting import wait_until
from testlab.doctor import joined_pair, problems
from testlab.overlay import Overlay

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")


class Fault(NamedTuple):
    """A fault, and the finding about it. `evidence` and `fix` are the beginnings of its lines.

    The texts may contain {own} and {peer}, the subnets of the two hosts, {container}, the address of a
    container of this host, and {here} and {there}, the addresses of the hosts on the underlay.
    """

    do: str
    undo: str
    code: str
    evidence: str
    fix: str


FAULTS = [
    Fault(
        do="ip rule add from {peer} priority 300 unreachable",
        undo="ip rule delete priority 300",
        code="policy-rule",
        evidence="ip rule: 300: from {peer} unreachable",
        fix="ip rule delete priority 300 from {peer} unreachable",
    ),
    Fault(
        do="ip route add broadcast {container} dev br7 table local",
        undo="ip route delete broadcast {container} table local",
        code="overlay-address",
        evidence="ip -4 route show table local: broadcast {container} dev br7 scope link",
        fix="ip -4 route delete broadcast {container} dev br7 scope link table local",
    ),
    Fault(
        do="ip route add blackhole {container} table local",
        undo="ip route delete blackhole {container} table local",
        code="overlay-address",
        evidence="ip -4 route show table local: blackhole {container}",
        fix="ip -4 route delete blackhole {container} table local",
    ),
    Fault(
        do="ip route add default via 10.10.10.240 dev eth0 onlink table 147;"
        " ip rule add to {peer} lookup 147 priority 301",
        undo="ip rule delete priority 301; ip route flush table 147",
        code="policy-rule",
        evidence="ip -4 route show table 147: default via 10.10.10.240 dev eth0 onlink",
        fix="ip rule delete priority 301 from all to {peer} lookup 147",
    ),
    Fault(
        do="ip route add blackhole default table 148;"
        " ip rule add ipproto tcp sport 80 from {own} lookup 148 priority 302",
        undo="ip rule delete priority 302; ip route flush table 148",
        code="policy-rule",
        evidence="ip -4 route show table 148: blackhole default",
        fix="ip rule delete priority 302 from {own} ipproto tcp sport 80 lookup 148",
    ),
    Fault(
        do="ip route add blackhole default table 125;"
        " ip rule add from {here} to {there} lookup 125 priority 303",
        undo="ip rule delete priority 303; ip route flush table 125",
        code="underlay-unsent",
        evidence="ip rule: 303: from {here} to {there} lookup 125",
        fix="ip rule delete priority 303 from {here} to {there} lookup 125",
    ),
    Fault(
        do="ip route add {there}/32 via 10.10.10.240 dev eth0 onlink",
        undo="ip route delete {there}/32",
        code="no-neighbour",
        evidence="ip -4 route show match {there}: {there} via 10.10.10.240 dev eth0 onlink",
        fix="ip -4 route delete {there} via 10.10.10.240 dev eth0 onlink",
    ),
    Fault(
        do="ip link add port7 type veth peer name end7; ip link set end7 up;"
        " ip link set port7 master br7 up; tc qdisc add dev br7 root blackhole;"
        " ping -c 1 -W 0.2 {container}",
        undo="ip link delete port7; tc qdisc delete dev br7 root",
        code="link-shaped",
        evidence="tc -statistics qdisc show dev br7: blackhole has dropped ",
        fix="tc qdisc delete dev br7 root",
    ),
]


@pytest.fixture(scope="module")
def pair(overlay: Overlay) -> list[Host]:
    """Two hosts of a host-gw network on one link; the first has a bridge like Docker's."""
    hosts = joined_pair(overlay, "host-gw")
    wait_until(lambda: problems(hosts[0]) == [], what="doctor finds nothing", deadline_s=60.0)
    return hosts


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.evidence)
def test_a_route_or_a_rule_is_named_with_the_command_that_deletes_it(pair: list[Host], fault: Fault) -> None:
    host, peer = pair
    own = host.lease()
    names = {
        "own": own,
        "container": own[2],
        "peer": peer.lease(),
        "here": host.address,
        "there": peer.address,
    }
    do, undo, code, evidence, fix = (text.format(**names) for text in fault)
    host.run(["sh", "-c", do], check=False)
    try:
        (found,) = problems(host)
        assert found["code"] == code
        assert [line for line in found["evidence"] if line.startswith(evidence)]
        assert found["fix"].startswith(fix)
        host.run(["sh", "-c", found["fix"]])
        wait_until(lambda: problems(host) == [], what="the command repairs the fault", deadline_s=20.0)
    finally:
        host.run(["sh", "-c", undo], check=False)
