"""Hypothesis strategies for the values of `model`."""

from base64 import b64encode
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network

from hypothesis import strategies as st
from msgspec.structs import replace

from pyflannel.model.forwarder import Forwarder, ForwarderPeer
from pyflannel.model.host import Host, HostFile, Underlay
from pyflannel.model.item import Item
from pyflannel.model.lease import Lease, LeaseAttributes, Vtep, WireguardData
from pyflannel.model.link import MARK, Address, Link, Vxlan
from pyflannel.model.network_config import NetworkConfig
from pyflannel.model.packet_filter import (
    TABLES,
    Accept,
    FilterRule,
    ForeignRule,
    IptablesChain,
    Jump,
    Mark,
    Masquerade,
    NftTable,
    Prefix,
    Return,
)
from pyflannel.model.route import PROTOCOL_KERNEL, SCOPE_LINK, FdbEntry, Neighbour, Route
from pyflannel.model.state import Add, Operation, Remove, Replace, State
from pyflannel.model.tunnel_guard import GuardMode, GuardPeer, GuardTable
from pyflannel.model.wireguard import WireguardDevice, WireguardFacts, WireguardPeer
from pyflannel.plan.backend.udp import UdpBackend
from pyflannel.plan.backends import backend_of
from pyflannel.plan.packet_filter import FilterOptions, plan_filter, plan_guard, plan_guard_peer

NETWORK = IPv4Network("10.100.0.0/16")
UNDERLAY = IPv4Interface("192.168.50.102/24")
IPV6_NETWORK, IPV6_UNDERLAY = IPv6Network("fd00:5::/48"), IPv6Interface("fd07:1::66/64")
LINKS = ("flannel0", "flannel.1", "docker0", "stray")

subnets = st.integers(1, 255).map(lambda index: IPv4Network((f"10.100.{index}.0", 24)))
addresses = st.integers(1, 2**32 - 2).map(IPv4Address)
hosts = st.integers(1, 101).map(lambda number: UNDERLAY.network[number])
"""Addresses of other hosts on the link of the underlay."""
macs = st.integers(0, 5).map(lambda number: f"0e:00:00:00:00:{number:02x}")
vxlans = st.builds(
    Vxlan,
    vni=st.sampled_from([1, 7]),
    port=st.sampled_from([8472, 4789]),
    parent=st.just("eth0"),
    local=st.none() | hosts,
    has_gbp=st.booleans(),
    learns=st.booleans(),
    offloads_checksums=st.booleans(),
)
owners = st.sampled_from("abcdef")


prefixes = st.builds(
    Prefix,
    st.tuples(st.integers(0, 2**32 - 1), st.integers(1, 32)).map(
        lambda pair: IPv4Network(pair, strict=False)
    ),
    st.booleans(),
)
filter_rules = st.builds(
    FilterRule,
    source=st.none() | prefixes,
    destination=st.none() | prefixes,
    mark=st.none() | st.builds(Mark, st.integers(0, 2**32 - 1), st.integers(1, 2**32 - 1)),
    verdict=st.sampled_from(
        [Accept(), Return(), Masquerade(is_fully_random=True), Masquerade(is_fully_random=False)]
    ),
)
filter_options = st.builds(
    FilterOptions, masquerades=st.booleans(), is_fully_random=st.booleans(), accepts_forwarded=st.booleans()
)


OWN_KEY, *_KEYS = (b64encode(bytes([number]) * 32).decode() for number in range(1, 10))
keys = st.sampled_from(_KEYS)


@st.composite
def leases(draw: st.DrawFn) -> Lease:
    """Leases in the network, of pyflannel and of the original."""
    subnet, has_ipv6 = draw(subnets), draw(st.booleans())
    number = int(subnet.network_address) >> 8 & 0xFF
    attributes = LeaseAttributes(
        public_ip=draw(addresses),
        public_ipv6=draw(st.sampled_from([IPV6_UNDERLAY.network[number], IPv6Address(f"2001:db8::{number}")]))
        if has_ipv6
        else None,
        vtep_v6=draw(st.none() | st.builds(Vtep, mac=macs, vni=st.none() | st.just(1))),
        wireguard_v6=draw(st.none() | st.builds(WireguardData, public_key=keys)),
        backend_type=draw(st.sampled_from(["", "udp", "vxlan", "host-gw", "wireguard"])),
        vtep=draw(st.none() | st.builds(Vtep, mac=macs, vni=st.none() | st.just(1))),
        wireguard=draw(st.none() | st.builds(WireguardData, public_key=keys, port=st.none() | st.just(7000))),
        owner=draw(st.none() | owners),
        port=draw(st.none() | st.integers(1, 65535)),
    )
    return Lease(
        subnet=subnet,
        ipv6_subnet=IPv6Network(f"fd00:5:0:{number:x}::/64") if has_ipv6 else None,
        attributes=attributes,
        revision=draw(st.integers(1, 1000)),
    )


HOST = State.of(
    Link(name="eth0", kind="", mtu=1500, alias=""),
    Link(name="eth1", kind="", mtu=1500, alias=""),
    Address(link="eth0", address=UNDERLAY),
    Route(
        destination=UNDERLAY.network,
        link="eth0",
        source=UNDERLAY.ip,
        protocol=PROTOCOL_KERNEL,
        scope=SCOPE_LINK,
    ),
    Route(destination=NETWORK, link="eth0", protocol=3, metric=100),
)
"""The objects of a host without pyflannel. These objects are never damaged, because each plan needs them."""

DUAL_HOST = HOST | State.of(
    Address(link="eth0", address=IPV6_UNDERLAY),
    Route(destination=IPV6_UNDERLAY.network, link="eth0", protocol=PROTOCOL_KERNEL),
)
"""The objects of a host without pyflannel that has IPv6."""

_SORTS = (
    "link",
    "address",
    "neighbour",
    "entry",
    "route",
    "forwarder",
    "peer",
    "chain",
    "table",
    "file",
)


@st.composite
def items(draw: st.DrawFn, sorts: Sequence[str] = _SORTS) -> Item:
    """Possible objects of a host: owned, damaged, and foreign."""
    name = draw(st.sampled_from(LINKS))
    subnet = draw(subnets)
    match draw(st.sampled_from(sorts)):
        case "link":
            kind = draw(st.sampled_from(["tun", "vxlan", "bridge"]))
            alias, owner = draw(st.sampled_from([("", ""), (MARK, ""), (MARK, "0" * 32)]))
            vxlan = draw(vxlans) if kind == "vxlan" else None
            if vxlan is not None and not alias:
                # A foreign device with the planned VNI and port would make the plan impossible.
                vxlan = replace(vxlan, vni=9, port=99)
            return Link(
                name=name,
                kind=kind,
                mtu=draw(st.sampled_from([1300, 1450])),
                is_up=draw(st.booleans()),
                alias=alias,
                owner=owner,
                mac=draw(macs) if kind == "vxlan" else "",
                vxlan=vxlan,
            )
        case "address":
            # On flannel0, this address shares its prefix with the address of the udp backend.
            length = 16 if name == "flannel0" else draw(st.sampled_from([32, 24]))
            base = subnet.network_address if length != 24 else IPv4Address("10.101.7.1")
            return Address(link=name, address=IPv4Interface((base, length)))
        case "neighbour":
            base = subnet.network_address
            return Neighbour(link=name, address=base, mac=draw(macs), is_permanent=draw(st.booleans()))
        case "entry":
            return FdbEntry(link=name, mac=draw(macs), destination=draw(hosts))
        case "route":
            destination = draw(st.sampled_from([NETWORK, subnet]))
            link = draw(st.sampled_from([name, "eth0"]))
            return Route(destination=destination, link=link, protocol=draw(st.sampled_from([2, 3, 80])))
        case "forwarder":
            return Forwarder(
                link=name,
                tunnel_address=subnet.network_address,
                subnet=subnet,
                listen_address=draw(addresses),
                port=draw(st.integers(1, 65535)),
                mtu=1472,
                is_attached=draw(st.booleans()),
            )
        case "peer":
            return ForwarderPeer(link=name, subnet=subnet, address=draw(addresses), port=8285)
        case "chain":
            device = draw(st.sampled_from(["flannel0", "flannel1"]))
            rules = tuple(draw(st.lists(filter_rules, max_size=3)))
            return IptablesChain(
                family=4, hook=draw(st.sampled_from(sorted(TABLES))), device=device, rules=rules
            )
        case "table":
            return NftTable(family=draw(st.sampled_from([4, 6])), device="flannel0", chains=())
        case _:
            path = draw(st.sampled_from(["/run/flannel/subnet.env", "/etc/motd"]))
            return HostFile(path=path, text=draw(st.sampled_from(["", "x\n", "y\n"])))


_GUARD_MODES: list[GuardMode] = ["strict", "peer", "off"]


@st.composite
def udp_plans(draw: st.DrawFn) -> State:
    """Complete plans of a host of a udp network."""
    underlay = Underlay(
        link="eth0", address=UNDERLAY.ip, mtu=draw(st.integers(576, 9000)), public_ip=draw(addresses)
    )
    own, *peers = draw(st.lists(leases(), min_size=1, max_size=6, unique_by=lambda lease: lease.subnet))
    backend = UdpBackend(network=NETWORK, port=draw(st.integers(1, 65535)))
    host = Host(lease=own, underlay=underlay)
    config = NetworkConfig(network=NETWORK, enable_nftables=draw(st.booleans()))
    state = backend.plan_host(host) | plan_filter(config, host, draw(filter_options))
    state |= State.of(HostFile(path="/run/flannel/subnet.env", text="x\n"))
    path, mode = backend.guarded_path(host), draw(st.sampled_from(_GUARD_MODES))
    state |= plan_guard(path, config, host, FilterOptions(guard=mode))
    for peer in peers:
        state |= backend.plan_peer(peer, host) | State.of(*plan_guard_peer(path, peer, host, mode))
    return state


@st.composite
def plans(draw: st.DrawFn, *, may_have_ipv6: bool = True) -> State:
    """Complete plans of a host of a udp, a vxlan, a host-gw or a wireguard network, also with IPv6."""
    kind = draw(st.sampled_from(["udp", "vxlan", "host-gw", "wireguard"]))
    if kind == "udp":
        return draw(udp_plans())
    own, *peers = draw(st.lists(leases(), min_size=1, max_size=6, unique_by=lambda lease: lease.subnet))
    peers = [draw(st.sampled_from([peer, _at(peer, draw(hosts))])) for peer in peers]
    has_ipv6 = may_have_ipv6 and own.ipv6_subnet is not None
    ipv6_address = IPV6_UNDERLAY.ip if has_ipv6 else None
    host = Host(
        lease=own,
        owner=draw(st.sampled_from("abcdef")),
        kernel=draw(st.sampled_from(["", "4.15.0", "6.1.0"])),
        wireguard=WireguardFacts(key=OWN_KEY, published=OWN_KEY, is_in_kernel=draw(st.booleans())),
        underlay=Underlay(
            link="eth0",
            address=UNDERLAY.ip,
            mtu=1500,
            public_ip=UNDERLAY.ip,
            on_link=(UNDERLAY.network, IPV6_UNDERLAY.network),
            ipv6_address=ipv6_address,
            public_ipv6=ipv6_address,
        ),
    )
    options = {"DirectRouting": True} if kind == "vxlan" and draw(st.booleans()) else {}
    config = NetworkConfig(
        network=NETWORK,
        enable_ipv6=has_ipv6,
        ipv6_network=IPV6_NETWORK if has_ipv6 else None,
        enable_nftables=draw(st.booleans()),
        backend_type=kind,
        backend=options,
    )
    backend, mode = backend_of(config), draw(st.sampled_from(_GUARD_MODES))
    filtered, state = draw(filter_options), State.EMPTY
    for one in (host, replace(host, family=6))[: 1 + has_ipv6]:
        path = backend.guarded_path(one)
        state |= backend.plan_host(one) | plan_filter(config, one, filtered)
        state |= plan_guard(path, config, one, FilterOptions(guard=mode))
        for peer in peers:
            if found := backend.plan_peer(peer, one):
                state |= found | State.of(*plan_guard_peer(path, peer, one, mode))
    blackhole = Route(destination=own.subnet, link="", kind="blackhole")
    return state | State.of(HostFile(path="/run/flannel/subnet.env", text="x\n"), blackhole)


def _at(lease: Lease, address: IPv4Address) -> Lease:
    return replace(lease, attributes=replace(lease.attributes, public_ip=address))


@st.composite
def damages(draw: st.DrawFn, plan: State, sorts: Sequence[str] = _SORTS) -> list[Operation]:
    """Operations of other programs on a host with a plan: they remove, change, rename and add objects."""
    acts: list[list[Operation]] = [[Add(item)] for item in draw(st.lists(items(sorts), max_size=8))]
    for item in plan:
        changed = draw(st.sampled_from([None, item, item, *damaged(item)]))
        if changed is None:
            acts.append([Remove(item)])
        elif changed != item:
            acts.append([Replace(item, changed)])
        match item:
            case Link() if draw(st.booleans()):
                acts.append([Remove(item), Add(replace(item, name="stray"))])
            case Address() if item.address.version == 4 and draw(st.booleans()):
                # The planned address becomes secondary to another address, and is removed together with it.
                other = IPv4Interface((NETWORK[draw(st.integers(1, 9))], item.address.network.prefixlen))
                acts.append([Remove(item), Add(replace(item, address=other)), Add(item)])
            case _:
                pass
    return [operation for act in draw(st.permutations(acts)) for operation in act]


def damaged(item: Item) -> list[Item]:
    match item:
        case Link():
            others: list[Item] = [
                replace(item, mtu=1300),
                replace(item, is_up=False),
                replace(item, kind="bridge", vxlan=None),
            ]
            if item.vxlan is not None:
                others += [replace(item, mac="0e:99:99:99:99:99"), *_damaged_vxlans(item, item.vxlan)]
            return others
        case Neighbour():
            return [replace(item, mac="0e:99:99:99:99:99"), replace(item, mac="", is_permanent=False)]
        case FdbEntry():
            nowhere = IPv4Address("192.0.2.1")
            return [
                replace(item, destination=nowhere),
                replace(item, destination=nowhere, others=(item.destination,)),
                replace(item, is_permanent=False),
                replace(item, is_plain=False),
            ]
        case Route():
            return [replace(item, protocol=3), replace(item, link="eth0", source=None, kind="unicast")]
        case WireguardDevice():
            return [replace(item, public_key=""), replace(item, port=1)]
        case WireguardPeer():
            return [
                replace(item, allowed=()),
                replace(item, endpoint="192.0.2.1:9"),
                replace(item, keepalive_s=7),
            ]
        case Forwarder():
            return [
                replace(item, is_attached=False),
                replace(item, is_current=False),
                replace(item, port=1),
            ]
        case ForwarderPeer():
            return [replace(item, port=1)]
        case IptablesChain():
            foreign = (*item.rules, ForeignRule("-j DROP"))
            jumps = [replace(item, jump=jump) for jump in Jump]
            return [replace(item, rules=foreign), replace(item, rules=item.rules[::-1]), *jumps]
        case GuardTable():
            return [replace(item, differences=("rules differ in to_us",))]
        case GuardPeer():
            return [replace(item, port=1)]
        case NftTable():
            return [replace(item, chains=item.chains[1:]), replace(item, others=("set x",))]
        case _:
            return []


def _damaged_vxlans(link: Link, vxlan: Vxlan) -> list[Link]:
    damaged = [
        replace(vxlan, vni=9),
        replace(vxlan, port=99),
        replace(vxlan, parent=""),
        replace(vxlan, parent="eth1"),
        replace(vxlan, local=None),
        replace(vxlan, learns=not vxlan.learns),
        replace(vxlan, offloads_checksums=not vxlan.offloads_checksums),
    ]
    return [replace(link, vxlan=each) for each in damaged]
