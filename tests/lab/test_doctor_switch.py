"""flannelctl doctor finds faults of the switch between the hosts."""

import os

import pytest

from pyflannel.lab.topology import Host
from pyflannel.lab.waiting import wait_until
from testlab.doctor import joined_pair, problems
from testlab.overlay import Overlay

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")


@pytest.fixture(scope="module")
def joined(overlay: Overlay) -> list[Host]:
    """Two hosts of one link; the first has a bridge like Docker's."""
    return joined_pair(overlay, "host-gw")


@pytest.fixture(params=[{"kind": "host-gw"}, {"kind": "vxlan", "DirectRouting": True}])
def pair(overlay: Overlay, joined: list[Host], request: pytest.FixtureRequest) -> list[Host]:
    """The hosts, with a backend that sends without a tunnel."""
    kind = request.param["kind"]
    overlay.set_backend(**request.param)
    for host in joined:
        overlay.wait_status(host, lambda status: status.backend.type == kind, f"sends by {kind}")
    wait_until(lambda: problems(joined[0]) == [], what="doctor finds nothing", deadline_s=60.0)
    return joined


@pytest.mark.parametrize("end", ["saddr", "daddr"])
def test_a_switch_that_drops_addresses_of_containers_is_found(
    overlay: Overlay, pair: list[Host], end: str
) -> None:
    """The switch drops the packets with an address of the overlay that come from, or go to, one port."""
    host, router = pair[0], overlay.lab.router
    port = f"{'iifname' if end == 'saddr' else 'oifname'} {host.name}"
    rule = f"{port} ether type ip ip {end} {host.lease()} drop;"
    router.run(
        ["nft", f"table bridge guard {{ chain c {{ type filter hook forward priority 0; {rule} }}; }}"]
    )
    try:
        (found,) = problems(host)
    finally:
        router.run(["nft", "delete table bridge guard"])

    assert (found["code"], found["severity"]) == ("overlay-filtered", "error")
    (line,) = found["evidence"]
    assert line.startswith(f"from {host.lease()[1]} to {pair[1].lease()} at {pair[1].name}")
    assert line.endswith(f": no answer; from {host.address}: arrives")
    assert problems(host) == []
