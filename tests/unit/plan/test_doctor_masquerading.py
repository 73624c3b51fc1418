"""The finding that nothing masquerades the packets of containers that leave the network."""

from ipaddress import IPv4Address

import pytest
from msgspec.structs import replace

from pyflannel.model.host import DefaultRoute, Interfaces
from pyflannel.model.packet_filter import NftChain, NftTable
from pyflannel.model.probe import SILENT, EchoResult
from pyflannel.plan.doctor.findings import findings
from pyflannel.plan.doctor.masquerading import gateway_without_masquerading
from pyflannel.plan.doctor.observed import DockerEngine, Observed
from testlab.healthy_host import HEALTHY, LINKS, found, iptables

GATEWAY, REACHED = IPv4Address("10.0.0.254"), EchoResult(state="reached", rtt_s=0.001)
ROUTES = (DefaultRoute(link="eth0", gateway=GATEWAY),)
LACKING = replace(
    HEALTHY,
    docker=DockerEngine(pid=7),
    ports={"docker0": {"veth1": 1450}},
    interfaces=Interfaces(interfaces=LINKS, default_routes=ROUTES),
    gateway_answers=(REACHED, SILENT),
)
"""A host with a container of Docker whose packets no rule masquerades."""

TABLE = NftTable(
    family=4,
    device="flannel0",
    chains=(NftChain(name="p", kind="nat", hook="postrouting", priority=100, rules=()),),
)


def rules(*lines: str) -> Observed:
    return replace(LACKING, ruleset=iptables(":POSTROUTING ACCEPT [0:0]", *lines, table="nat"))


def test_packets_that_no_rule_masquerades_are_named() -> None:
    one = found(LACKING)

    assert (one.code, one.severity) == ("not-masqueraded", "warning")
    assert one.evidence[1].startswith("the gateway 10.0.0.254 answers the public address of this host")
    assert one.fix.startswith(
        "iptables -t nat -A POSTROUTING -s 10.100.15.0/24 ! -d 10.100.0.0/16 -j MASQUERADE  # "
    )


@pytest.mark.parametrize(
    ("line", "is_masqueraded"),
    [
        ("-A POSTROUTING -s 10.100.15.0/24 ! -o docker0 -j MASQUERADE", True),
        ("-A POSTROUTING -s 10.100.0.0/16 ! -d 10.100.0.0/16 -j SNAT --to-source 10.0.0.1", True),
        ("-A POSTROUTING -m unknown --some thing -j MASQUERADE", True),
        ("-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE", False),
        ("-A POSTROUTING -s 10.100.15.0/24 -d 10.100.0.0/16 -j MASQUERADE", False),
        ("-A POSTROUTING -s 10.100.15.0/24 -j RETURN", False),
    ],
)
def test_a_rule_that_may_masquerade_the_packets_is_sufficient(line: str, is_masqueraded: bool) -> None:
    assert gateway_without_masquerading(rules(line)) == (None if is_masqueraded else GATEWAY)


@pytest.mark.parametrize(
    "seen",
    [
        replace(LACKING, docker=None),
        replace(LACKING, docker=DockerEngine(pid=7, is_stopped=True)),
        replace(LACKING, ports={"docker0": {}}),
        replace(LACKING, interfaces=Interfaces(interfaces=LINKS)),
        replace(LACKING, items=(*LACKING.items, TABLE)),
        replace(LACKING, gateway_answers=None),
        replace(LACKING, gateway_answers=(REACHED, REACHED)),
        replace(LACKING, gateway_answers=(SILENT, SILENT)),
    ],
)
def test_a_host_that_intends_or_needs_no_masquerading_has_no_finding(seen: Observed) -> None:
    """For example, the gateway has a route to the subnet, or flanneld masquerades."""
    assert "not-masqueraded" not in [one.code for one in findings(seen)]
