"""Of several keys of one IPv4 subnet one counts: what of the store's news the lease protocol is to hear."""

from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network

from pyflannel.model.lease_protocol import Event, LeaseChange, LeaseGone, LeaseSeen, Listed, Seen, Unreadable
from pyflannel.model.lease_set import LeaseSet


def what_counts(event: Event, before: LeaseSet, after: LeaseSet) -> Event:
    """Return the event without what happened to keys with an IPv6 subnet, where they do not count.

    `before` and `after` it, these leases were known. The protocol asks for IPv4 subnets alone: at such a key
    it neither loses a lease nor finds somebody who took it.
    """
    match event:
        case Listed():
            return _listed(event)
        case Seen(changes, revision):
            return Seen(tuple(one for one in changes if _counts(one, before, after)), revision)
        case _:
            return event


def _listed(listed: Listed) -> Listed:
    if not any(one.ipv6_subnet for one in listed.leases + listed.unreadable):
        return listed
    counting = LeaseSet.of(listed.leases).by_subnet
    alone = [one for one in listed.unreadable if one.ipv6_subnet is None]
    known = {*counting, *(one.subnet for one in alone)}
    # The subnet is occupied, and its own key is free.
    others = (replace(one, revision=0) for one in listed.unreadable if one.subnet not in known)
    return replace(
        listed,
        leases=tuple(lease for lease in listed.leases if counting[lease.subnet] is lease),
        unreadable=(*alone, *others),
    )


def _counts(change: LeaseChange, before: LeaseSet, after: LeaseSet) -> bool:
    match change:
        case LeaseSeen(lease):
            subnet, ipv6_subnet = lease.subnet, lease.ipv6_subnet
        case LeaseGone(subnet, _, ipv6_subnet) | Unreadable(subnet, _, ipv6_subnet):
            pass
        case _:
            return True
    return ipv6_subnet is None or any(_is_at(subnet, ipv6_subnet, leases) for leases in (before, after))


def _is_at(subnet: IPv4Network, ipv6_subnet: IPv6Network, leases: LeaseSet) -> bool:
    lease = leases.by_subnet.get(subnet)
    return lease is not None and lease.ipv6_subnet == ipv6_subnet
