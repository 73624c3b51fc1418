"""The findings of doctor about IPsec policies."""

from ipaddress import IPv4Address, IPv4Network
from typing import Literal

import pytest
from msgspec.structs import replace

from pyflannel.model.host import Interfaces, IpsecEnds, IpsecPolicy
from pyflannel.plan.doctor.findings import findings
from pyflannel.plan.doctor.observed import Observed
from testlab.healthy_host import HEALTHY, HERE, LINKS, THERE, found


def policy(
    direction: Literal["in", "out", "forward"], source: str, destination: str, **more: object
) -> IpsecPolicy:
    made = IpsecPolicy(
        direction=direction,
        source=IPv4Network(source),
        destination=IPv4Network(destination),
        priority=100,
        is_block=True,
    )
    return replace(made, **more)


def with_policies(*policies: IpsecPolicy) -> Observed:
    return replace(HEALTHY, interfaces=Interfaces(interfaces=LINKS, policies=policies))


ANY, THERE_32 = "0.0.0.0/0", "10.0.0.2/32"


@pytest.mark.parametrize(
    ("one", "evidence", "fix"),
    [
        (
            policy("out", "10.0.0.1/32", "10.0.0.2/32", protocol=17, port=8472, port_mask=0xFFFF),
            "src 10.0.0.1/32 dst 10.0.0.2/32 proto udp dport 8472 dir out action block priority 100",
            "ip xfrm policy delete src 10.0.0.1/32 dst 10.0.0.2/32 proto udp dport 8472 dir out",
        ),
        (
            policy("in", "10.0.0.2/32", ANY),
            "src 10.0.0.2/32 dst 0.0.0.0/0 dir in action block priority 100",
            "ip xfrm policy delete src 10.0.0.2/32 dst 0.0.0.0/0 dir in",
        ),
        (
            policy("forward", "10.100.0.0/16", "10.100.0.0/16", protocol=6),
            "src 10.100.0.0/16 dst 10.100.0.0/16 proto tcp dir fwd action block priority 100",
            "ip xfrm policy delete src 10.100.0.0/16 dst 10.100.0.0/16 proto tcp dir fwd",
        ),
        (
            policy("out", ANY, ANY, priority=1 << 32),
            "ip xfrm policy getdefault: out: block",
            "ip xfrm policy setdefault out accept",
        ),
    ],
)
def test_an_ipsec_policy_that_drops_packets_is_named(one: IpsecPolicy, evidence: str, fix: str) -> None:
    finding = found(with_policies(one))

    assert (finding.code, finding.severity) == ("ipsec-block", "error")
    assert evidence in finding.evidence[0]
    assert finding.fix.startswith(fix)


OUTWARD, INWARD = IpsecEnds(source=HERE, destination=THERE), IpsecEnds(source=THERE, destination=HERE)

ENCRYPTED = policy("out", "10.0.0.1/32", "10.0.0.2/32", is_block=False, ends=(OUTWARD,))


def test_a_policy_whose_security_association_does_not_exist_is_named() -> None:
    seen = replace(with_policies(ENCRYPTED), associations=frozenset())

    one = found(seen)

    assert (one.code, one.severity) == ("ipsec-no-association", "error")
    assert one.evidence == (
        "ip xfrm policy: src 10.0.0.1/32 dst 10.0.0.2/32 dir out action allow priority 100",
        "ip xfrm state: no entry with src 10.0.0.1 dst 10.0.0.2",
    )
    assert one.fix.startswith("ip xfrm policy delete src 10.0.0.1/32 dst 10.0.0.2/32 dir out  #")


IN_TRANSPORT = policy("in", "10.0.0.2/32", "10.0.0.1/32", is_block=False, ends=(None,))
FORWARDED = policy("forward", "10.100.16.0/24", "10.100.15.0/24", is_block=False, ends=(INWARD,))
BETWEEN_CONTAINERS = policy("out", "10.100.15.0/24", "10.100.16.0/24", is_block=False, ends=(OUTWARD,))


@pytest.mark.parametrize(
    ("one", "noun", "missing"),
    [
        (IN_TRANSPORT, "tunnel packets of peers to UDP port 8472", "src 10.0.0.2 dst 10.0.0.1"),
        (FORWARDED, "packets of 10.100.0.0/16", "src 10.0.0.2 dst 10.0.0.1"),
        (BETWEEN_CONTAINERS, "packets of 10.100.0.0/16", "src 10.0.0.1 dst 10.0.0.2"),
    ],
)
def test_a_policy_is_named_for_received_and_forwarded_packets(
    one: IpsecPolicy, noun: str, missing: str
) -> None:
    """The kernel does not accept an unencrypted packet. An association of another peer does not help."""
    elsewhere = IpsecEnds(source=IPv4Address("10.0.0.9"), destination=HERE)

    finding = found(replace(with_policies(one), associations=frozenset({elsewhere})))

    assert (finding.code, finding.severity) == ("ipsec-no-association", "error")
    assert finding.cause.endswith(f"the kernel drops {noun}")
    assert finding.evidence[1] == f"ip xfrm state: no entry with {missing}"


@pytest.mark.parametrize(
    ("one", "code"),
    [
        (policy("in", THERE_32, ANY, protocol=1), "echo-ignored"),
        (policy("in", THERE_32, ANY, protocol=1, source_port=0, source_port_mask=0xFFFF), "probe-dropped"),
        (policy("out", ANY, THERE_32, protocol=1, source_port=8, source_port_mask=0xFFFF), "probe-dropped"),
        (policy("in", THERE_32, ANY, protocol=1, is_block=False, ends=(None,)), "probe-dropped"),
    ],
)
def test_a_policy_that_drops_only_probes_is_a_warning(one: IpsecPolicy, code: str) -> None:
    """Packets of containers arrive, but the peer seems silent, or this host seems silent to the peer."""
    finding = next(
        one for one in findings(replace(with_policies(one), associations=frozenset())) if one.code == code
    )

    assert finding.severity == "warning"
    assert finding.fix.startswith("ip xfrm policy delete src ")


@pytest.mark.parametrize(
    ("one", "associations"),
    [
        (ENCRYPTED, frozenset({OUTWARD})),
        (ENCRYPTED, None),  # unreadable
        (replace(ENCRYPTED, ends=()), frozenset()),
        (replace(ENCRYPTED, ends=(None,)), frozenset({OUTWARD})),
        (replace(ENCRYPTED, ends=(replace(OUTWARD, source=IPv4Address("0.0.0.0")),)), frozenset({OUTWARD})),
        (replace(ENCRYPTED, destination=IPv4Network("10.0.0.3/32")), frozenset()),
        (replace(ENCRYPTED, direction="in"), frozenset()),
        (IN_TRANSPORT, frozenset({INWARD})),
        (FORWARDED, frozenset({INWARD})),
        (BETWEEN_CONTAINERS, frozenset({OUTWARD})),
    ],
)
def test_a_policy_that_the_kernel_can_fulfil_is_no_finding(
    one: IpsecPolicy, associations: frozenset[IpsecEnds] | None
) -> None:
    """In transport mode, the ends of the association are those of the packet."""
    assert findings(replace(with_policies(one), associations=associations)) == ()


def test_the_policies_of_both_directions_of_a_forwarded_packet_are_named_at_once() -> None:
    finding = found(
        with_policies(*(policy(one, "10.100.0.0/16", "10.100.0.0/16") for one in ("forward", "out")))
    )

    assert [line.partition(" dir ")[2].split()[0] for line in finding.evidence] == ["fwd", "out"]
    assert " dir fwd; ip xfrm policy delete " in finding.fix


@pytest.mark.parametrize(
    "policies",
    [
        (policy("out", ANY, "10.0.0.2/32", is_block=False),),
        (policy("out", ANY, "10.0.0.3/32"),),
        (policy("out", ANY, "10.0.0.2/32", protocol=17, port=8473, port_mask=0xFFFF),),
        (policy("out", ANY, "10.0.0.2/32", protocol=17, source_port=53, source_port_mask=0xFFFF),),
        (policy("out", ANY, "10.0.0.2/32", link=7),),
        (policy("out", ANY, "10.0.0.2/32", mark=5, mark_mask=0xFF),),
        (policy("out", ANY, ANY), policy("out", ANY, ANY, priority=99, is_block=False)),
        (policy("out", ANY, ANY), policy("out", ANY, ANY, is_block=False)),
        (
            policy("out", ANY, ANY, priority=1 << 32),
            policy("out", ANY, ANY, priority=1 << 31, is_block=False),
        ),
    ],
    ids=[
        "not block",
        "another peer",
        "port",
        "source port",
        "interface",
        "mark",
        "priority",
        "the older",
        "default",
    ],
)
def test_an_ipsec_policy_that_drops_no_packet_is_no_finding(policies: tuple[IpsecPolicy, ...]) -> None:
    """Of two policies with the same priority, the kernel uses the older policy, which the kernel lists
    last.
    """
    assert findings(with_policies(*policies)) == ()
