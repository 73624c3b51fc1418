"""The steps of a history, and the strategies that generate them."""

from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Network
from itertools import chain

from hypothesis import strategies as st
from msgspec import Struct
from msgspec.structs import replace

from pyflannel.model.host import Bridge, BridgedContainer, Underlay
from pyflannel.model.lease import PARTIAL_CHECKSUM, Lease, LeaseAttributes, Vtep
from pyflannel.model.network_config import IpNetwork, NetworkConfig
from pyflannel.plan.backend.vxlan import vtep_of

# Possible inputs of the planner.

NETWORK, IPV6_NETWORK = IPv4Network("10.100.0.0/16"), IPv6Network("fd00:5::/48")


def _config(
    backend_type: str, *, nftables: bool = False, ipv6: bool = False, **backend: object
) -> NetworkConfig:
    return NetworkConfig(
        enable_ipv6=ipv6,
        ipv6_network=IPV6_NETWORK if ipv6 else None,
        network=NETWORK,
        subnet_length=24,
        subnet_min=IPv4Address("10.100.1.0"),
        subnet_max=IPv4Address("10.100.255.0"),
        enable_nftables=nftables,
        backend_type=backend_type,
        backend=backend,
    )


CONFIGS = (
    _config("vxlan"),
    _config("host-gw"),
    _config("udp"),
    _config("vxlan", DirectRouting=True),
    _config("vxlan", Port=4789),
    _config("vxlan", VNI=7, nftables=True),
    _config("udp", Port=8286),
    _config("vxlan", ipv6=True),
    _config("host-gw", ipv6=True, nftables=True),
    _config("vxlan", ipv6=True, DirectRouting=True),
)

DUAL = tuple(number for number, config in enumerate(CONFIGS) if config.enable_ipv6)
"""The configs with both families."""

_IPV6_LINK = IPv6Network("fd07:1::/64")
_ON_LINK = (IPv4Network("192.168.50.0/24"), _IPV6_LINK)


def _underlay(
    address: str, *, public_ip: str = "", mtu: int = 1500, driver: str = "", has_ipv6: bool = True
) -> Underlay:
    ipv6_address = _IPV6_LINK[int(IPv4Address(address)) & 0xFF] if has_ipv6 else None
    return Underlay(
        ipv6_address=ipv6_address,
        public_ipv6=ipv6_address,
        link="eth0",
        address=IPv4Address(address),
        mtu=mtu,
        public_ip=IPv4Address(public_ip or address),
        on_link=_ON_LINK,
        driver=driver,
    )


UNDERLAYS = (
    _underlay("192.168.50.102"),
    _underlay("192.168.50.102", public_ip="203.0.113.2"),  # behind a NAT: host-gw cannot run
    _underlay("192.168.50.103"),
    _underlay("192.168.50.102", mtu=1400, driver="igb"),
    _underlay("192.168.50.102", mtu=100),  # vxlan cannot run
    _underlay("192.168.50.102", has_ipv6=False),
)

OWNERS = ("me", "me again")


def own_lease(number: int, owner: str, underlay: Underlay) -> Lease:
    """Return a lease of this host, with an IPv6 subnet that a network without IPv6 does not use."""
    attributes = LeaseAttributes(
        public_ip=underlay.public_ip,
        public_ipv6=underlay.public_ipv6,
        owner=owner,
        vtep=vtep_of(owner, 1),
        vtep_v6=vtep_of(owner, 1, family=6),
    )
    return Lease(
        subnet=IPv4Network(f"10.100.{15 + number}.0/24"),
        ipv6_subnet=IPv6Network(f"fd00:5:0:{15 + number}::/64"),
        attributes=attributes,
    )


PEERS = 4
VARIANTS = 6


def peer_subnet(slot: int) -> IpNetwork:
    """Return the subnet of a peer. The subnet of the last slot is a part of the subnet of the previous
    slot.
    """
    return IPv4Network("10.100.22.0/25") if slot == PEERS - 1 else IPv4Network(f"10.100.{20 + slot}.0/24")


def peer_ipv6_subnet(slot: int) -> IPv6Network | None:
    """Return the IPv6 subnet of a peer, which is a part of its key; two peers of four have none."""
    return IPv6Network(f"fd00:5:0:{20 + slot}::/64") if slot < PEERS // 2 else None


def peer_lease(slot: int, variant: int, lease_type: str, revision: int) -> Lease:
    """Return a lease of another host.

    Most variants match the running backend. One variant has another type, and one variant has the VTEP of
    another host.
    """
    number = 0 if variant == VARIANTS - 1 else slot * 3 + variant % 3
    address = f"192.168.{50 if variant % 2 else 51}.{20 + slot * 3 + variant % 3}"
    ipv6_subnet = peer_ipv6_subnet(slot)
    ipv6_address = IPv6Address(f"fd07:{1 + variant % 2}::{20 + slot * 3 + variant % 3}")
    return Lease(
        subnet=peer_subnet(slot),
        ipv6_subnet=ipv6_subnet,
        attributes=LeaseAttributes(
            public_ip=IPv4Address(address),
            public_ipv6=ipv6_address if ipv6_subnet is not None else None,
            vtep_v6=Vtep(mac=f"0e:00:00:00:06:{number:02x}", vni=None),
            backend_type="extension" if variant == VARIANTS - 2 else lease_type,
            vtep=Vtep(mac=f"0e:00:00:00:00:{number:02x}", vni=None),
            owner=f"peer {slot}",
            reads=(PARTIAL_CHECKSUM,) if variant % 2 else (),
        ),
        revision=revision,
    )


def _bridge(*containers: int, obstacles: tuple[str, ...] = ()) -> tuple[Bridge, ...]:
    found = tuple(
        BridgedContainer(
            address=IPv4Address(f"10.100.15.{number}"),
            mac=f"02:42:0a:64:0f:{number:02x}",
            port=f"veth{number}",
        )
        for number in containers
    )
    addresses = (IPv4Interface("10.100.15.1/24"),)
    return (Bridge(name="eth1", addresses=addresses, obstacles=obstacles, containers=found),)


BRIDGES = ((), _bridge(), _bridge(2), _bridge(2, 3), _bridge(2, obstacles=("a VLAN",)))


# Changes of the inputs.


class Configure(Struct, frozen=True):
    """The network config changes."""

    config: int


class MoveUnderlay(Struct, frozen=True):
    """The underlay has another address, or another MTU. The host's lease does not change yet."""

    underlay: int


class OwnLease(Struct, frozen=True):
    """The host gets a lease with its current identity and public address."""

    number: int


class Reidentify(Struct, frozen=True):
    """The host has another identity. The lease of the host does not change yet."""

    owner: int


class SetPeer(Struct, frozen=True):
    """A peer joins or changes, or leaves if the variant is None."""

    slot: int
    variant: int | None


class SpoilPeer(Struct, frozen=True):
    """The record of a peer's lease becomes unreadable."""

    slot: int


class SetBridges(Struct, frozen=True):
    """The containers on this host change."""

    bridges: int


class SwitchFastPath(Struct, frozen=True):
    """The fast path is enabled or disabled."""

    is_on: bool


Change = Configure | MoveUnderlay | OwnLease | Reidentify | SetPeer | SpoilPeer | SetBridges | SwitchFastPath


# Troubles.


class Damage(Struct, frozen=True):
    """An object changes without a change of the plan.

    Attributes:
        nth: position among the objects of pyflannel.
        how: kind of the change; 0 removes it.
    """

    nth: int
    how: int
    is_announced: bool = True


class AddStray(Struct, frozen=True):
    """An object with pyflannel's mark is created."""

    which: int
    is_announced: bool = True


class RenameLink(Struct, frozen=True):
    """A link of pyflannel is renamed, with all its objects.

    Attributes:
        nth: position among these links.
    """

    nth: int
    is_announced: bool = True


class RemoveUnderlay(Struct, frozen=True):
    """The underlay's link is removed."""


class CreateUnderlay(Struct, frozen=True):
    """The underlay's link is created again."""


class Refuse(Struct, frozen=True):
    """A target refuses an object of the plan, or all objects if `nth` is None."""

    part: int
    nth: int | None
    is_permanent: bool
    takes_effect: bool = False


class Allow(Struct, frozen=True):
    """The target no longer refuses."""

    part: int


class Silence(Struct, frozen=True):
    """The target responds to no read."""

    part: int


class Answer(Struct, frozen=True):
    """The target responds again, also to waiting reads."""

    part: int


class Stall(Struct, frozen=True):
    """The target stops in the middle of a batch, or before the next batch."""

    part: int


class GoOn(Struct, frozen=True):
    """The target performs the rest of its batch."""

    part: int


class FailReads(Struct, frozen=True):
    """Every read of the target fails."""

    part: int


class AllowReads(Struct, frozen=True):
    """Reads of the target succeed again."""

    part: int


class BreakChannel(Struct, frozen=True):
    """The target's channel of changes fails."""

    part: int


class Announce(Struct, frozen=True):
    """The target announces a change that does not concern objects of pyflannel."""

    part: int


class LoseWatch(Struct, frozen=True):
    """The watch of the leases ends, so that changes of leases are not seen."""


class ListLeases(Struct, frozen=True):
    """All leases are listed and watched again."""


Harm = Damage | AddStray | RenameLink
Fault = (
    Harm
    | RemoveUnderlay
    | CreateUnderlay
    | Refuse
    | Allow
    | Silence
    | Answer
    | Stall
    | GoOn
    | FailReads
    | AllowReads
    | BreakChannel
    | Announce
    | LoseWatch
    | ListLeases
)
Step = Change | Fault


class History(Struct, frozen=True):
    """The history of one host, and the checks at its end.

    Attributes:
        config: the network config at the start.
        has_lease: the host has its own lease from the start.
        hears_itself: its targets also announce changes by pyflannel.
        steps: each step with the time in seconds after it; no time passes if it is None.
        silent: a target that remains silent longer than all other troubles; None for none.
        is_announced: True if the end of each trouble is announced; False if a retry or an audit must find the
            end.
        is_busy: other programs constantly change foreign objects, and the kernel announces it.
        change: a change of the inputs without trouble.
        damage: damage without trouble.
    """

    steps: tuple[tuple[Step, float | None], ...] = ()
    config: int = 0
    has_lease: bool = True
    hears_itself: bool = False
    silent: int | None = None
    is_announced: bool = True
    is_busy: bool = False
    change: Change = SetPeer(0, None)
    damage: Harm = Damage(0, 0)


_parts = st.sampled_from([0, 0, 0, 1, 2, 3, 4])
_bits = st.booleans()
_nths = st.integers(0, 30)
_ways = st.integers(0, 8)

peers = st.one_of(
    st.builds(SetPeer, st.integers(0, 1), st.none() | st.integers(0, 2)),
    st.builds(SetPeer, st.integers(0, PEERS - 1), st.none() | st.integers(0, VARIANTS - 1)),
    st.builds(SpoilPeer, st.integers(0, 1)),
)
changes = st.one_of(
    peers,
    peers,
    st.builds(Configure, st.integers(0, len(CONFIGS) - 1)),
    st.builds(MoveUnderlay, st.integers(0, len(UNDERLAYS) - 1)),
    st.builds(OwnLease, st.integers(0, 1)),
    st.builds(Reidentify, st.integers(0, len(OWNERS) - 1)),
    st.builds(SetBridges, st.integers(0, len(BRIDGES) - 1)),
    st.builds(SwitchFastPath, _bits),
)
announced_damage = st.one_of(
    st.builds(Damage, _nths, _ways),
    st.builds(AddStray, st.integers(0, 3)),
    st.builds(RenameLink, st.integers(0, 2)),
)
damage = announced_damage | announced_damage.map(lambda harm: replace(harm, is_announced=False))

Trouble = tuple[Step, ...]
"""The start of a trouble, and its end if that is a step."""

obstacles: st.SearchStrategy[Trouble] = st.builds(
    lambda obstacle: (MoveUnderlay(obstacle), MoveUnderlay(0)), st.sampled_from([1, 4])
)
underlay_losses: st.SearchStrategy[Trouble] = st.just((RemoveUnderlay(), CreateUnderlay()))
refusals: st.SearchStrategy[Trouble] = st.builds(Refuse, _parts, st.none() | _nths, _bits, _bits).map(
    lambda refuse: (refuse, Allow(refuse.part))
)
silences: st.SearchStrategy[Trouble] = _parts.map(lambda part: (Silence(part), Answer(part)))
stalls: st.SearchStrategy[Trouble] = _parts.map(lambda part: (Stall(part), GoOn(part)))
failing_reads: st.SearchStrategy[Trouble] = _parts.map(lambda part: (FailReads(part), AllowReads(part)))
broken_channels: st.SearchStrategy[Trouble] = _parts.map(lambda part: (BreakChannel(part),))
announcements: st.SearchStrategy[Trouble] = _parts.map(lambda part: (Announce(part),))
lost_watches: st.SearchStrategy[Trouble] = st.just((LoseWatch(), ListLeases()))
troubles = st.one_of(
    obstacles,
    underlay_losses,
    refusals,
    refusals,
    silences,
    stalls,
    failing_reads,
    broken_channels,
    announcements,
    lost_watches,
)
pauses = st.sampled_from([None, 0.001, 0.001, 0.03, 0.06, 0.3, 1.2, 6.0, 11.0])

_Paused = tuple[Step, float | None]


def _histories(work: st.SearchStrategy[Step]) -> st.SearchStrategy[History]:
    """Return histories with these changes and damages, some of them during troubles.

    A trouble may last longer than the work. The trouble ends when another trouble of its kind ends, or at the
    end of all troubles.
    """

    def scene(
        trouble: Trouble, works: list[_Paused], is_over: bool, waits: tuple[float | None, ...]
    ) -> list[_Paused]:
        begin, *end = trouble
        ends = [(step, waits[1]) for step in end] if is_over else []
        return [(begin, waits[0]), *works, *ends]

    worked = st.tuples(work, pauses)
    scenes = st.builds(
        scene,
        troubles,
        st.lists(worked, min_size=1, max_size=3),
        _bits,
        st.tuples(pauses, pauses),
    )
    singles = worked.map(lambda step: [step])
    return st.builds(
        History,
        steps=st.lists(scenes | singles, max_size=6).map(lambda found: tuple(chain.from_iterable(found))),
        config=st.sampled_from([0, 1, 2, *DUAL]),
        has_lease=st.sampled_from([True, True, False]),
        hears_itself=_bits,
        silent=st.none() | _parts,
        is_announced=_bits,
        is_busy=_bits,
        change=changes,
        damage=announced_damage,
    )


histories = _histories(changes | damage) | _histories(peers)
"""Histories with all kinds of steps, or only with changes of peers. Most other steps replace the plan."""
