"""The findings of doctor about the store: its answers, its certificates, and the clocks of hosts."""

from ipaddress import IPv4Address

import pytest
from msgspec.structs import replace

from pyflannel.model.netfilter import Ruleset
from pyflannel.model.status import (
    Finding,
    Severity,
    StoreStatus,
    StoreTimes,
)
from pyflannel.plan.doctor.clocks import clock_findings
from pyflannel.plan.doctor.findings import findings
from pyflannel.plan.doctor.observed import Certificate
from pyflannel.plan.doctor.store import SLOW_S, store_findings, under_their_cause
from testlab.healthy_host import HEALTHY, iptables

NOW = 1_900_000_000.0
READY = replace(HEALTHY.status, store=StoreStatus(url="etcd://10.0.0.1:2379", is_connected=True))


def test_an_unreachable_cluster_is_asked_with_the_tool_of_kubernetes() -> None:
    away = StoreStatus(url="kube:", last_error="the API server does not answer")
    (found, *_) = findings(replace(HEALTHY, status=replace(READY, is_ready=False, store=away)))

    assert found.code == "store-away"
    assert found.fix == "kubectl get --raw /readyz  # asks the API server"


def certificate(*, begins_d: float = -300, ends_d: float) -> Certificate:
    """Return a certificate with this validity, in days from now."""
    begins, ends = NOW + begins_d * 86400, NOW + ends_d * 86400
    return Certificate(path="/etc/tls.pem", noun="client certificate", not_before=begins, not_after=ends)


@pytest.mark.parametrize(
    ("one", "code", "cause"),
    [
        (certificate(ends_d=-1), "certificate-invalid", "has expired"),
        (certificate(begins_d=1, ends_d=300), "certificate-invalid", "is not valid yet"),
        (certificate(ends_d=12), "certificate-expires", "expires in 12 days"),
    ],
)
def test_a_certificate_that_is_not_valid_for_long_is_named(one: Certificate, code: str, cause: str) -> None:
    (found,) = findings(replace(HEALTHY, certificates=(one,), now=NOW))

    assert (found.code, found.severity == "error") == (code, code == "certificate-invalid")
    assert cause in found.cause
    assert found.evidence[0].startswith("/etc/tls.pem: valid ")
    assert "/etc/tls.pem" in found.fix


def test_a_certificate_that_is_valid_for_months_is_no_finding() -> None:
    assert findings(replace(HEALTHY, certificates=(certificate(ends_d=90),), now=NOW)) == ()


def test_clocks_of_peers_that_differ_are_named() -> None:
    one, two, three = (IPv4Address(f"10.0.0.{number}") for number in (2, 3, 4))
    assert list(clock_findings({one: 0.4, two: -4.9})) == []

    (found,) = clock_findings({one: 0.1, two: 63.0, three: -0.1})
    assert found.cause.startswith("the clocks of 1 of 3 peers differ from the clock of this host")
    assert found.evidence == ("the clock of 10.0.0.3 is 63 s ahead of the clock of this host",)

    (found,) = clock_findings({one: -90.0, two: -91.0, three: -90.5})
    assert found.cause.startswith("the clock of this host is 90 s ahead of the clocks of 3 of 3 peers")


def test_a_slow_store_is_found_by_its_fastest_answer() -> None:
    store = StoreStatus(url="etcd://10.0.0.1:2379/net", is_connected=True, answer_age_s=61.4)
    status = replace(READY, store=store)

    def found(*answered_s: float, failure: str | None = None) -> list[Finding]:
        return list(store_findings(status, StoreTimes(answered_s=answered_s, failure=failure)))

    (slow,) = found(0.81, 0.3, 0.7)
    assert (slow.code, slow.severity) == ("store-slow", "warning")
    assert slow.evidence == (
        "etcd://10.0.0.1:2379/net: requests answered in 810 ms, 300 ms, 700 ms",
        "latest answer to flanneld: 61 s before these requests",
    )
    assert slow.fix.startswith("ping -c 3 10.0.0.1  # ")
    assert found(2.0, SLOW_S, 2.0) == []  # a single slow answer shows a busy host, not a slow store
    (silent,) = found(failure="no answer within 1.8 s")
    assert silent.cause.startswith("the store answers no request: ")
    assert silent.evidence[0] == "etcd://10.0.0.1:2379/net: a request failed: no answer within 1.8 s"
    (partly,) = found(0.01, failure="no answer within 1.8 s")
    assert len(partly.evidence) == 3


def test_a_store_that_is_unreachable_or_was_not_measured_is_not_called_slow() -> None:
    slow = StoreTimes(answered_s=(2.0, 2.0, 2.0))
    away = replace(READY, store=StoreStatus(url="etcd://10.0.0.1:2379"))

    assert list(store_findings(READY, slow)) != []
    assert list(store_findings(away, slow)) == []
    assert list(store_findings(READY, None)) == []


@pytest.mark.parametrize(
    ("url", "command"),
    [
        ("etcd://10.0.0.1:2379,10.0.0.2:2379/net", "ping -c 3 10.0.0.1"),
        ("etcds://[fd00::1]:2379", "ping -c 3 fd00::1"),
        ("kube:", "kubectl get --raw /readyz"),
        ("sqlite:///var/lib/flannel/store.db", "iostat -x 1 3"),
    ],
)
def test_the_remedy_for_a_slow_store_examines_its_path_or_its_disk(url: str, command: str) -> None:
    status = replace(READY, store=StoreStatus(url=url, is_connected=True))

    (found,) = store_findings(status, StoreTimes(failure="no answer within 1.8 s"))

    assert found.fix.partition("  #")[0] == command


def test_a_store_that_refuses_requests_is_an_error_with_its_remedy() -> None:
    status = replace(READY, store=StoreStatus(url="etcd://10.0.0.1:2379", is_connected=True))
    failure = "etcd at 10.0.0.1:2379 refused: user name is empty"

    (found,) = store_findings(status, StoreTimes(failure=failure, remedy="Set --etcd-username."))

    assert (found.code, found.severity, found.fix) == ("store-refuses", "error", "Set --etcd-username.")
    assert failure in found.cause


@pytest.mark.parametrize(
    ("rules", "noun", "fix"),
    [
        (
            iptables(":OUTPUT ACCEPT", "-A OUTPUT -p tcp -m tcp --dport 2379 -j REJECT"),
            "rejects packets to the store at 10.0.0.9 port 2379",
            "iptables -I OUTPUT -p tcp --dport 2379 -j ACCEPT",
        ),
        (
            iptables(":INPUT ACCEPT", "-A INPUT -s 10.0.0.9/32 -j DROP"),
            "drops replies of the store at 10.0.0.9 port 2379",
            "iptables -I INPUT -p tcp --sport 2379 -j ACCEPT",
        ),
    ],
)
def test_a_rule_against_the_packets_to_the_store_is_the_cause_of_its_silence(
    rules: Ruleset, noun: str, fix: str
) -> None:
    away = StoreStatus(url="etcd://10.0.0.9:2379", last_error="connection refused")
    status = replace(HEALTHY.status, store=away, is_ready=False)
    seen = replace(HEALTHY, status=status, ruleset=rules, lost_stores=((IPv4Address("10.0.0.9"), 2379),))

    (found,) = under_their_cause(findings(seen))

    assert (found.code, found.severity, found.fix) == ("store-dropped", "error", fix)
    assert noun in found.cause
    assert "etcd://10.0.0.9:2379: connection refused" in found.evidence
    assert under_their_cause(findings(replace(seen, ruleset=())))[0].code == "store-away"


@pytest.mark.parametrize(
    ("code", "severity", "left"),
    [
        ("ttl-low", "error", ["ttl-low"]),
        ("address-taken", "error", ["address-taken"]),
        ("ttl-low", "warning", ["ttl-low", "store-away"]),
    ],
)
def test_a_fault_of_all_packets_explains_that_the_store_does_not_respond(
    code: str, severity: Severity, left: list[str]
) -> None:
    cause = Finding(code=code, severity=severity, cause="packets are lost", fix="repair it")
    away = Finding(code="store-away", severity="error", cause="the store does not respond", fix="ping it")

    found = under_their_cause((cause, away))

    assert [one.code for one in found] == left
    assert ("consequence: the store does not respond" in found[0].evidence) is (len(left) == 1)


def test_requests_that_fail_without_an_address_are_a_consequence() -> None:
    """The watch may still seem open."""
    gone = Finding(code="address-gone", severity="error", cause="the address is gone", fix="add it")
    refuses = Finding(code="store-refuses", severity="error", cause="requests fail", fix="ask it")

    (found,) = under_their_cause((gone, refuses))

    assert (found.code, found.evidence) == ("address-gone", ("consequence: requests fail",))
