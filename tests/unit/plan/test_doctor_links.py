"""The findings of doctor about the links of the host and the kernel's tables for them."""

import pytest
from msgspec.structs import replace

from pyflannel.model.host import Interfaces
from pyflannel.plan.doctor.findings import SAFE, findings
from pyflannel.plan.doctor.observed import LinkSetter, Observed
from testlab.healthy_host import HEALTHY, LINKS, found, interface


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


SETTER = LinkSetter(pid=7, process="sh, pid 7", command="sh -c while :; do ip link set docker0 down; done")

DOWN = replace(
    HEALTHY,
    interfaces=Interfaces(interfaces=(*LINKS[:2], interface("docker0", "10.100.15.1/24", is_up=False))),
)


def test_a_program_that_may_set_a_bridge_down_is_named_if_the_bridge_is_down() -> None:
    setters = {"docker0": (SETTER,)}

    one = found(replace(DOWN, link_setters=setters))

    assert (one.code, one.severity) == ("bridge-unstable", "error")
    assert one.evidence == ("ip link show docker0: state DOWN", f"sh, pid 7: {SETTER.command}")
    assert one.fix == "kill 7; ip link set docker0 up  # or change the configuration of the program"
    assert one.code not in SAFE
    assert findings(replace(HEALTHY, link_setters=setters)) == ()
    assert found(DOWN).code == "bridge-down"


@pytest.mark.parametrize("seen", [HEALTHY, DOWN])
def test_a_bridge_that_was_set_down_during_the_examination_is_named(seen: Observed) -> None:
    one = found(replace(seen, set_down={"docker0": 3}))

    assert (one.code, one.severity) == ("bridge-unstable", "error")
    assert one.evidence == ("ip monitor link: docker0 was set down 3 times during the examination",)
    assert one.fix.startswith("ip link set docker0 up  # first stop the program")
