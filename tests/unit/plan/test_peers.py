"""The peers of a host: the holders of valid leases of its network."""

from ipaddress import IPv4Address, IPv4Network

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from pyflannel.model.lease import Lease, LeaseAttributes
from pyflannel.model.lease_set import SubnetMap
from pyflannel.plan.peers import Peers

NETWORK = IPv4Network("10.100.0.0/16")


def lease(subnet: str, public_ip: str = "10.10.10.101") -> Lease:
    return Lease(subnet=IPv4Network(subnet), attributes=LeaseAttributes(public_ip=IPv4Address(public_ip)))


OWN = lease("10.100.15.0/24")


def settled(*leases: Lease) -> tuple[list[str], list[str]]:
    """Return the peers' subnets and the conflicts."""
    peers = Peers(OWN, NETWORK, 24)
    peers.update(SubnetMap((each.subnet, each) for each in leases))
    return [str(peer.subnet) for peer in peers], [conflict.text for conflict in peers.conflicts]


def test_all_other_hosts_are_peers() -> None:
    peers, conflicts = settled(
        lease("10.100.1.0/24", "172.16.0.1"), OWN, lease("10.100.2.0/24", "172.16.0.2")
    )

    assert peers == ["10.100.1.0/24", "10.100.2.0/24"]
    assert not conflicts


def test_an_unreachable_peer_is_omitted_and_reported() -> None:
    peers, conflicts = settled(
        lease("10.101.0.0/24", "172.16.0.1"),
        lease("10.100.0.0/20", "172.16.0.2"),
        lease("0.0.0.0/0", "172.16.0.3"),
        lease("10.100.3.0/24", "10.10.10.101"),
        lease("10.100.4.0/24", "0.0.0.0"),
    )

    assert peers == []
    assert conflicts == [
        "lease 0.0.0.0/0 of 172.16.0.3 is outside the network 10.100.0.0/16: ignored",
        "lease 10.100.0.0/20 of 172.16.0.2 overlaps this host's subnet 10.100.15.0/24: ignored",
        "lease 10.100.3.0/24 of 10.10.10.101 has this host's address, so its packets would return to this"
        " host: ignored",
        "lease 10.100.4.0/24 of 0.0.0.0 has no address: ignored",
        "lease 10.101.0.0/24 of 172.16.0.1 is outside the network 10.100.0.0/16: ignored",
    ]


def test_a_conflict_names_the_host() -> None:
    named = lease("10.101.0.0/24", "172.16.0.1")
    named = replace(named, attributes=replace(named.attributes, host_name="docker2"))

    _, (conflict,) = settled(named)

    assert conflict.startswith("lease 10.101.0.0/24 of docker2 (172.16.0.1) is outside")


def behind_nat(subnet: str, port: int | None) -> Lease:
    """Return a lease with this host's public address, for example of a host behind the same NAT."""
    found = lease(subnet)
    return replace(found, attributes=replace(found.attributes, port=port))


def test_hosts_behind_one_nat_with_different_ports_are_peers() -> None:
    """The port distinguishes this host. A lease without a port, or with this host's port, is this host's
    lease.
    """
    own = replace(OWN, attributes=replace(OWN.attributes, port=8285))
    others = [behind_nat("10.100.3.0/24", 8286), behind_nat("10.100.4.0/24", 8285)]
    peers = Peers(own, NETWORK, 24)

    peers.update(SubnetMap((one.subnet, one) for one in [*others, behind_nat("10.100.5.0/24", None)]))

    assert list(peers) == others[:1]


def test_a_reserved_address_is_used_with_a_warning() -> None:
    """Linux sends to 240.0.0.0/4. The backends refuse the limited broadcast address."""
    peers, conflicts = settled(lease("10.100.1.0/24", "240.0.0.7"), lease("10.100.2.0/24", "255.255.255.255"))

    assert peers == ["10.100.1.0/24", "10.100.2.0/24"]
    assert conflicts == [
        "lease 10.100.1.0/24 of 240.0.0.7 has a reserved address, which many hosts and routers drop"
    ]
    assert settled(lease("10.100.1.0/24", "100.64.0.7")) == (["10.100.1.0/24"], [])


def test_the_subnet_of_an_address_and_the_addresses_in_a_subnet() -> None:
    inside, other = lease("10.100.1.0/24", "10.100.2.9"), lease("10.100.2.0/24", "172.16.0.1")
    peers = Peers(OWN, NETWORK, 24)

    peers.update(SubnetMap((one.subnet, one) for one in (inside, other)))

    assert list(peers.covering(IPv4Address("10.100.2.9"))) == [other]
    assert peers.inside([other.subnet]) == [inside]
    assert peers.inside([inside.subnet]) == []
    peers.update(SubnetMap([(other.subnet, other)]))
    assert peers.inside([other.subnet]) == []


def test_of_overlapping_peers_the_one_that_fits_the_network_is_kept() -> None:
    peers, conflicts = settled(
        lease("10.100.16.0/20", "172.16.0.1"),
        lease("10.100.17.0/24", "172.16.0.2"),
        lease("10.100.17.128/25", "172.16.0.3"),
        lease("10.100.18.0/24", "172.16.0.4"),
        lease("10.100.40.0/22", "172.16.0.5"),
    )

    assert peers == ["10.100.17.0/24", "10.100.18.0/24", "10.100.40.0/22"]
    assert conflicts == [
        "lease 10.100.16.0/20 of 172.16.0.1 overlaps lease 10.100.17.0/24: ignored",
        "lease 10.100.17.128/25 of 172.16.0.3 overlaps lease 10.100.17.0/24: ignored",
    ]


def test_peers_that_share_an_address_are_both_peers_with_a_conflict() -> None:
    peers, conflicts = settled(lease("10.100.1.0/24", "172.16.0.1"), lease("10.100.2.0/24", "172.16.0.1"))

    assert len(peers) == 2
    assert conflicts == [
        "lease 10.100.2.0/24 of 172.16.0.1 has the same address as lease 10.100.1.0/24: both are used"
    ]


leases = st.lists(
    st.builds(
        lambda number, length, host: lease(
            str(IPv4Network((0x0A640000 + number * 0x400, length), strict=False)), f"172.16.0.{host}"
        ),
        st.integers(-2, 40),
        st.sampled_from([20, 22, 24]),
        st.integers(0, 5),
    ),
    max_size=12,
)


@given(st.lists(leases, max_size=5), leases)
def test_removed_leases_have_no_effect_on_peers_and_conflicts(
    history: list[list[Lease]], last: list[Lease]
) -> None:
    """After any changes, the peers and conflicts result only from the current leases."""
    peers, followed = Peers(OWN, NETWORK, 24), {}
    for each in [*history, last]:
        for change in peers.update(SubnetMap((one.subnet, one) for one in each)):
            if change.old is not None:
                assert followed.pop(change.old.subnet) == change.old
            if change.new is not None:
                assert followed.setdefault(change.new.subnet, change.new) is change.new

    fresh = Peers(OWN, NETWORK, 24)
    fresh.update(SubnetMap((one.subnet, one) for one in last))
    assert {peer.subnet: peer for peer in peers} == {peer.subnet: peer for peer in fresh} == followed
    assert peers.conflicts == fresh.conflicts
    assert len(peers) == len(followed)
