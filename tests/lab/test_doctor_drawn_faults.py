"""flannelctl doctor names faults that are drawn at random, in a network with IPv4."""

import os
from ipaddress import ip_network

import pytest

from pyflannel.lab.topology import Host
from pyflannel.lab.waiting import together
from testlab.drawn_faults import End, Pair, check_each_fault, check_pairs_of_faults, give_port
from testlab.overlay import Overlay

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

DRAWS, DRAWS_LONG = 26, 208
PAIRS, PAIRS_LONG = 5, 110


@pytest.fixture(scope="module")
def pair(overlay: Overlay) -> Pair:
    """Two hosts of a vxlan network on one link, each with a bridge as Docker would have."""
    overlay.set_backend("vxlan")
    hosts = overlay.hosts["docker1"], overlay.hosts["docker2"]
    together([lambda host=host: overlay.join(host) for host in hosts])
    overlay.settle(*hosts)
    for host in hosts:
        batch = f"link add br7 type bridge\nlink set br7 up\naddress add {host.gateway()} dev br7\n"
        host.run(["ip", "-batch", "-"], text=batch)
        give_port(host)
    return Pair(*map(_end, hosts), network=ip_network("10.100.0.0/16"), device="flannel.1")


def _end(host: Host) -> End:
    return End(host, host.address, host.lease())


@pytest.mark.timeout(3600)
def test_doctor_names_each_random_fault_and_no_other_error(pair: Pair, long_run: bool) -> None:
    check_each_fault(pair, DRAWS_LONG if long_run else DRAWS)


@pytest.mark.timeout(3600)
def test_doctor_names_both_of_two_random_faults_and_no_other_error(pair: Pair, long_run: bool) -> None:
    """Each fault alone is named by the test above. Two chains that drop the same packets are two findings."""
    check_pairs_of_faults(pair, PAIRS_LONG if long_run else PAIRS)
