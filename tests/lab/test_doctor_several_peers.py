"""flannelctl doctor finds a fault that concerns only one of several peers."""

import os
from typing import Any

import pytest

from pyflannel.lab.topology import Host
from pyflannel.lab.waiting import together
from testlab.documents import read_document
from testlab.overlay import Overlay

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")


def examined(host: Host) -> list[dict[str, Any]]:
    """Return the findings that are warnings or errors."""
    document = read_document(["doctor"], host.run(["flannelctl", "--json", "doctor"], check=False).stdout)
    return [one for one in document["findings"] if one["severity"] != "info"]


def test_each_of_three_peers_behind_an_asymmetric_route_is_found(overlay: Overlay) -> None:
    """The kernel is asked for the routes of the tunnel packets of two peers, so silent peers come first."""
    overlay.set_backend("vxlan")
    one, *others = overlay.hosts.values()
    together([lambda host=host: overlay.join(host) for host in (one, *others)])
    overlay.settle(one, *others)
    assert examined(one) == []
    one.run(["sh", "-c", "ip link add way type veth peer yaw; ip link set way up; ip link set yaw up"])
    one.run(["sysctl", "-qw", "net/ipv4/conf/all/rp_filter=1"])
    found = {}
    for other in others:
        one.run(["ip", "route", "add", str(other.address), "dev", "way"])
        found[other.name] = [finding["code"] for finding in examined(one)]
        one.run(["ip", "route", "delete", str(other.address), "dev", "way"])

    assert found == {other.name: ["source-refused"] for other in others}
