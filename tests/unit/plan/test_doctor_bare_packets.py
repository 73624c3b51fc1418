"""The finding about packets with addresses of containers that the underlay drops."""

from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyflannel.model.lease import LeaseEntry
from pyflannel.model.probe import SILENT, EchoResult
from pyflannel.model.status import Finding
from pyflannel.plan.doctor.bare_packets import BareProbe, bare_findings

OWN, SOURCE, HERE = IPv4Network("10.100.15.0/24"), IPv4Address("10.100.15.1"), IPv4Address("10.0.0.1")
PEER = LeaseEntry(
    subnet=IPv4Network("10.100.16.0/24"), public_ip=IPv4Address("10.0.0.2"), host_name="docker2"
)
UNSENT = EchoResult(state="unsent", text="no permission")


def expired(sender: IPv4Address) -> EchoResult:
    return EchoResult(state="rejected", text="TTL exceeded", sender=sender)


ANSWERED, OF_ROUTER = expired(PEER.public_ip), expired(IPv4Address("10.0.0.254"))


def findings(*probes: BareProbe) -> list[Finding]:
    return list(bare_findings(probes, OWN, SOURCE, HERE, "eth0"))


def test_the_sender_whose_packets_are_lost_is_named() -> None:
    (one,) = findings(BareProbe(PEER, ANSWERED, SILENT), BareProbe(PEER, ANSWERED, ANSWERED))

    assert (one.code, one.severity) == ("overlay-filtered", "error")
    assert "from this host to 1 of 2 peers" in one.cause
    assert one.evidence == (
        "from 10.100.15.1 to 10.100.16.0/24 at docker2 (10.0.0.2): no answer; from 10.0.0.1: arrives",
    )
    assert one.fix.startswith("tcpdump -ni eth0 src net 10.100.15.0/24  # on docker2")


@pytest.mark.parametrize(
    ("usual", "bare", "is_lost"),
    [
        (ANSWERED, SILENT, True),
        (ANSWERED, OF_ROUTER, True),
        (expired(PEER.subnet[1]), SILENT, True),
        (ANSWERED, ANSWERED, False),
        (ANSWERED, expired(PEER.subnet[1]), False),
        (ANSWERED, UNSENT, False),
        (SILENT, SILENT, False),
        (OF_ROUTER, SILENT, False),
    ],
)
def test_packets_are_lost_only_if_packets_from_the_public_address_arrive(
    usual: EchoResult, bare: EchoResult, is_lost: bool
) -> None:
    assert bool(findings(BareProbe(PEER, usual, bare))) is is_lost


@given(st.sampled_from([ANSWERED, OF_ROUTER, SILENT, UNSENT]))
def test_a_sender_with_the_same_answers_as_the_public_address_is_no_finding(result: EchoResult) -> None:
    assert findings(BareProbe(PEER, result, result)) == []
