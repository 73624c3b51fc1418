"""Reserving and releasing subnets: conditional writes of an operator to the leases in a store."""

import asyncio
import contextlib
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from typing import Literal
from uuid import uuid4

from msgspec import Struct

from pyflannel.errors import ConfigError, FlannelError, NotReadyError, StoreError, UsageError, WireError
from pyflannel.model.lease import CLAIM_TTL_S, NO_ADDRESS, Claim, Lease, LeaseAttributes
from pyflannel.model.network_config import AnyAddress, AnyNetwork, IpNetwork, NetworkConfig
from pyflannel.model.store_record import Conflict, Delete, DeleteSeen, Put, PutSeen, Record, Unchanged
from pyflannel.plan.lease.choice import pick_ipv6
from pyflannel.ports import Store
from pyflannel.wire.lease_record import (
    CONFIG,
    SUBNETS,
    claim_key,
    claim_value,
    lease_key,
    lease_of,
    lease_value,
    leased_subnets,
    parse_subnet_key,
    readable_lease,
)
from pyflannel.wire.network_config_json import parse_network_config

Subnets = tuple[IPv4Network, IPv6Network | None]
"""The subnets of a lease. Without an IPv6 subnet, this value also matches a lease that has an IPv6 subnet."""

ANSWER_S = 2.0
"""Seconds in which a running holder answers the claim of `release`; a connected holder needs milliseconds."""

_DELETE_S = 0.5
"""Deadline in seconds for the deletion of the claim."""

_CHANGED = "Run flannelctl leases, and try again."


class Reservation(Struct, frozen=True, kw_only=True):
    """The document of `leases reserve`. `was_written` is false if the subnet was already reserved for the
    host.
    """

    subnet: AnyNetwork
    ipv6_subnet: IPv6Network | None
    public_ip: AnyAddress
    host_name: str | None
    revision: int
    was_written: bool


class Release(Struct, frozen=True, kw_only=True):
    """The document of `leases release`.

    Attributes:
        holder: `alive` if the holder answered, `silent` if it did not within 2 s, `unknown` if it was not
            asked, because of --force or because an original flannel does not answer, and `none` for a
            reservation that no host has used.
    """

    subnet: AnyNetwork
    ipv6_subnet: IPv6Network | None
    public_ip: AnyAddress | None
    host_name: str | None
    was_reservation: bool
    holder: Literal["alive", "silent", "unknown", "none"]


def parse_subnets(text: str) -> Subnets:
    """Return the subnets that a text specifies: 10.5.52.0/24, with IPv6 after a comma, or the key of a lease.

    Raises:
        UsageError: the text has none of these forms.
    """
    try:
        if "/" not in text:
            return parse_subnet_key(text)
        ipv4, _, ipv6 = text.partition(",")
        return IPv4Network(ipv4.strip()), IPv6Network(ipv6.strip()) if ipv6 else None
    except (ValueError, WireError) as error:
        raise UsageError(
            f"{text!r} is not a subnet: {error}",
            hint="Write the subnet as flannelctl leases shows it, for example 10.100.5.0/24.",
        ) from error


async def reserve(store: Store, subnets: Subnets, public_ip: IPv4Address | None) -> Reservation:
    """Reserve a subnet for the host that holds it, or for the host with the address `public_ip`.

    Raises:
        ConfigError: there is no valid network config, or the config does not allow the subnet.
        FlannelError: another lease exists for the subnet or for the host.
        StoreError: the store does not respond, or another program wrote in the meantime.
        UsageError: no host is specified.
    """
    records = (await store.list(SUBNETS)).records
    record = _found(records, subnets)
    if record is None:
        return await _reserve_new(store, records, subnets, public_ip)
    lease = lease_of(record)
    attributes = lease.attributes
    if public_ip not in (None, attributes.public_ip):
        raise FlannelError(
            f"{lease.subnet} is leased to {attributes.host_text}, not to {public_ip}",
            hint="Reserve another subnet, or first release this subnet with flannelctl leases release.",
        )
    revision = record.revision
    if lease.has_ttl:
        # The value and its signature are not changed, because the signature does not cover the TTL.
        revision = await _write(
            store, Put(key=record.key, value=record.value, ttl_s=None, expected=record.revision)
        )
    return _reservation(lease, revision, was_written=lease.has_ttl)


async def _reserve_new(
    store: Store, records: Sequence[Record], subnets: Subnets, public_ip: IPv4Address | None
) -> Reservation:
    config_record = await store.get(CONFIG)
    if config_record is None:
        raise NotReadyError(
            "there is no network config yet", hint="First write a config with flannelctl config set FILE."
        )
    config = parse_network_config(config_record.value)
    if public_ip is None:
        raise UsageError(
            f"no host has a lease for {subnets[0]}",
            hint="Specify the host for which the subnet is reserved with --public-ip ADDRESS, its address "
            "on the underlay.",
        )
    _check_address(public_ip, config)
    leases = [(record, leased) for record in records if (leased := _subnets_of(record)) is not None]
    taken: list[IpNetwork] = [one for _, leased in leases for one in leased if one is not None]
    ipv6_subnet = subnets[1]
    if config.enable_ipv6 and ipv6_subnet is None:
        ipv6_subnet = pick_ipv6(config, taken, subnets[0])
        if ipv6_subnet is None:
            raise FlannelError(f"no IPv6 subnet of {config.ipv6_network} is free", hint="Widen IPv6Network.")
    wanted = [one for one in (subnets[0], ipv6_subnet) if one is not None]
    _check_range(wanted, config)
    for one in wanted:
        if (other := next((each for each in taken if each.overlaps(one)), None)) is not None:
            raise FlannelError(f"{one} overlaps the lease of {other}", hint=_OTHER_SUBNET)
    for record, _ in leases:
        held = readable_lease(record)
        if held is not None and held.attributes.public_ip == public_ip:
            raise FlannelError(
                f"{held.attributes.host_text} already has the lease of {held.subnet}",
                hint=f"Reserve {held.subnet} for this host, or run flannelctl cleanup on this host first.",
            )
    lease = Lease(
        subnet=subnets[0],
        ipv6_subnet=ipv6_subnet,
        attributes=LeaseAttributes(public_ip=public_ip),
        has_ttl=False,
    )
    put = Put(
        key=lease_key(lease),
        value=lease_value(lease),
        ttl_s=None,
        expected=0,
        given=Unchanged(CONFIG, config_record.revision),
    )
    return _reservation(lease, await _write(store, put), was_written=True)


_OTHER_SUBNET = "Choose a free subnet. flannelctl leases shows the subnets in use."


def _check_address(public_ip: IPv4Address, config: NetworkConfig) -> None:
    """Check that an address can be the address of a host on the underlay.

    Raises:
        UsageError: the address cannot be the address of a host.
    """
    if public_ip.is_unspecified or public_ip.is_multicast or public_ip.is_loopback:
        raise UsageError(
            f"--public-ip {public_ip} is not the address of a host",
            hint="Use the address of the host on the underlay.",
        )
    if config.network is not None and public_ip in config.network:
        raise UsageError(
            f"--public-ip {public_ip} is an address of the overlay {config.network}",
            hint="Use the address of the host on the underlay.",
        )


def _check_range(wanted: Sequence[IpNetwork], config: NetworkConfig) -> None:
    for one in wanted:
        if not config.admits(one):
            length = config.length_of(one.version)
            least = config.subnet_min if one.version == 4 else config.ipv6_subnet_min
            greatest = config.subnet_max if one.version == 4 else config.ipv6_subnet_max
            raise ConfigError(
                f"the network config does not allow {one}",
                hint=f"A subnet has the length /{length} and must be between {least} and {greatest}.",
            )


def _reservation(lease: Lease, revision: int, *, was_written: bool) -> Reservation:
    return Reservation(
        subnet=lease.subnet,
        ipv6_subnet=lease.ipv6_subnet,
        public_ip=lease.attributes.public_ip,
        host_name=lease.attributes.host_name,
        revision=revision,
        was_written=was_written,
    )


async def examine_release(store: Store, subnets: Subnets, *, asks: bool = True) -> tuple[Release, Record]:
    """Return the lease of a subnet and the state of its holder, and the record to delete.

    The function asks the holder with a claim, in the same way as another host. A running holder deletes the
    claim and writes its lease again. If `asks` is false, the holder is not asked, and its state is unknown.

    Raises:
        FlannelError: the subnet has no lease.
        StoreError: the store does not respond.
    """
    record = _found((await store.list(SUBNETS)).records, subnets)
    if record is None:
        raise FlannelError(f"no host has a lease for {subnets[0]}", hint=_CHANGED)
    subnet, ipv6_subnet = leased_subnets(record.key)
    lease = readable_lease(record)
    holder: Literal["alive", "silent", "unknown", "none"]
    if lease is None or not asks:
        holder = "unknown"
    elif lease.attributes.owner is not None:
        holder = "alive" if await _answers(store, subnet) else "silent"
    else:
        holder = "unknown" if lease.has_ttl else "none"
    return Release(
        subnet=subnet,
        ipv6_subnet=ipv6_subnet,
        public_ip=None if lease is None else lease.attributes.public_ip,
        host_name=None if lease is None else lease.attributes.host_name,
        was_reservation=record.lease_id == 0,
        holder=holder,
    ), record


async def release(store: Store, record: Record) -> None:
    """Delete the lease in this record.

    Raises:
        StoreError: the store does not respond, or the holder wrote its lease in the meantime.
    """
    if isinstance(await store.write(Delete(key=record.key, expected=record.revision)), Conflict):
        raise StoreError(
            f"{record.key} was written in the meantime, so its holder may be alive", hint=_CHANGED
        )


async def _answers(store: Store, subnet: IPv4Network) -> bool:
    """Return whether the holder of a subnet answers a claim. The claim is deleted before the function
    returns.

    The claim contains no address, so the holder does not report a conflict with another host.
    """
    claim = Claim(subnet=subnet, owner=f"flannelctl-{uuid4().hex}", public_ip=NO_ADDRESS)
    key = claim_key(subnet)
    put = Put(key=key, value=claim_value(claim), ttl_s=CLAIM_TTL_S, expected=0)
    written = await store.write(put)
    if isinstance(written, Conflict):
        raise StoreError(
            f"another host is asking whether the holder of {subnet} is alive",
            hint=f"Try again in {CLAIM_TTL_S} s.",
        )
    try:
        async with asyncio.timeout(ANSWER_S), store.watch(key, written.revision) as watcher:
            while True:
                for change in (await watcher.next()).changes:
                    match change:
                        case DeleteSeen():
                            return True
                        case PutSeen():
                            pass
    except TimeoutError:
        return False
    finally:
        with contextlib.suppress(StoreError, TimeoutError):  # the claim expires by itself
            async with asyncio.timeout(_DELETE_S):
                await store.write(Delete(key=key, expected=written.revision))


async def _write(store: Store, put: Put) -> int:
    outcome = await store.write(put)
    if isinstance(outcome, Conflict):
        raise StoreError(
            f"{put.key} or the network config was written by another program in the meantime", hint=_CHANGED
        )
    return outcome.revision


def _found(records: Sequence[Record], subnets: Subnets) -> Record | None:
    """Return the record of the lease for these subnets.

    Raises:
        UsageError: several records have a lease for these subnets.
    """
    found = [
        record
        for record in records
        if (leased := _subnets_of(record)) is not None
        and leased[0] == subnets[0]
        and subnets[1] in (None, leased[1])
    ]
    if len(found) > 1:
        keys = ", ".join(record.key.removeprefix(SUBNETS) for record in found)
        raise UsageError(f"{subnets[0]} has several keys: {keys}", hint="Specify one of these keys.")
    return found[0] if found else None


def _subnets_of(record: Record) -> Subnets | None:
    try:
        return leased_subnets(record.key)
    except WireError:
        return None
