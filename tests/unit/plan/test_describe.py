"""What a pass found is said in an operator's words."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

from pyflannel.model.bpf_program import BpfProgram, Role, Tunnel
from pyflannel.model.operation import Replace
from pyflannel.plan.describe import found

TUNNEL = Tunnel(
    device="flannel0",
    underlay="eth0",
    address=IPv4Address("10.10.10.102"),
    subnet=IPv4Network("10.100.156.0/24"),
    port=8285,
)


def test_of_a_program_s_tunnel_only_what_differs_is_said() -> None:
    old = BpfProgram(link="eth0", role=Role.DECAPSULATE, tunnel=TUNNEL, is_current=False)
    new = replace(old, tunnel=replace(TUNNEL, joint="flannel0-gro", port=8286), is_current=True)

    assert found(Replace(old, new)) == (
        "program flannel_decap at eth0: port 8285, wanted 8286, joint none, wanted flannel0-gro, not current"
    )
