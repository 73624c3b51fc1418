"""The lease protocol's promises, one host or two against a store in memory; every answer may be held back."""

from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network

import pytest

from pyflannel.model.backend_data import Vtep
from pyflannel.model.lease import Claim, Identity, Lease, LeaseAttributes
from pyflannel.model.lease_protocol import (
    Acquired,
    Action,
    Check,
    Checked,
    ClaimGone,
    ClaimSeen,
    Conflicted,
    Contested,
    DeleteClaim,
    DeleteLease,
    Event,
    Exhausted,
    Failed,
    Held,
    LeaseChange,
    LeaseGone,
    LeaseSeen,
    List,
    Listed,
    Lost,
    Ordered,
    PutClaim,
    PutLease,
    Reidentify,
    Renewed,
    Seen,
    SharedAddress,
    Started,
    StoreAway,
    StoreBack,
    Taken,
    Unreadable,
    Unsuitable,
    Wake,
    Wanted,
    Watch,
    WatchLost,
    Woke,
    Wrote,
)
from pyflannel.model.network_config import NetworkConfig
from pyflannel.plan.lease.answers import IN_TURN_MAX_S
from pyflannel.plan.lease.failures import RETRY_MAX_S
from pyflannel.plan.lease.state import LeaseState, Resting
from pyflannel.plan.lease.step import step

NETWORK = NetworkConfig(
    network=IPv4Network("10.100.0.0/16"),
    subnet_length=24,
    subnet_min=IPv4Address("10.100.1.0"),
    subnet_max=IPv4Address("10.100.4.0"),
)
FIRST, SECOND, THIRD = (IPv4Network(f"10.100.{n}.0/24") for n in (1, 2, 3))
HOUR = 3600.0


@dataclass
class Store:
    """A store in memory: leases and claims by subnet, a revision, and all that ever happened."""

    leases: dict[IPv4Network, Lease | Unreadable] = field(default_factory=dict)
    claims: dict[IPv4Network, Claim] = field(default_factory=dict)
    log: list[LeaseChange] = field(default_factory=list)
    revision: int = 0

    def write_lease(self, lease: Lease) -> Lease:
        self.revision += 1
        self.leases[lease.subnet] = lease = replace(lease, revision=self.revision)
        self.log.append(LeaseSeen(lease))
        return lease

    def write_rubbish(self, subnet: IPv4Network) -> None:
        self.revision += 1
        self.leases[subnet] = Unreadable(subnet, self.revision)
        self.log.append(Unreadable(subnet, self.revision))

    def delete_lease(self, subnet: IPv4Network) -> None:
        self.revision += 1
        del self.leases[subnet]
        self.log.append(LeaseGone(subnet, self.revision))

    def write_claim(self, claim: Claim) -> None:
        self.revision += 1
        self.claims[claim.subnet] = claim = replace(claim, revision=self.revision)
        self.log.append(ClaimSeen(claim))

    def delete_claim(self, subnet: IPv4Network) -> None:
        self.revision += 1
        del self.claims[subnet]
        self.log.append(ClaimGone(subnet, self.revision))

    def perform(self, request: Action) -> Event:
        match request:
            case List():
                values = self.leases.values()
                return Listed(
                    leases=tuple(value for value in values if isinstance(value, Lease)),
                    unreadable=tuple(value for value in values if isinstance(value, Unreadable)),
                    claims=tuple(self.claims.values()),
                    revision=self.revision,
                )
            case Check(lease):
                standing_lease = self.leases.get(lease.subnet)
                return Checked(lease, standing_lease if isinstance(standing_lease, Lease) else None)
            case PutLease(lease=lease, ttl_s=ttl_s, expected=expected):
                current = self.leases.get(lease.subnet)
                if (current.revision if current else 0) != expected:
                    return Conflicted(request, current if isinstance(current, Lease) else None)
                self.write_lease(replace(lease, has_ttl=ttl_s is not None))
            case DeleteLease(lease):
                current = self.leases.get(lease.subnet)
                if current is None or current.revision != lease.revision:
                    return Conflicted(request, current if isinstance(current, Lease) else None)
                self.delete_lease(lease.subnet)
            case PutClaim(claim):
                if (standing := self.claims.get(claim.subnet)) is not None:
                    return Conflicted(request, standing)
                self.write_claim(claim)
            case DeleteClaim(claim):
                if claim.subnet not in self.claims:
                    return Conflicted(request, None)
                self.delete_claim(claim.subnet)
        return Wrote(request, self.revision)


@dataclass
class Host:
    """One host's protocol, performed; `requests` wait until the test lets the store answer them."""

    store: Store
    wanted: Wanted
    held: Held | None = None
    now: float = 0.0
    requests: list[Action] = field(default_factory=list)
    said: list[Action] = field(default_factory=list)
    seen: int | None = None
    wake_at: float | None = None

    def __post_init__(self) -> None:
        self.state = LeaseState(wanted=self.wanted, held=self.held)

    def take(self, event: Event) -> None:
        self.state, actions = step(self.state, event, self.now, lambda n: 0)
        for action in actions:
            match action:
                case List() | Check() | PutLease() | DeleteLease() | PutClaim() | DeleteClaim():
                    self.requests.append(action)
                case Watch(after):
                    self.seen = after
                case Wake(at):
                    self.wake_at = at
                case _:
                    self.said.append(action)

    def answer(self) -> None:
        """Let the store answer the oldest request."""
        self.take(self.store.perform(self.requests.pop(0)))

    def watch(self) -> None:
        """Let the watch deliver what happened since."""
        if self.seen is None:
            return
        changes = tuple(change for change in self.store.log if revision_of(change) > self.seen)
        self.seen = self.store.revision
        self.take(Seen(changes, self.store.revision))

    def settle(self) -> None:
        """Go on until nothing more is asked or seen, without letting time pass."""
        for _ in range(100):
            if self.requests:
                self.answer()
            elif self.seen is not None and self.seen < self.store.revision:
                self.watch()
            else:
                return
        raise AssertionError("the protocol does not come to rest")

    def sleep(self, seconds: float) -> None:
        """Let time pass, waking the protocol when it asked for it."""
        end = self.now + seconds
        while self.wake_at is not None and self.wake_at <= end:
            self.now, self.wake_at = max(self.now, self.wake_at), None
            self.take(Woke())
            self.settle()
        self.now = end

    def start(self) -> "Host":
        self.take(Started())
        self.settle()
        return self

    @property
    def subnet(self) -> IPv4Network | None:
        return self.state.held.lease.subnet if self.state.held else None

    def heard(self, kind: type) -> bool:
        return any(isinstance(report, kind) for report in self.said)


def revision_of(change: LeaseChange) -> int:
    match change:
        case LeaseSeen(lease):
            return lease.revision
        case ClaimSeen(claim):
            return claim.revision
        case LeaseGone(_, revision) | ClaimGone(_, revision) | Unreadable(_, revision):
            return revision


def wanted(owner: str = "me", address: str = "192.168.50.102", machine: str = "m", **more: object) -> Wanted:
    attributes = LeaseAttributes(
        public_ip=IPv4Address(address), owner=Identity(owner=owner, machine=machine), port=8285
    )
    return Wanted(network=NETWORK, attributes=attributes, **more)  # type: ignore[arg-type]


def lease(
    subnet: IPv4Network, owner: str | None, address: str, machine: str = "x", ttl: bool = True
) -> Lease:
    identity = None if owner is None else Identity(owner=owner, machine=machine)
    return Lease(
        subnet=subnet,
        attributes=LeaseAttributes(public_ip=IPv4Address(address), owner=identity),
        has_ttl=ttl,
    )


def owner_of(store: Store, subnet: IPv4Network) -> str | None:
    standing = store.leases[subnet]
    assert isinstance(standing, Lease)
    return standing.attributes.owner.owner if standing.attributes.owner else None


# Acquiring.


def test_a_host_takes_a_free_subnet_and_watches_from_the_listing() -> None:
    """The first free one here, as nothing is drawn; the watch misses nothing after the listing."""
    store = Store()
    store.write_lease(lease(FIRST, "other", "192.168.50.1"))

    host = Host(store, wanted()).start()

    assert host.subnet == SECOND
    assert owner_of(store, SECOND) == "me"
    assert host.state.is_settled
    assert host.heard(Acquired)


def test_a_host_without_a_lease_is_not_told_of_all_others_while_it_asks_for_one() -> None:
    """It watches once it has its lease, from the listing on: what came between is seen then."""
    store = Store()
    host = Host(store, wanted())
    host.take(Started())
    host.answer()
    store.write_lease(lease(SECOND, "other", "192.168.50.1"))
    seen_while_asking = host.seen

    host.answer()

    assert seen_while_asking is None
    assert host.seen == 0
    assert host.state.is_watching


def test_a_host_that_cannot_ask_watches_all_the_same() -> None:
    """Nothing is free: it knows the others, and waits."""
    store = Store()
    full = replace(NETWORK, subnet_max=NETWORK.subnet_min)
    store.write_lease(lease(FIRST, "other", "192.168.50.1"))

    host = Host(store, replace(wanted(), network=full)).start()

    assert host.subnet is None
    assert host.seen == store.revision


def test_a_lost_race_picks_another_at_once_without_a_fresh_listing() -> None:
    """Others take the subnets between our listing and our writes: each answer says which one is gone."""
    store = Store()
    host = Host(store, wanted())
    host.take(Started())
    host.answer()
    store.write_lease(lease(FIRST, "other", "192.168.50.1"))
    store.write_lease(lease(SECOND, "another", "192.168.50.2"))

    asked = []
    while host.requests:
        asked += host.requests
        host.answer()

    assert [type(request) for request in asked] == [PutLease, PutLease, PutLease]
    assert host.subnet == THIRD
    assert owner_of(store, FIRST) == "other"


def test_a_lost_race_that_the_last_listing_does_not_explain_is_followed_by_a_fresh_one() -> None:
    """The config is another meanwhile, the lease is ours all the same, or what is there is no lease."""
    for written, is_another_config in (
        (lease(FIRST, "other", "192.168.50.1"), True),
        (lease(FIRST, "me", "192.168.50.102"), False),
        (Unreadable(FIRST, 1), False),
    ):
        store = Store()
        host = Host(store, wanted())
        host.take(Started())
        host.answer()
        if isinstance(written, Lease):
            store.write_lease(written)
        else:
            store.write_rubbish(FIRST)
        if is_another_config:
            host.take(Ordered(replace(host.wanted, config_revision=7)))

        host.answer()

        assert host.requests == []
        assert isinstance(host.state.phase, Resting)


def test_writes_that_keep_failing_are_tried_ever_more_slowly() -> None:
    """Also when the listings in between succeed; the store is back when it answers what we wait for."""
    host = Host(Store(), wanted())
    host.take(Started())
    for _ in range(8):
        host.answer()
        host.take(Failed(host.requests.pop(), "timed out"))
        assert host.wake_at is not None
        host.now = host.wake_at
        host.take(Woke())

    pauses = [said.retry_in_s for said in host.said if isinstance(said, StoreAway)]
    said_back = host.heard(StoreBack)
    host.settle()

    assert pauses == sorted(pauses)
    assert pauses[-1] == RETRY_MAX_S
    assert not said_back
    assert host.heard(StoreBack)


def test_a_host_watches_the_later_the_longer_the_store_took_to_answer() -> None:
    """There are many who want to write: they come first. What was missed by then is seen at once."""
    store = Store()
    host = Host(store, wanted())
    host.take(Started())
    host.answer()
    store.write_lease(lease(SECOND, "other", "192.168.50.1"))
    host.now += 2

    host.answer()
    seen_at_first = host.seen
    host.sleep(3.9)
    seen_before = host.seen
    host.sleep(0.1)

    assert host.heard(Acquired)
    assert (seen_at_first, seen_before) == (None, None)
    assert host.seen == store.revision


def test_a_host_waits_for_its_watch_a_few_seconds_at_most() -> None:
    host = Host(Store(), wanted())
    host.take(Started())
    host.answer()
    host.now += 60
    host.answer()

    host.sleep(IN_TURN_MAX_S)

    assert host.state.is_watching


def test_our_own_lease_is_used_again_whatever_subnet_env_says() -> None:
    """By owner first, then by what the old subnet.env says."""
    store = Store()
    store.write_lease(lease(THIRD, "me", "192.168.50.102"))

    host = Host(store, wanted(previous=SECOND)).start()

    assert host.subnet == THIRD


def test_a_lease_of_the_original_is_judged_by_address() -> None:
    """It has no owner; ours is written into it."""
    store = Store()
    store.write_lease(lease(THIRD, None, "192.168.50.102"))

    host = Host(store, wanted()).start()

    assert host.subnet == THIRD
    assert owner_of(store, THIRD) == "me"


def with_vtep(standing: Lease, mac: str, vni: int = 1) -> Lease:
    data, vtep = f'{{"VNI":{vni},"VtepMAC":"{mac}"}}', Vtep(mac=mac, vni=vni)
    return replace(standing, attributes=replace(standing.attributes, backend_data=data, vtep=vtep))


def wanted_with_vtep(mac: str = "0e:00:00:00:00:01", mac_prefix: bytes = b"") -> Wanted:
    known = wanted()
    vtep = Vtep(mac=mac, vni=1, mac_prefix=mac_prefix)
    data = f'{{"VNI":1,"VtepMAC":"{mac}"}}'
    return replace(known, attributes=replace(known.attributes, backend_data=data, vtep=vtep))


def mac_of(store: Store, subnet: IPv4Network) -> str | None:
    standing = store.leases[subnet]
    assert isinstance(standing, Lease)
    vtep = standing.attributes.vtep
    assert vtep is None or vtep.mac in (standing.attributes.backend_data or "")
    return vtep.mac if vtep else None


THEIRS = "36:f5:41:10:dc:86"


def test_the_vtep_that_the_original_published_stays() -> None:
    """The peers know it: also when the lease is renewed, lost and taken again, or taken up by a new start."""
    store = Store()
    store.write_lease(with_vtep(lease(FIRST, None, "192.168.50.102"), THEIRS))

    host = Host(store, wanted_with_vtep()).start()

    assert (owner_of(store, FIRST), mac_of(store, FIRST)) == ("me", THEIRS)
    assert store.revision == 2
    host.sleep(24 * HOUR)
    assert mac_of(store, FIRST) == THEIRS
    store.delete_lease(FIRST)
    host.settle()
    assert mac_of(store, FIRST) == THEIRS
    Host(store, wanted_with_vtep()).start()
    assert mac_of(store, FIRST) == THEIRS
    assert host.state.is_settled


def test_a_vtep_that_is_not_for_us_is_not_kept() -> None:
    """Of another VNI, of no single device, or not as the config wants it to begin."""
    ours = wanted_with_vtep()
    plain = lease(FIRST, None, "192.168.50.102")
    for standing, asked in (
        (with_vtep(plain, THEIRS, vni=2), ours),
        (with_vtep(plain, "ff:ff:ff:ff:ff:ff"), ours),
        (with_vtep(plain, THEIRS), wanted_with_vtep(mac_prefix=b"\x0e\x2a")),
    ):
        store = Store()
        store.write_lease(standing)

        host = Host(store, asked).start()

        assert host.state.is_settled
        assert mac_of(store, FIRST) == "0e:00:00:00:00:01"


def test_who_takes_over_another_owner_s_lease_has_a_vtep_of_its_own() -> None:
    """The other may come back, on another subnet and with its own address."""
    for machine in ("m", "x", ""):
        store = Store()
        store.write_lease(with_vtep(lease(FIRST, "other", "192.168.50.102", machine=machine), THEIRS))

        host = Host(store, wanted_with_vtep()).start()
        host.sleep(60)

        assert (owner_of(store, FIRST), mac_of(store, FIRST)) == ("me", "0e:00:00:00:00:01")


def test_the_previous_subnet_is_taken_when_free_and_not_when_held() -> None:
    """It is a wish, not a right."""
    store = Store()
    assert Host(store, wanted(previous=THIRD)).start().subnet == THIRD

    other = Host(store, wanted("other", "192.168.50.103", previous=THIRD)).start()

    assert other.subnet == FIRST


def test_a_lease_that_no_longer_fits_is_deleted_and_another_taken() -> None:
    """As the original: found, not compatible, deleted."""
    store = Store()
    store.write_lease(lease(IPv4Network("10.100.9.0/24"), "me", "192.168.50.102"))

    host = Host(store, wanted()).start()

    assert host.subnet == FIRST
    assert list(store.leases) == [FIRST]
    assert host.heard(Unsuitable)


def test_a_reservation_that_no_longer_fits_stays() -> None:
    """It is the operator's to remove."""
    store = Store()
    outside = IPv4Network("10.100.9.0/24")
    store.write_lease(lease(outside, None, "192.168.50.102", ttl=False))

    host = Host(store, wanted()).start()

    assert host.subnet == FIRST
    assert outside in store.leases


def test_an_unreadable_lease_occupies_its_subnet() -> None:
    """Whoever wrote it may be living there."""
    store = Store()
    store.write_rubbish(FIRST)

    assert Host(store, wanted(previous=FIRST)).start().subnet == SECOND


def test_an_exhausted_network_is_said_and_tried_again() -> None:
    """Never an exit; the subnet that comes free is taken."""
    store = Store()
    for number in range(1, 5):
        store.write_lease(lease(IPv4Network(f"10.100.{number}.0/24"), "x", f"192.168.50.{number}"))
    host = Host(store, wanted()).start()
    assert host.heard(Exhausted)
    store.delete_lease(SECOND)

    host.sleep(11)

    assert host.subnet == SECOND


def test_an_answer_that_is_lost_does_no_harm() -> None:
    """The write took effect, we never heard: the next listing shows it, and no second subnet is taken."""
    store = Store()
    host = Host(store, wanted())
    host.take(Started())
    host.answer()
    put = host.requests.pop()
    store.perform(put)
    assert isinstance(put, PutLease)
    host.take(Failed(put, "timed out"))

    host.sleep(10)

    assert host.subnet == FIRST
    assert list(store.leases) == [FIRST]
    assert host.heard(StoreAway)
    assert host.heard(StoreBack)


# Reservations.


def test_a_reservation_never_gets_a_ttl() -> None:
    """Not when it is used, and not later: it is never renewed."""
    store = Store()
    store.write_lease(lease(THIRD, None, "192.168.50.102", ttl=False))

    host = Host(store, wanted()).start()
    host.sleep(48 * HOUR)

    assert host.subnet == THIRD
    standing = store.leases[THIRD]
    assert isinstance(standing, Lease)
    assert not standing.has_ttl
    assert standing.revision == 2  # written once by us, with our owner


def test_a_lease_that_the_operator_makes_a_reservation_stays_one() -> None:
    """The documented way to reserve: put the value again without TTL."""
    store = Store()
    host = Host(store, wanted()).start()
    store.write_lease(lease(FIRST, None, "192.168.50.102", ttl=False))

    host.settle()
    host.sleep(48 * HOUR)

    standing = store.leases[FIRST]
    assert isinstance(standing, Lease)
    assert not standing.has_ttl
    assert owner_of(store, FIRST) == "me"


def test_a_reservation_made_in_the_moment_of_a_renewal_is_seen() -> None:
    """The watch shows our renewal and the operator's copy of it before the answer arrives."""
    store = Store()
    host = Host(store, wanted()).start()
    host.now = 23 * HOUR
    host.take(Woke())
    answer = store.perform(host.requests.pop())
    standing = store.leases[FIRST]
    assert isinstance(standing, Lease)
    store.write_lease(replace(standing, has_ttl=False))

    host.watch()
    host.take(answer)
    host.settle()

    assert host.state.held is not None
    assert host.state.held.expires_at is None
    assert host.state.held.lease.revision == store.revision


# Renewing, losing.


def test_a_lease_is_renewed_before_it_ends() -> None:
    """A margin before its end, for ever."""
    store = Store()
    host = Host(store, wanted()).start()

    host.sleep(22.9 * HOUR)
    assert not host.heard(Renewed)
    host.sleep(0.2 * HOUR)

    assert host.heard(Renewed)
    assert host.state.held is not None
    assert host.state.held.expires_at == 23 * HOUR + 24 * HOUR


def test_a_renewal_whose_answer_was_lost_is_made_again() -> None:
    """It took effect, but nobody knows when it ends; the store's revision is no longer the one we knew."""
    store = Store()
    host = Host(store, wanted()).start()
    host.now = 23 * HOUR
    host.take(Woke())
    put = host.requests.pop()
    assert isinstance(put, PutLease)
    store.perform(put)
    host.take(Failed(put, "timed out"))

    host.sleep(10)
    host.settle()

    assert host.state.held is not None
    assert host.state.held.lease.revision == store.revision
    assert host.state.held.expires_at is not None
    assert host.state.held.expires_at > 46 * HOUR


def test_a_lost_lease_is_taken_again_on_the_same_subnet() -> None:
    """Deleted by somebody: the host keeps its subnet, and the store names it again."""
    store = Store()
    host = Host(store, wanted()).start()
    store.delete_lease(FIRST)

    host.settle()

    assert host.subnet == FIRST
    assert owner_of(store, FIRST) == "me"
    assert host.heard(Lost)


def test_rubbish_at_our_key_is_written_over() -> None:
    """It names nobody; we live there."""
    store = Store()
    host = Host(store, wanted()).start()
    store.write_rubbish(FIRST)

    host.settle()

    assert owner_of(store, FIRST) == "me"


def test_a_lease_lost_to_another_is_left_to_it_and_the_host_runs_on() -> None:
    """Degraded, not renumbered; taken back as soon as it is free."""
    store = Store()
    host = Host(store, wanted()).start()
    store.delete_lease(FIRST)
    store.write_lease(lease(FIRST, "other", "192.168.50.1"))

    host.settle()

    assert host.subnet == FIRST
    assert owner_of(store, FIRST) == "other"
    assert host.heard(Taken)
    store.delete_lease(FIRST)
    host.settle()
    assert owner_of(store, FIRST) == "me"
    assert host.state.is_settled


def test_a_host_that_is_told_to_renumber_does() -> None:
    """--on-subnet-lost=renumber."""
    store = Store()
    host = Host(store, wanted(renumbers=True)).start()
    store.delete_lease(FIRST)
    store.write_lease(lease(FIRST, "other", "192.168.50.1"))

    host.settle()

    assert host.subnet == SECOND


def test_a_deletion_that_overtakes_the_answer_of_our_write_is_not_missed() -> None:
    """The watch shows our write and its deletion before the store's answer arrives."""
    store = Store()
    host = Host(store, wanted())
    host.take(Started())
    host.answer()
    put = host.requests.pop()
    answer = store.perform(put)
    store.delete_lease(FIRST)
    host.watch()
    host.take(answer)

    host.settle()

    assert owner_of(store, FIRST) == "me"
    assert host.heard(Lost)


def test_a_store_that_is_away_longer_than_the_ttl_costs_nothing() -> None:
    """The lease expires meanwhile; the same subnet is taken when the store is back."""
    store = Store()
    host = Host(store, wanted(ttl_s=60)).start()
    host.take(WatchLost("connection refused"))
    store.delete_lease(FIRST)
    host.seen = None  # nothing is delivered while it is away

    host.sleep(120)
    host.settle()

    assert host.subnet == FIRST
    assert owner_of(store, FIRST) == "me"


def test_compaction_is_a_fresh_look_and_not_an_empty_network() -> None:
    """What was lost is found out from the listing."""
    store = Store()
    host = Host(store, wanted()).start()
    store.delete_lease(FIRST)
    store.log.clear()
    host.take(WatchLost("compacted", is_compacted=True))

    host.settle()

    assert owner_of(store, FIRST) == "me"


def test_an_unchanged_lease_survives_compaction_without_a_write() -> None:
    """Ten thousand hosts that list again must not write ten thousand leases."""
    store = Store()
    host = Host(store, wanted()).start()
    host.take(WatchLost("compacted", is_compacted=True))

    host.settle()

    assert store.revision == 1
    assert host.state.is_settled


def test_a_change_of_address_is_published_and_the_subnet_stays() -> None:
    """By an order."""
    store = Store()
    host = Host(store, wanted()).start()

    host.take(Ordered(wanted(address="192.168.50.200")))
    host.settle()

    standing = store.leases[FIRST]
    assert isinstance(standing, Lease)
    assert standing.attributes.public_ip == IPv4Address("192.168.50.200")


def test_a_subnet_that_the_config_no_longer_admits_is_not_begun_with() -> None:
    """The config changed while the lease was asked for: nothing runs on it yet, so another is taken."""
    store = Store()
    host = Host(store, wanted())
    host.take(Started())
    host.answer()
    changed = replace(NETWORK, subnet_min=IPv4Address("10.100.2.0"))

    host.take(Ordered(replace(wanted(), network=changed)))
    host.settle()

    assert host.subnet == SECOND
    assert list(store.leases) == [SECOND]


def test_a_listing_from_before_the_config_is_not_chosen_from() -> None:
    """What others took since, by the config before, may lie within what is chosen."""
    store = Store(revision=3)
    host = Host(store, replace(wanted(), config_revision=4))
    host.take(Started())
    host.answer()
    assert not host.requests

    store.write_lease(lease(FIRST, "other", "192.168.50.1"))
    host.sleep(1)

    assert host.subnet == SECOND


def test_a_write_that_another_config_refused_is_tried_again_when_its_news_come() -> None:
    """Whether they come before the refusal or after it, and not every moment until then."""
    for comes_first in (False, True):
        host = Host(Store(revision=4), replace(wanted(), config_revision=3))
        host.take(Started())
        host.answer()
        put = host.requests.pop()
        news = Ordered(replace(wanted(), config_revision=4))

        for event in (news, Conflicted(put, None)) if comes_first else (Conflicted(put, None), news):
            assert not host.requests
            host.take(event)
        host.sleep(0)
        host.settle()

        assert host.subnet == FIRST


def test_a_lease_that_is_ours_again_ends_the_degradation() -> None:
    """An operator wrote it back over the other's, without deleting that first."""
    store = Store()
    host = Host(store, wanted()).start()
    store.write_lease(lease(FIRST, "other", "192.168.50.1"))
    host.settle()
    assert not host.state.is_settled

    store.write_lease(lease(FIRST, "me", "192.168.50.102"))
    host.settle()

    assert host.state.is_settled


def test_a_store_that_lost_its_data_is_watched_from_where_it_is_now() -> None:
    """Its revisions begin anew; watching from the old one would never see anything."""
    store = Store(revision=100)
    host = Host(store, wanted()).start()
    store.leases.clear()
    store.log.clear()
    store.revision = 1
    host.take(WatchLost("compacted", is_compacted=True))

    host.settle()

    assert host.seen is not None
    assert host.seen <= store.revision
    assert owner_of(store, FIRST) == "me"


def test_a_store_that_lost_its_data_and_has_grown_is_noticed() -> None:
    """The watch could go on where it was, and would never tell what stands there now."""
    store = Store()
    host = Host(store, wanted()).start()
    store.leases.clear()
    store.log.clear()
    store.revision = 100
    host.take(WatchLost("cut"))

    host.sleep(1)

    assert owner_of(store, FIRST) == "me"
    assert host.state.is_settled


def test_a_degraded_host_notices_a_store_that_lost_its_data_and_has_grown() -> None:
    store = Store()
    host = Host(store, wanted()).start()
    store.write_lease(lease(FIRST, "other", "192.168.50.1"))
    host.settle()
    store.leases.clear()
    store.log.clear()
    store.revision = 100
    host.take(WatchLost("cut"))

    host.sleep(1)

    assert owner_of(store, FIRST) == "me"
    assert host.state.is_settled


def test_nothing_is_checked_while_the_store_is_away() -> None:
    """A failed check leads to a listing: of thousands of hosts, each would ask for all leases."""
    host = Host(Store(), wanted()).start()
    host.take(WatchLost("no connection"))
    for _ in range(3):
        host.sleep(10)
        host.take(WatchLost("no connection"))

    assert host.requests == []


def test_a_check_that_fails_is_made_up_for_by_a_listing() -> None:
    store = Store()
    host = Host(store, wanted()).start()
    store.leases.clear()
    store.log.clear()
    store.revision = 100
    host.take(WatchLost("cut"))
    assert host.wake_at is not None
    host.now = host.wake_at
    host.take(Woke())
    host.take(Seen((), store.revision))

    host.take(Failed(host.requests.pop(0), "no answer"))  # type: ignore[arg-type]
    host.sleep(10)

    assert owner_of(store, FIRST) == "me"


def test_a_lease_that_stands_is_checked_and_nothing_more() -> None:
    """Also while the watch has not told yet of what was written since."""
    store = Store()
    host = Host(store, wanted()).start()
    writes = store.revision
    host.take(WatchLost("cut"))
    host.sleep(1)
    host.watch()
    assert [type(request) for request in host.requests] == [Check]
    host.settle()
    assert (store.revision, host.state.is_settled) == (writes, True)

    host.take(WatchLost("cut"))
    assert host.wake_at is not None
    host.now = host.wake_at
    host.take(Woke())
    host.take(Seen((), store.revision))
    store.write_lease(lease(FIRST, "me", "192.168.50.102"))
    host.answer()

    assert host.requests == []


def test_what_was_missed_in_another_life_of_the_store_is_no_news() -> None:
    """It lost its data twice; the lease that stood in the host's way was of its life between the two."""
    store = Store()
    host = Host(store, wanted()).start()
    store.write_rubbish(FIRST)
    host.watch()  # it asks for all leases; before the answer comes, another takes the subnet
    store.write_lease(lease(FIRST, "other", "192.168.50.1"))
    host.watch()
    host.settle()
    assert not host.state.is_settled
    store.leases.clear()
    store.log.clear()
    store.revision = 1
    host.take(WatchLost("compacted", is_compacted=True))

    host.settle()

    assert host.state.is_settled
    assert [type(report) for report in host.said].count(Taken) == 1


def test_a_revision_that_was_given_out_twice_makes_no_lease_ours() -> None:
    """A store that lost its data counts anew, and another host was faster."""
    store = Store()
    host = Host(store, wanted()).start()
    store.revision = 0
    store.log.clear()
    store.write_lease(lease(FIRST, "other", "192.168.50.1"))
    host.take(WatchLost("compacted", is_compacted=True))

    host.settle()

    assert not host.state.is_settled
    assert host.heard(Taken)


def host_whose_store_began_anew() -> Host:
    """Return a host whose watch was cut. Its store began anew, another has its subnet, at its revision."""
    store = Store()
    host = Host(store, wanted()).start()
    store.revision = 0
    store.log.clear()
    store.write_lease(lease(FIRST, "other", "192.168.50.1"))
    for _ in range(10):
        store.write_lease(lease(SECOND, "another", "192.168.50.2"))
    host.take(WatchLost("cut"))
    return host


def test_another_address_is_not_written_before_the_store_is_known_to_be_the_same() -> None:
    host = host_whose_store_began_anew()

    host.take(Ordered(wanted(address="192.168.50.103")))
    host.sleep(1)

    assert owner_of(host.store, FIRST) == "other"
    assert host.heard(Taken)


def test_another_address_is_not_written_while_that_is_asked() -> None:
    host = host_whose_store_began_anew()
    assert host.wake_at is not None
    host.now = host.wake_at
    host.take(Woke())
    host.take(Seen((), host.store.revision))
    assert [type(request) for request in host.requests] == [Check]

    host.take(Ordered(wanted(address="192.168.50.103")))
    host.settle()

    assert owner_of(host.store, FIRST) == "other"
    assert host.heard(Taken)


def test_a_lease_is_not_renewed_before_the_store_is_known_to_be_the_same() -> None:
    """When its time comes all leases are asked for: no lease ends as its host cannot watch."""
    host = host_whose_store_began_anew()
    assert host.wake_at is not None

    host.seen, host.now = None, 23 * HOUR + 1
    host.take(Woke())
    host.settle()

    assert owner_of(host.store, FIRST) == "other"
    assert host.heard(Taken)


def test_another_address_is_written_once_the_store_is_known_to_be_the_same() -> None:
    host = Host(Store(), wanted()).start()
    host.take(WatchLost("cut"))
    host.take(Ordered(wanted(address="192.168.50.103")))

    host.sleep(1)
    host.take(Seen((), host.store.revision))
    host.settle()

    standing = host.store.leases[FIRST]
    assert isinstance(standing, Lease)
    assert standing.attributes.public_ip == IPv4Address("192.168.50.103")
    assert host.state.is_settled


def checking(host: Host) -> Host:
    """Let a host's watch be cut and opened again, so that it asks what stands at its key."""
    host.take(WatchLost("cut"))
    assert host.wake_at is not None
    host.now = host.wake_at
    host.take(Woke())
    host.take(Seen((), host.store.revision))
    assert [type(request) for request in host.requests] == [Check]
    return host


def claim_on_first() -> Claim:
    return Claim(subnet=FIRST, owner="newcomer", public_ip=IPv4Address("192.168.50.102"))


def test_a_claim_is_not_answered_before_the_store_is_known_to_be_the_same() -> None:
    """It comes with the first that the watch tells; the lease that it is about may be another's."""
    host = host_whose_store_began_anew()
    host.store.write_claim(claim_on_first())

    host.sleep(1)

    assert owner_of(host.store, FIRST) == "other"
    assert host.heard(Taken)
    assert host.store.claims


def test_a_claim_is_answered_once_the_store_is_known_to_be_the_same() -> None:
    host = Host(Store(), wanted()).start()
    before = host.store.leases[FIRST].revision
    host.take(WatchLost("cut"))
    host.store.write_claim(claim_on_first())

    host.sleep(1)

    assert host.store.leases[FIRST].revision > before
    assert not host.store.claims
    assert [type(report) for report in host.said].count(SharedAddress) == 1


def test_a_claim_is_answered_although_the_question_about_the_store_failed() -> None:
    host = checking(Host(Store(), wanted()).start())
    host.store.write_claim(claim_on_first())
    host.watch()

    host.take(Failed(host.requests.pop(0), "no answer"))  # type: ignore[arg-type]
    host.sleep(1)

    assert not host.store.claims


def test_a_claim_is_answered_although_that_question_failed_while_the_lease_was_renewed() -> None:
    """The renewal is of what the watch told, so it was in the same store."""
    host = checking(Host(Store(), wanted()).start())
    host.store.write_lease(lease(FIRST, "me", "192.168.50.102"))
    host.watch()
    host.take(Failed(host.requests.pop(0), "no answer"))  # type: ignore[arg-type]
    host.settle()

    host.store.write_claim(claim_on_first())
    host.settle()

    assert not host.store.claims


def test_a_claim_is_answered_although_the_lease_was_made_a_reservation_meanwhile() -> None:
    host = checking(Host(Store(), wanted()).start())
    ours = host.store.leases[FIRST]
    assert isinstance(ours, Lease)
    host.store.write_claim(claim_on_first())
    host.store.write_lease(replace(ours, has_ttl=False))
    host.watch()

    host.settle()

    assert not host.store.claims


def test_a_claim_is_not_answered_while_the_watch_is_cut_once_more() -> None:
    """What the store said before says nothing of the one that is there by now."""
    host = checking(Host(Store(), wanted()).start())
    host.store.write_claim(claim_on_first())
    host.watch()
    host.take(WatchLost("cut"))

    host.answer()

    assert host.requests == []


def test_another_s_lease_at_a_revision_that_only_we_had_seen_is_noticed() -> None:
    """The watch, which was behind, tells of it, and it looks like our own write."""
    host = Host(Store(), wanted()).start()
    host.state = replace(host.state, revision=0)
    host.store.leases.clear()
    host.store.log.clear()
    host.store.revision = 0
    checking(host)
    host.store.write_lease(lease(FIRST, "other", "192.168.50.1"))

    host.settle()

    assert not host.state.is_settled
    assert host.heard(Taken)


@pytest.mark.parametrize("is_open", [True, False])
def test_a_watch_that_began_in_another_store_begins_again_where_the_listing_ends(is_open: bool) -> None:
    """What was written between the two would never be told; whether the watch had said that it is open."""
    store = Store()
    full = replace(NETWORK, subnet_max=NETWORK.subnet_min)
    store.revision = 10
    store.write_lease(lease(FIRST, "other", "192.168.50.1"))
    host = Host(store, replace(wanted(), network=full)).start()
    store.leases.clear()
    store.log.clear()
    store.revision = 3
    host.take(WatchLost("cut"))
    assert host.wake_at is not None
    host.now = host.wake_at
    host.take(Woke())
    host.take(Ordered(replace(wanted(), network=full, config_revision=1)))
    listed = store.perform(host.requests.pop(0))
    store.revision = 11
    if is_open:
        host.take(Seen((), store.revision))

    host.take(listed)

    assert host.seen == 3
    assert host.state.revision == 3


def test_a_listing_that_ends_where_the_watch_begins_shows_that_the_store_is_the_same() -> None:
    """A claim that was found in it waits for nothing more."""
    host = Host(Store(), wanted()).start()
    host.take(WatchLost("cut"))
    host.now = 23 * HOUR
    host.take(Woke())
    assert [type(request) for request in host.requests] == [List]
    host.take(Seen((), host.store.revision))
    host.store.write_claim(claim_on_first())
    host.seen = None  # the listing is faster

    host.settle()

    assert not host.store.claims


def test_a_failed_write_that_nobody_waits_for_is_no_absence_of_the_store() -> None:
    """Nothing would be tried again, so nothing would tell that the store is back."""
    store = Store()
    host = Host(store, wanted()).start()

    host.take(
        Failed(
            DeleteClaim(Claim(subnet=FIRST, owner="x", public_ip=IPv4Address("192.168.50.102"))), "timed out"
        )
    )

    assert not host.heard(StoreAway)
    assert host.state.failures == 0


# One address, two hosts.


def test_a_reinstalled_host_takes_its_old_lease_over_at_once() -> None:
    """Another identity, the same machine and address."""
    store = Store()
    store.write_lease(lease(THIRD, "old-self", "192.168.50.102", machine="m"))

    host = Host(store, wanted()).start()

    assert host.subnet == THIRD
    assert owner_of(store, THIRD) == "me"


def test_a_living_owner_keeps_its_lease_and_the_newcomer_takes_another() -> None:
    """Both say that they share an address, naming each other."""
    store = Store()
    owner = Host(store, wanted("owner", machine="m1")).start()
    newcomer = Host(store, wanted("newcomer", machine="m2")).start()
    assert newcomer.heard(Contested)

    owner.settle()
    newcomer.settle()

    assert owner.subnet == FIRST
    assert newcomer.subnet == SECOND
    assert owner_of(store, FIRST) == "owner"
    assert not store.claims
    assert any(isinstance(r, SharedAddress) and r.other == "newcomer" for r in owner.said)
    assert any(isinstance(r, SharedAddress) and r.other == "owner" for r in newcomer.said)


def test_a_dead_owner_loses_its_lease_after_the_claim_expired() -> None:
    """Unanswered for ten seconds."""
    store = Store()
    store.write_lease(lease(FIRST, "dead", "192.168.50.102"))
    newcomer = Host(store, wanted("newcomer")).start()
    newcomer.sleep(9.9)
    assert newcomer.subnet is None

    newcomer.sleep(0.2)

    assert newcomer.subnet == FIRST
    assert owner_of(store, FIRST) == "newcomer"


def test_an_owner_that_answers_at_the_last_moment_wins() -> None:
    """Its lease was written anew, so the take-over loses, although the newcomer never saw the answer."""
    store = Store()
    owner = Host(store, wanted("owner", machine="m1")).start()
    newcomer = Host(store, wanted("newcomer", machine="m2")).start()
    owner.settle()
    newcomer.seen = None  # its watch hangs

    newcomer.sleep(10.1)

    assert owner_of(store, FIRST) == "owner"
    assert newcomer.subnet != FIRST


def test_a_claim_that_stood_before_a_fresh_listing_is_answered() -> None:
    """The owner's watch was compacted away while the claim was written."""
    store = Store()
    owner = Host(store, wanted("owner", machine="m1")).start()
    Host(store, wanted("newcomer", machine="m2")).start()
    store.log.clear()
    owner.take(WatchLost("compacted", is_compacted=True))

    owner.settle()

    assert not store.claims


def test_a_clone_takes_a_new_identity() -> None:
    """Its identity lives at another address, and answers."""
    store = Store()
    first = Host(store, wanted("twin", "192.168.50.102")).start()
    clone = Host(store, wanted("twin", "192.168.50.103")).start()
    first.settle()
    clone.settle()
    assert clone.heard(Reidentify)

    clone.take(Ordered(wanted("own", "192.168.50.103")))
    clone.settle()

    assert owner_of(store, FIRST) == "twin"
    assert clone.subnet == SECOND


def test_our_old_address_is_ours_after_nobody_answered() -> None:
    """The host moved to another address while its daemon was down."""
    store = Store()
    store.write_lease(lease(FIRST, "me", "192.168.50.7"))
    host = Host(store, wanted()).start()

    host.sleep(10.1)

    standing = store.leases[FIRST]
    assert isinstance(standing, Lease)
    assert host.subnet == FIRST
    assert standing.attributes.public_ip == IPv4Address("192.168.50.102")


def test_a_claim_that_was_never_written_takes_nothing_over() -> None:
    """The store was slow: nobody was asked, so nobody's silence means anything."""
    store = Store()
    owner = Host(store, wanted("owner", machine="m1")).start()
    newcomer = Host(store, wanted("newcomer", machine="m2"))
    newcomer.take(Started())
    newcomer.answer()

    newcomer.now = 10.1
    newcomer.take(Woke())
    newcomer.settle()

    assert owner_of(store, FIRST) == "owner"
    owner.settle()
    newcomer.sleep(11)
    owner.settle()
    newcomer.settle()
    assert newcomer.subnet == SECOND


def test_the_owner_has_its_time_from_when_the_claim_is_known_to_be_written() -> None:
    """Not from when it was asked for."""
    store = Store()
    store.write_lease(lease(FIRST, "dead", "192.168.50.102"))
    newcomer = Host(store, wanted("newcomer"))
    newcomer.take(Started())
    newcomer.answer()
    newcomer.now = 9.0
    newcomer.settle()

    newcomer.sleep(9.9)

    assert newcomer.subnet is None
    newcomer.sleep(0.2)
    assert newcomer.subnet == FIRST


def test_an_owner_that_is_renewing_when_it_is_asked_renews_once_more() -> None:
    """The newcomer may have seen the renewal that was under way, and then missed the answer to its claim."""
    store = Store()
    owner = Host(store, wanted("owner", machine="m1")).start()
    owner.now = 23 * HOUR
    owner.take(Woke())
    renewal = owner.requests.pop()
    answer = store.perform(renewal)
    newcomer = Host(store, wanted("newcomer", machine="m2")).start()
    newcomer.seen = None  # its watch hangs

    owner.watch()
    owner.take(answer)
    owner.settle()
    newcomer.sleep(10.1)

    assert owner_of(store, FIRST) == "owner"


def test_a_claim_counts_no_longer_when_the_watch_was_cut() -> None:
    """The store lost it with its data, and the owner wrote its lease again, at the same revision."""
    store = Store()
    Host(store, wanted("owner", machine="m1")).start()
    newcomer = Host(store, wanted("newcomer", machine="m2")).start()
    assert newcomer.heard(Contested)
    store.claims.clear()
    newcomer.take(WatchLost("cut"))

    newcomer.sleep(11)

    assert owner_of(store, FIRST) == "owner"
    assert store.claims


def test_a_host_whose_address_changes_does_not_take_what_looked_like_its_own() -> None:
    """It asked whether the holder of its address lives; then it got another address."""
    store = Store()
    store.write_lease(lease(FIRST, "dead", "192.168.50.102"))
    newcomer = Host(store, wanted("newcomer")).start()

    newcomer.take(Ordered(wanted("newcomer", "192.168.50.103")))
    newcomer.settle()
    newcomer.sleep(11)

    assert owner_of(store, FIRST) == "dead"
    assert newcomer.subnet == SECOND


def test_two_hosts_with_one_identity_do_not_write_over_each_other_for_ever() -> None:
    """The copy took the lease over while its owner slept; the owner asks before it takes it back."""
    store = Store()
    first = Host(store, wanted("twin", "192.168.50.102")).start()
    clone = Host(store, wanted("twin", "192.168.50.103")).start()
    clone.sleep(11)
    assert clone.subnet == FIRST

    for _ in range(5):
        first.settle()
        clone.settle()

    assert first.heard(Reidentify)
    first.take(Ordered(wanted("own", "192.168.50.102")))
    first.settle()
    assert first.subnet == FIRST
    assert not first.state.is_settled
    assert clone.state.is_settled


def test_the_subnet_of_our_containers_comes_before_what_a_former_self_left() -> None:
    """A leftover of the identity before a re-installation; our own lease expired meanwhile."""
    store = Store()
    store.write_lease(lease(FIRST, "old-self", "192.168.50.102", machine="m"))

    host = Host(store, wanted(previous=THIRD)).start()

    assert host.subnet == THIRD
    assert owner_of(store, FIRST) == "old-self"


# A host that runs already.


def test_a_host_that_started_without_its_store_publishes_what_it_runs_on() -> None:
    """The lease came from a file: nobody knows when it ends, so it is written anew."""
    store = Store()
    standing = store.write_lease(lease(THIRD, "me", "192.168.50.102"))
    host = Host(store, wanted(), held=Held(lease=replace(standing, revision=0))).start()

    assert host.subnet == THIRD
    assert host.state.is_settled
    assert host.state.held is not None
    assert host.state.held.expires_at is not None


def test_a_host_that_started_without_its_store_leaves_a_subnet_that_was_given_away() -> None:
    """It runs on, degraded."""
    store = Store()
    store.write_lease(lease(THIRD, "other", "192.168.50.1"))
    host = Host(store, wanted(), held=Held(lease=lease(THIRD, "me", "192.168.50.102"))).start()

    assert host.subnet == THIRD
    assert owner_of(store, THIRD) == "other"
    assert host.heard(Taken)
