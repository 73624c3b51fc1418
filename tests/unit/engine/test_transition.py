"""The change from one backend to the next: both backends are planned until no peer needs the previous
backend.
"""

import asyncio
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from msgspec.structs import replace

from doubles.fake_clock import FakeClock
from doubles.planning import SUBNET_FILE, Planning, by_subnet
from pyflannel.engine.condition import HostCondition, Inputs, LeaseCondition, StoreCondition
from pyflannel.engine.own_lease import identified
from pyflannel.engine.transition import (
    HANDSHAKE_S,
    LINGER_S,
    Handshakes,
    Retirement,
    resumed,
    with_config,
)
from pyflannel.engine.world import PlanOptions
from pyflannel.errors import TargetError
from pyflannel.model.forwarder import Forwarder, ForwarderPeer
from pyflannel.model.host import Surroundings, Underlay
from pyflannel.model.lease import BackendPart, Identity, Lease, LeaseAttributes, Vtep, WireguardData
from pyflannel.model.lease_protocol import Held
from pyflannel.model.link import Link
from pyflannel.model.network_config import NetworkConfig
from pyflannel.model.route import FdbEntry, Route
from pyflannel.model.state import State
from pyflannel.model.tunnel_guard import GuardPeer, GuardTable
from pyflannel.model.wireguard import WireguardContact, WireguardFacts, WireguardPeer
from pyflannel.plan.backend.alloc import AllocBackend
from pyflannel.plan.backend.host_gw import HostGwBackend
from pyflannel.plan.backend.udp import UdpBackend
from pyflannel.plan.backend.vxlan import VxlanBackend
from pyflannel.plan.backend.wireguard import WireguardBackend
from pyflannel.plan.backends import Backend
from pyflannel.plan.packet_filter import FilterOptions
from pyflannel.ports import WireguardContacts
from pyflannel.wire.lease_record import KeptChange

NETWORK = IPv4Network("10.100.0.0/16")
CONFIG = NetworkConfig(network=NETWORK, subnet_length=24)
ADDRESS = IPv4Address("172.16.0.99")
OWN = Lease(subnet=IPv4Network("10.100.15.0/24"), attributes=LeaseAttributes(public_ip=ADDRESS, owner="f00d"))
UNDERLAY = Underlay(
    link="eth0", address=ADDRESS, mtu=1500, public_ip=ADDRESS, on_link=(IPv4Network("172.16.0.0/24"),)
)
UDP, VXLAN = UdpBackend(network=NETWORK), VxlanBackend()
KEY = "fej0p5JlH6L0ABusrvEqJ+O4vku0IDeriGT19bmxSEU="
RUNNING = Inputs(
    config=CONFIG,
    backend=UDP,
    lease=OWN,
    underlay=UNDERLAY,
    owner="f00d",
    wireguard=WireguardFacts(key=KEY, published=KEY, is_in_kernel=True),
)
UDP_PART = BackendPart(port=8285)
PEER_KEY = "OtherKeyAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
WIREGUARD_PART = BackendPart(
    backend_type="wireguard", wireguard=WireguardData(public_key=PEER_KEY, port=51820)
)
VXLAN_PART = BackendPart(backend_type="vxlan", vtep=Vtep(mac="0e:00:00:00:00:01", vni=1))


def peer(number: int, part: BackendPart, *also: BackendPart) -> Lease:
    attributes = LeaseAttributes(public_ip=IPv4Address(f"172.16.0.{number}"), owner=f"peer {number}")
    return Lease(subnet=IPv4Network(f"10.100.{number}.0/24"), attributes=attributes.with_backend(part, also))


def changed(*backends: Backend, is_prepared: bool = True) -> Inputs:
    """Return the inputs of a host that used these backends, one after the other."""
    inputs = replace(RUNNING, backend=backends[0])
    for backend in backends[1:]:
        inputs = replace(with_config(inputs, CONFIG, backend), is_prepared=is_prepared)
    return inputs


def with_ipv6(inputs: Inputs) -> Inputs:
    """Return the inputs with both families."""
    config = replace(CONFIG, enable_ipv6=True, ipv6_network=IPv6Network("fd00:5::/48"))
    address = IPv6Address("2001:db8::99")
    lease = replace(
        OWN,
        ipv6_subnet=IPv6Network("fd00:5:0:15::/64"),
        attributes=replace(OWN.attributes, public_ipv6=address),
    )
    return replace(
        inputs,
        config=config,
        lease=lease,
        underlay=replace(UNDERLAY, ipv6_address=address, public_ipv6=address),
        previous=tuple(replace(one, config=config) for one in inputs.previous),
    )


def planned(inputs: Inputs, *peers: Lease) -> tuple[Planning, State]:
    options = PlanOptions(subnet_file=SUBNET_FILE, packet_filter=FilterOptions(guard="strict"))
    made = Planning(replace(inputs, leases=by_subnet([OWN, *peers])), options)
    made.take()
    assert made.plan is not None
    return made, made.plan


def ways(inputs: Inputs) -> list[str]:
    return [backend.way for backend in inputs.backends]


def device_to(state: State, lease: Lease) -> str:
    """Return the device of the longest route to a peer."""
    routes = [route for route in state.of_type(Route) if route.destination.supernet_of(lease.subnet)]
    return max(routes, key=lambda route: (route.destination.prefixlen, -route.metric)).link


class TestConfig:
    def test_another_backend_is_prepared_before_it_is_used(self) -> None:
        assert ways(with_config(RUNNING, CONFIG, VXLAN)) == ["udp", "vxlan with VNI 1"]
        assert ways(changed(UDP, VXLAN)) == ["vxlan with VNI 1", "udp"]

    @pytest.mark.parametrize("backend", [UdpBackend(network=NETWORK, port=9), AllocBackend()])
    def test_a_config_with_the_same_data_path_or_none_is_applied_immediately(self, backend: Backend) -> None:
        inputs = with_config(RUNNING, CONFIG, backend)

        assert ways(inputs) == [backend.way]
        assert inputs.is_prepared

    def test_a_host_without_a_lease_starts_with_the_newest_backend(self) -> None:
        assert ways(with_config(replace(RUNNING, lease=None), CONFIG, VXLAN)) == ["vxlan with VNI 1"]

    def test_a_backend_that_was_never_prepared_is_forgotten(self) -> None:
        assert ways(changed(UDP, VXLAN, HostGwBackend(), is_prepared=False)) == ["udp", "host-gw"]

    def test_a_change_back_to_the_previous_backend_drops_no_packet(self) -> None:
        assert ways(changed(UDP, VXLAN, UDP)) == ["udp", "vxlan with VNI 1"]

    def test_two_previous_backends_at_most_are_kept(self) -> None:
        inputs = changed(UDP, VXLAN, HostGwBackend(), VxlanBackend(vni=2))

        assert ways(inputs) == ["vxlan with VNI 2", "host-gw", "vxlan with VNI 1"]


def test_the_routes_of_a_device_that_is_being_removed_are_not_of_another_program() -> None:
    """The kernel has the route of the previous device until the device is removed."""
    left = Route(destination=NETWORK, link="flannel0", protocol=2)
    surroundings = Surroundings(routes=(left,))
    made, _ = planned(replace(changed(UDP, VXLAN), surroundings=surroundings))

    for _ in range(2):
        made.take(previous=(), surroundings=replace(surroundings))
        assert [note for note in made.notes if note.startswith("Network")] == []


class TestResumed:
    TEXT = '{"Network":"10.100.0.0/16","Backend":{"Type":"%s"}}'

    def ways(self, *kinds: str, is_prepared: bool = True, requires_encryption: bool = False) -> list[str]:
        return self.restarted(
            "vxlan", *kinds, is_prepared=is_prepared, requires_encryption=requires_encryption
        )

    def restarted(
        self,
        last: str,
        *kinds: str,
        newest: Backend = VXLAN,
        is_prepared: bool = True,
        requires_encryption: bool = False,
    ) -> list[str]:
        """Return the backends in use on a host that starts with `newest`. The last run of the host ended with
        the backend `last`, and with `kinds` as previous backends.
        """
        last, *previous = (self.TEXT % kind for kind in (last, *kinds))
        kept = KeptChange(last, tuple(previous), is_prepared)
        return ways(resumed(changed(newest), kept, requires_encryption=requires_encryption))

    def test_a_restart_continues_the_change(self) -> None:
        assert self.ways("udp", "host-gw") == ["vxlan with VNI 1", "udp", "host-gw"]
        assert self.ways("udp", is_prepared=False) == ["udp", "vxlan with VNI 1"]

    def test_a_restart_with_another_backend_begins_a_change(self) -> None:
        assert self.restarted("udp") == ["udp", "vxlan with VNI 1"]
        assert self.restarted("udp", "host-gw") == ["udp", "host-gw", "vxlan with VNI 1"]
        assert self.restarted("udp", "host-gw", is_prepared=False) == ["host-gw", "vxlan with VNI 1"]
        assert self.restarted("udp", "vxlan") == ["udp", "vxlan with VNI 1"]
        assert self.restarted("alloc") == ["vxlan with VNI 1"]

    def test_a_start_with_an_encrypted_backend_sends_nothing_by_the_backend_of_the_last_run(self) -> None:
        """An unfinished change continues, because its operator permitted both backends."""
        assert self.restarted("udp", newest=WireguardBackend(network=NETWORK)) == ["wireguard"]
        assert self.restarted("wireguard", "udp", newest=WireguardBackend(network=NETWORK)) == [
            "wireguard",
            "udp",
        ]

    @pytest.mark.parametrize("kind", ["vxlan", "wireguard", "vxlam", '"'])
    def test_an_unusable_config_is_forgotten(self, kind: str) -> None:
        assert self.ways(kind, is_prepared=False) == ["vxlan with VNI 1"]

    def test_a_host_that_requires_encryption_resumes_nothing(self) -> None:
        assert self.ways("udp", requires_encryption=True) == ["vxlan with VNI 1"]


class TestPlan:
    @pytest.mark.parametrize("backend", [VXLAN, HostGwBackend()])
    @pytest.mark.parametrize("has_ipv6", [False, True])
    def test_the_guard_is_one_of_the_prepared_objects(self, backend: Backend, has_ipv6: bool) -> None:
        inputs = changed(UDP, backend, is_prepared=False)

        made, state = planned(with_ipv6(inputs) if has_ipv6 else inputs)

        tables = list(state.of_type(GuardTable))
        assert [table.family for table in tables] == ([4, 6] if has_ipv6 else [4])
        assert {table.key for table in tables} <= made.receiving_keys()

    def test_packets_take_the_previous_backend_until_the_new_one_is_prepared(self) -> None:
        new = peer(1, VXLAN_PART, UDP_PART)

        _, state = planned(changed(UDP, VXLAN, is_prepared=False), new)

        assert {link.name for link in state.of_type(Link)} == {"flannel0", "flannel.1"}
        assert device_to(state, new) == "flannel0"

    def test_each_peer_is_reached_by_the_newest_backend_of_both(self) -> None:
        old, new = peer(1, UDP_PART), peer(2, VXLAN_PART, UDP_PART)

        made, state = planned(changed(UDP, VXLAN), old, new)

        assert [device_to(state, one) for one in (old, new)] == ["flannel0", "flannel.1"]
        assert made.needs_previous

    @pytest.mark.parametrize("is_prepared", [False, True])
    def test_a_peer_may_send_by_udp_before_its_new_lease_is_read(self, is_prepared: bool) -> None:
        """The peer may have read the new lease of this host before this host reads the new lease of the
        peer.
        """
        old = peer(2, VXLAN_PART)

        made, state = planned(changed(VXLAN, UDP, is_prepared=is_prepared), old)

        (entry,) = state.of_type(ForwarderPeer)
        assert (entry.subnet, entry.address, entry.port) == (old.subnet, IPv4Address("172.16.0.2"), 8285)
        assert entry.key in made.receiving_keys()
        assert device_to(state, old) == "flannel.1"
        assert made.needs_previous

    def test_a_family_that_the_new_config_lacks_has_no_objects_to_build(self) -> None:
        """The planner has read the new config, but keeps its plan, which has IPv6."""
        made, state = planned(changed(VXLAN, UDP, is_prepared=False), peer(2, VXLAN_PART))
        (entry,) = state.of_type(ForwarderPeer)
        made._bases = tuple(replace(basis, family=6) for basis in made._bases)

        assert entry.key not in made.receiving_keys()

    def test_an_entry_that_was_made_before_the_new_lease_stays(self) -> None:
        made, _ = planned(changed(VXLAN, UDP), peer(2, VXLAN_PART))

        made.take(leases=by_subnet([OWN, peer(2, UDP_PART, VXLAN_PART)]))

        assert made.plan is not None
        assert len(list(made.plan.of_type(ForwarderPeer))) == 1
        assert not made.needs_previous

    def test_a_peer_of_the_newest_backend_is_not_expected_to_return_to_the_previous_backend(self) -> None:
        _, state = planned(changed(UDP, VXLAN), peer(2, VXLAN_PART))

        assert not list(state.of_type(ForwarderPeer))

    def test_a_peer_may_still_send_by_the_previous_backend(self) -> None:
        new = peer(2, VXLAN_PART, UDP_PART)

        made, state = planned(changed(UDP, VXLAN), new)

        assert [one.subnet for one in state.of_type(ForwarderPeer)] == [new.subnet]
        assert not made.needs_previous

    def test_a_host_that_keeps_the_old_config_uses_the_previous_backend_of_a_peer(self) -> None:
        new = peer(2, VXLAN_PART, UDP_PART)

        made, state = planned(RUNNING, new)

        assert [one.subnet for one in state.of_type(ForwarderPeer)] == [new.subnet]
        assert not made.refused

    def test_a_peer_that_changes_is_counted(self) -> None:
        made, _ = planned(changed(UDP, VXLAN), peer(2, UDP_PART))
        assert made.needs_previous

        assert made.change_notes[1] == "Hosts that this host still reaches by a previous backend: 172.16.0.2"
        made.take(leases=by_subnet([OWN, peer(2, VXLAN_PART, UDP_PART)]))

        assert not made.needs_previous
        assert len(made.change_notes) == 1
        assert [entry.mac for entry in made.plan.of_type(FdbEntry)] == ["0e:00:00:00:00:01"]

    def test_of_two_backends_that_route_the_network_the_other_has_routes_to_its_peers(self) -> None:
        wireguard = WireguardBackend(network=NETWORK)
        old = peer(1, UDP_PART)

        _, state = planned(changed(UDP, wireguard), old)

        assert device_to(state, old) == "flannel0"
        assert device_to(state, peer(3, UDP_PART)) == "flannel-wg"
        assert not list(state.of_type(WireguardPeer))

    def test_packets_use_wireguard_after_the_first_handshake(self) -> None:
        """Before the handshake, the peer is on the device, and packets to it use the previous backend."""
        for before, part in ((UDP, UDP_PART), (VXLAN, VXLAN_PART)):
            new = peer(1, WIREGUARD_PART, part)
            made, state = planned(changed(before, WireguardBackend(network=NETWORK)), new)
            (link,) = (link.name for link in state.of_type(Link) if link.name != "flannel-wg")
            assert [one.public_key for one in state.of_type(WireguardPeer)] == [PEER_KEY]
            assert device_to(state, new) == link
            assert made.needs_previous

            made.take(greeted=frozenset({PEER_KEY}))

            assert made.plan is not None
            assert device_to(made.plan, new) == "flannel-wg"
            assert not made.needs_previous

    def test_a_peer_without_the_previous_backend_is_reached_by_wireguard(self) -> None:
        new = peer(1, WIREGUARD_PART)

        made, state = planned(changed(UDP, WireguardBackend(network=NETWORK)), new)

        assert device_to(state, new) == "flannel-wg"
        assert not made.needs_previous

    def test_a_change_from_wireguard_waits_for_no_handshake(self) -> None:
        old = peer(1, UDP_PART, WIREGUARD_PART)

        _, state = planned(changed(WireguardBackend(network=NETWORK), UDP, is_prepared=False), old)

        assert device_to(state, old) == "flannel-wg"

    def test_the_guard_accepts_packets_of_both_backends(self) -> None:
        _, state = planned(changed(UDP, VXLAN, HostGwBackend()), peer(2, VXLAN_PART, UDP_PART))

        (table,), (entry,) = state.of_type(GuardTable), state.of_type(GuardPeer)
        assert table.path is not None
        assert set(table.path.links) == {"eth0", "flannel.1", "flannel0"}
        assert [tunnel.port for tunnel in table.path.tunnels] == [8472, 8285]
        assert {entry.port, *entry.other_ports} == {8472, 8285}

    def test_the_guard_of_ipv6_accepts_packets_of_both_backends(self) -> None:
        """A peer publishes its data of both families in one lease with both subnets."""
        vteps = [Vtep(mac=f"0e:00:00:00:06:0{number}", vni=number) for number in (1, 7)]
        parts = [BackendPart(backend_type="vxlan", vtep=one, vtep_v6=one) for one in vteps]
        one = peer(2, parts[1], parts[0])
        one = replace(
            one,
            ipv6_subnet=IPv6Network("fd00:5:0:2::/64"),
            attributes=replace(one.attributes, public_ipv6=IPv6Address("2001:db8::2")),
        )
        inputs = with_ipv6(changed(VXLAN, VxlanBackend(vni=7, udp_port=4789)))

        _, state = planned(inputs, one)

        table = next(table for table in state.of_type(GuardTable) if table.family == 6)
        assert table.path is not None
        assert set(table.path.links) == {"flannel-v6.1", "flannel-v6.7"}
        assert {(tunnel.vni, tunnel.port) for tunnel in table.path.tunnels} == {(1, 8472), (7, 4789)}
        (entry,) = (entry for entry in state.of_type(GuardPeer) if entry.family == 6)
        assert (entry.address, entry.sources) == (IPv6Address("2001:db8::2"), one.ipv6_subnet)
        assert {entry.port, *entry.other_ports} == {8472, 4789}

    def test_unencrypted_packets_are_refused_after_the_last_backend_without_encryption(self) -> None:
        wireguard = WireguardBackend(network=NETWORK)
        for inputs, refuses in ((changed(UDP, wireguard), False), (changed(wireguard), True)):
            _, state = planned(inputs)
            assert [table.path and table.path.refuses_clear for table in state.of_type(GuardTable)] == [
                refuses
            ]

    def test_a_backend_that_cannot_work_leaves_the_previous_one_in_force(self) -> None:
        old = peer(1, UDP_PART)
        behind_nat = replace(UNDERLAY, public_ip=IPv4Address("192.0.2.1"))

        made, state = planned(
            replace(with_config(RUNNING, CONFIG, HostGwBackend()), underlay=behind_nat), old
        )

        assert list(state.of_type(Forwarder))
        assert device_to(state, old) == "flannel0"
        assert made.needs_previous
        assert "NAT" in made.obstacle


class TestLease:
    def condition(self, inputs: Inputs, held: Lease = OWN) -> HostCondition:
        return HostCondition(
            identity=Identity(owner="f00d"),
            inputs=inputs,
            held=Held(lease=held),
            lease=LeaseCondition(since_s=0.0),
            store=StoreCondition(since_s=0.0),
        )

    def published(self, inputs: Inputs, held: Lease = OWN) -> LeaseAttributes:
        return identified(OWN.attributes, self.condition(inputs, held), host_name=None)

    def test_a_backend_is_published_once_it_is_prepared(self) -> None:
        before = self.published(changed(UDP, VXLAN, is_prepared=False))
        after = self.published(changed(UDP, VXLAN))

        assert (before.backend_part, before.also) == (UDP_PART, ())
        assert (after.backend_type, after.also) == ("vxlan", (UDP_PART,))

    def test_the_vtep_that_peers_know_stays(self) -> None:
        held = replace(OWN, attributes=OWN.attributes.with_backend(VXLAN_PART))

        attributes = self.published(changed(VXLAN, HostGwBackend()), held)

        assert attributes.also == (VXLAN_PART,)


class TestRetirement:
    PUBLISHED = replace(OWN, attributes=OWN.attributes.with_backend(VXLAN_PART, (UDP_PART,)))

    def retired_after(self, *notes: tuple[Inputs, Lease | None, bool]) -> list[int]:
        """Return the number of retirements at each second after these notes, one a second."""
        counts: list[int] = []

        async def live() -> None:
            clock, retired = FakeClock(), []
            retirement = Retirement(clock, lambda: retired.append(1))
            async with clock.running(retirement.run()):
                for inputs, own, is_needed in notes:
                    retirement.note(inputs, own, is_needed=is_needed)
                    await clock.advance(1.0)
                for _ in range(int(LINGER_S)):
                    counts.append(len(retired))
                    await clock.advance(1.0)
                counts.append(len(retired))

        asyncio.run(live())
        return counts

    def test_a_backend_is_retired_some_seconds_after_its_last_peer_changed(self) -> None:
        inputs = changed(UDP, VXLAN)

        counts = self.retired_after((inputs, self.PUBLISHED, True), (inputs, self.PUBLISHED, False))

        assert counts == [0] * (int(LINGER_S) - 1) + [1, 1]

    def test_a_host_whose_subnet_another_host_holds_retires_without_publishing(self) -> None:
        assert self.retired_after((changed(UDP, VXLAN), None, False))[-1] == 1

    @pytest.mark.parametrize(
        ("inputs", "own"),
        [
            (changed(UDP), OWN),
            (changed(UDP, VXLAN, is_prepared=False), PUBLISHED),
            (changed(UDP, VXLAN), OWN),
        ],
        ids=["no change", "not prepared", "not published"],
    )
    def test_no_backend_is_retired_before_peers_know_the_next_backend(
        self, inputs: Inputs, own: Lease
    ) -> None:
        assert set(self.retired_after((inputs, own, False))) == {0}

    def test_a_backend_that_a_peer_needs_again_is_not_retired(self) -> None:
        inputs = changed(UDP, VXLAN)

        assert set(self.retired_after((inputs, self.PUBLISHED, False), (inputs, self.PUBLISHED, True))) == {0}


class TestHandshakes:
    CHANGING = changed(UDP, WireguardBackend(network=NETWORK))

    @staticmethod
    def contacts(*keys: str, answered: str = "", failed: bool = False) -> WireguardContacts:
        async def found() -> list[WireguardContact]:
            if failed:
                raise TargetError("wg failed", hint="Try again.")
            return [
                WireguardContact(public_key=key, handshake_age_s=1.0 if key in answered else None)
                for key in keys
            ]

        return found

    def greeted_after(self, seconds: float, contacts: WireguardContacts) -> set[str]:
        clock = FakeClock()
        handshakes = Handshakes(contacts, clock, lambda: None)

        async def follow() -> set[str]:
            async with clock.running(handshakes.run()):
                handshakes.note(self.CHANGING)
                await clock.advance(seconds)
                return set(handshakes.greeted)

        return asyncio.run(follow())

    def test_a_peer_that_answers_has_a_handshake(self) -> None:
        assert self.greeted_after(0.0, self.contacts("a", "b", answered="a")) == {"a"}

    def test_a_peer_with_two_devices_answers_on_both(self) -> None:
        async def contacts() -> list[WireguardContact]:
            return [WireguardContact(public_key="a", handshake_age_s=age) for age in (None, 1.0)]

        assert self.greeted_after(HANDSHAKE_S - 1, contacts) == set()

    def test_after_a_limited_time_packets_to_a_silent_peer_are_encrypted(self) -> None:
        assert self.greeted_after(HANDSHAKE_S - 1, self.contacts("a")) == set()
        assert self.greeted_after(HANDSHAKE_S + 1, self.contacts("a")) == {"a"}

    def test_a_failure_of_wg_is_no_answer(self) -> None:
        assert self.greeted_after(HANDSHAKE_S + 1, self.contacts("a", failed=True)) == set()

    def test_the_next_change_begins_without_a_handshake(self) -> None:
        clock, told = FakeClock(), []
        handshakes = Handshakes(self.contacts("a", answered="a"), clock, lambda: told.append(1))

        async def follow() -> None:
            async with clock.running(handshakes.run()):
                handshakes.note(self.CHANGING)
                await clock.settle()
                assert handshakes.greeted == {"a"}
                handshakes.note(RUNNING)
                await clock.advance(1.0)

        asyncio.run(follow())

        assert handshakes.greeted == frozenset()
        assert told == [1]
