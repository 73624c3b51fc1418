"""Laws of the allocation of subnets."""

from ipaddress import IPv4Address, IPv4Network

from hypothesis import given
from hypothesis import strategies as st

from pyflannel.model.lease import LeaseAttributes
from pyflannel.model.lease_protocol import PutLease, Wanted
from pyflannel.model.network_config import NetworkConfig
from pyflannel.plan.lease.choice import choose_free, pick

CONFIG = NetworkConfig(
    network=IPv4Network("10.100.0.0/16"),
    subnet_length=24,
    subnet_min=IPv4Address("10.100.1.0"),
    subnet_max=IPv4Address("10.100.20.0"),
)


@st.composite
def networks(draw: st.DrawFn) -> IPv4Network:
    """Return networks of any prefix length, in and around the range."""
    length = draw(st.sampled_from([22, 23, 24, 25, 28]))
    address = int(IPv4Address("10.100.0.0")) + draw(st.integers(0, 30 * 256))
    return IPv4Network((address, length), strict=False)


@given(occupied=st.lists(networks(), max_size=30), drawn=st.integers(0, 1000))
def test_a_chosen_subnet_is_free_and_admitted(occupied: list[IPv4Network], drawn: int) -> None:
    """If every subnet overlaps an occupied subnet, and only then, no subnet is chosen."""
    every = [IPv4Network((f"10.100.{n}.0", 24)) for n in range(1, 21)]
    free = [subnet for subnet in every if not any(subnet.overlaps(taken) for taken in occupied)]

    picked = pick(CONFIG, occupied, lambda n: drawn % n)

    assert picked == (free[drawn % len(free)] if free else None)


def test_a_prefix_that_the_host_needs_is_chosen_last() -> None:
    """A subnet that overlaps the prefix would be refused, or would redirect packets of another program."""
    attributes = LeaseAttributes(public_ip=IPv4Address("192.168.50.101"), owner="me")
    wanted = Wanted(network=CONFIG, attributes=attributes, avoided=(IPv4Network("10.100.0.0/20"),))
    taken = [IPv4Network(f"10.100.{number}.0/24") for number in range(16, 21)]

    for occupied, expected in ((taken[:-1], "10.100.20.0/24"), (taken, "10.100.1.0/24")):
        choice, _ = choose_free(occupied, wanted, lambda n: 0)
        assert isinstance(choice, PutLease)
        assert choice.lease.subnet == IPv4Network(expected)


def test_a_network_of_a_million_subnets_is_not_listed() -> None:
    """The free subnets are only counted."""
    wide = NetworkConfig(
        network=IPv4Network("10.0.0.0/8"),
        subnet_length=30,
        subnet_min=IPv4Address("10.0.0.4"),
        subnet_max=IPv4Address("10.255.255.252"),
    )

    assert pick(wide, [IPv4Network("10.0.0.0/9")], lambda n: n - 1) == IPv4Network("10.255.255.252/30")
