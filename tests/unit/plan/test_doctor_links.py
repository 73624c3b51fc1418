"""The findings of doctor about the links of the host and the kernel's tables for them."""

import pytest
from msgspec.structs import replace

from pyflannel.plan.doctor.findings import findings
from testlab.healthy_host import HEALTHY, found


@pytest.mark.parametrize(("count", "severity"), [(900, "warning"), (999, "warning"), (1000, "error")])
def test_a_full_table_of_connections_is_named(count: int, severity: str) -> None:
    one = found(replace(HEALTHY, tracked=(count, 1000)))

    assert (one.code, one.severity) == ("conntrack-full", severity)
    assert one.evidence == (f"nf_conntrack_count = {count}, nf_conntrack_max = 1000",)
    assert one.fix.startswith("sysctl -w net.netfilter.nf_conntrack_max=262144")


def test_a_table_with_space_for_connections_is_no_finding() -> None:
    assert findings(replace(HEALTHY, tracked=(899, 1000))) == ()


def test_an_xdp_program_on_the_way_is_information() -> None:
    one = found(replace(HEALTHY, xdp_links=frozenset({"eth0", "wlan0"})))

    assert (one.code, one.severity, len(one.evidence)) == ("xdp-program", "info", 1)
    assert one.fix.startswith("ip link set dev eth0 xdp off")
    assert findings(replace(HEALTHY, xdp_links=frozenset({"wlan0"}))) == ()


def test_a_bridge_without_arp_is_named() -> None:
    one = found(replace(HEALTHY, bridges_without_arp=frozenset({"docker0"})))

    assert (one.code, one.severity, one.fix) == ("arp-off", "error", "ip link set docker0 arp on")
