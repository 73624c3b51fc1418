"""The lease protocol of one host with a store in memory. Every response may be delayed."""

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Network

from msgspec.structs import replace

from lease_model.store import revision_of_change
from lease_model.world import Request
from pyflannel.model.lease import LEASE_TTL_S, Claim, Lease, LeaseAttributes
from pyflannel.model.lease_protocol import (
    Action,
    Check,
    Checked,
    ClaimGone,
    ClaimSeen,
    Conflicted,
    DeleteClaim,
    DeleteLease,
    Event,
    Failed,
    Held,
    LeaseChange,
    LeaseGone,
    LeaseSeen,
    List,
    Listed,
    PutClaim,
    PutLease,
    Seen,
    Started,
    Unreadable,
    Wake,
    Wanted,
    Watch,
    Woke,
    Wrote,
)
from pyflannel.model.network_config import IpNetwork, NetworkConfig
from pyflannel.plan.lease.state import LeaseState
from pyflannel.plan.lease.step import step

NETWORK = NetworkConfig(
    network=IPv4Network("10.100.0.0/16"),
    subnet_length=24,
    subnet_min=IPv4Address("10.100.1.0"),
    subnet_max=IPv4Address("10.100.4.0"),
)
FIRST, SECOND, THIRD = (IPv4Network(f"10.100.{n}.0/24") for n in (1, 2, 3))
HOUR = 3600.0


LeaseKey = IpNetwork | tuple[IpNetwork, IPv6Network]
"""The key of a lease: its subnet, or both subnets."""


def key_of(lease: Lease) -> LeaseKey:
    """Return the key of a lease."""
    return lease.subnet if lease.ipv6_subnet is None else (lease.subnet, lease.ipv6_subnet)


@dataclass
class Store:
    """A store in memory: leases by key and claims by subnet, a revision, and the complete history."""

    leases: dict[LeaseKey, Lease | Unreadable] = field(default_factory=dict)
    claims: dict[IpNetwork, Claim] = field(default_factory=dict)
    log: list[LeaseChange] = field(default_factory=list)
    revision: int = 0

    def lose_data(self, *, revision: int) -> None:
        """Lose all leases, and grow to this revision by foreign writes."""
        self.leases.clear()
        self.log.clear()
        self.revision = revision

    def write_lease(self, lease: Lease) -> Lease:
        """Write a lease, regardless of the current value; return it with its revision."""
        self.revision += 1
        self.leases[key_of(lease)] = lease = replace(lease, revision=self.revision)
        self.log.append(LeaseSeen(lease))
        return lease

    def write_rubbish(self, subnet: IpNetwork) -> None:
        """Write an invalid lease at the key of a subnet."""
        self.revision += 1
        self.leases[subnet] = Unreadable(subnet, self.revision)
        self.log.append(Unreadable(subnet, self.revision))

    def delete_lease(self, key: LeaseKey) -> None:
        """Delete a key."""
        self.revision += 1
        del self.leases[key]
        subnet, ipv6_subnet = key if isinstance(key, tuple) else (key, None)
        self.log.append(LeaseGone(subnet, self.revision, ipv6_subnet))

    def write_claim(self, claim: Claim) -> None:
        """Write a claim, regardless of the current value."""
        self.revision += 1
        self.claims[claim.subnet] = claim = replace(claim, revision=self.revision)
        self.log.append(ClaimSeen(claim))

    def delete_claim(self, subnet: IpNetwork) -> None:
        """Delete the claim on a subnet: it was answered, or expired."""
        self.revision += 1
        del self.claims[subnet]
        self.log.append(ClaimGone(subnet, self.revision))

    def perform(self, request: Request) -> Event:
        """Perform a request in the same way as a store, and return the response."""
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
                existing_lease = self.leases.get(key_of(lease))
                return Checked(lease, existing_lease if isinstance(existing_lease, Lease) else None)
            case PutLease(lease=lease, ttl_s=ttl_s, expected=expected):
                current = self.leases.get(key_of(lease))
                if (current.revision if current else 0) != expected:
                    return Conflicted(request, current if isinstance(current, Lease) else None)
                self.write_lease(replace(lease, has_ttl=ttl_s is not None))
            case DeleteLease(lease):
                current = self.leases.get(key_of(lease))
                if current is None or current.revision != lease.revision:
                    return Conflicted(request, current if isinstance(current, Lease) else None)
                self.delete_lease(key_of(lease))
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
    """One host with the protocol; `requests` wait until the test lets the store respond."""

    store: Store
    wanted: Wanted
    held: Held | None = None
    now: float = 0.0
    requests: list[Request] = field(default_factory=list)
    said: list[Action] = field(default_factory=list)
    seen: int | None = None
    wake_at: float | None = None

    def __post_init__(self) -> None:
        self.state = LeaseState(wanted=self.wanted, held=self.held)

    def take(self, event: Event) -> None:
        """Let the protocol handle an event; record its requests and reports.

        The protocol always chooses the first free subnet.
        """
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
        """Let the store respond to the oldest request."""
        self.take(self.store.perform(self.requests.pop(0)))

    def fail(self) -> None:
        """Let the oldest request fail without a response."""
        request = self.requests.pop(0)
        self.take(Failed(None if isinstance(request, List) else request, "no answer"))

    def watch(self) -> None:
        """Let the watch deliver the changes since its last delivery."""
        if self.seen is None:
            return
        changes = tuple(change for change in self.store.log if revision_of_change(change) > self.seen)
        self.seen = self.store.revision
        self.take(Seen(changes, self.store.revision))

    @property
    def is_behind(self) -> bool:
        """Return whether the watch has an undelivered change."""
        return self.seen is not None and self.seen < self.store.revision

    def settle(self) -> None:
        """Continue until there are no requests and changes, without a change of the time."""
        for _ in range(100):
            if self.requests:
                self.answer()
            elif self.is_behind:
                self.watch()
            else:
                return
        raise AssertionError("the protocol does not come to rest")

    def sleep(self, seconds: float) -> None:
        """Advance the time, and wake the protocol when it asked for it."""
        end = self.now + seconds
        while self.wake_at is not None and self.wake_at <= end:
            self.now, self.wake_at = max(self.now, self.wake_at), None
            self.take(Woke())
            self.settle()
        self.now = end

    def start(self) -> "Host":
        """Start the protocol and perform all its requests; return the host."""
        self.take(Started())
        self.settle()
        return self

    @property
    def subnet(self) -> IpNetwork | None:
        """The subnet that the host uses."""
        return self.state.held.lease.subnet if self.state.held else None

    def heard(self, kind: type) -> bool:
        """Return whether the operator received this report."""
        return any(isinstance(report, kind) for report in self.said)


def wanted(
    owner: str = "me",
    address: str = "192.168.50.102",
    *,
    previous: IPv4Network | None = None,
    ttl_s: int = LEASE_TTL_S,
    renumbers: bool = False,
) -> Wanted:
    """Return the wanted lease of a host."""
    attributes = LeaseAttributes(public_ip=IPv4Address(address), owner=owner, port=8285)
    return Wanted(network=NETWORK, attributes=attributes, previous=previous, ttl_s=ttl_s, renumbers=renumbers)


def lease(subnet: IpNetwork, owner: str | None, address: str, ttl: bool = True) -> Lease:
    """Return a written lease; without an owner, as the original writes it."""
    return Lease(
        subnet=subnet,
        attributes=LeaseAttributes(public_ip=IPv4Address(address), owner=owner),
        has_ttl=ttl,
    )


def owner_of(store: Store, subnet: IpNetwork) -> str | None:
    """Return the identity in the lease of a subnet."""
    standing = store.leases[subnet]
    assert isinstance(standing, Lease)
    return standing.attributes.owner
