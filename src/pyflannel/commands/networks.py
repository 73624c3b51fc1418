"""Several networks in one store: listing, creating and removing them."""

from collections.abc import Iterator, Sequence
from ipaddress import IPv4Network, IPv6Network

from msgspec import Struct

from pyflannel.assembly.directories import objection
from pyflannel.errors import ConfigError, FlannelError, NotReadyError, StoreError, UsageError
from pyflannel.model.network_config import NetworkConfig
from pyflannel.model.store_record import Conflict, Delete, Put, Record
from pyflannel.plan.backends import conflicts_of
from pyflannel.ports import Store
from pyflannel.wire.lease_record import CLAIMS, CONFIG, SUBNETS
from pyflannel.wire.network_config_json import parse_network_config


class NetworkEntry(Struct, frozen=True, kw_only=True):
    """One network of a store.

    Attributes:
        name: name of the network; None for the network without a name.
        network: address range of the network; None if it has no range, or if the config is invalid or
            missing.
        leases: number of leases, including reservations.
        error: reason why the config is invalid or missing; None if it is valid.
        config_revision: revision of the config in the store; 0 if it is missing.
    """

    name: str | None
    network: IPv4Network | None = None
    ipv6_network: IPv6Network | None = None
    backend_type: str | None = None
    leases: int = 0
    reservations: int = 0
    error: str | None = None
    config_revision: int = 0


class Networks(Struct, frozen=True, kw_only=True):
    """The document of `network ls`."""

    networks: tuple[NetworkEntry, ...]


class NetworkChange(Struct, frozen=True, kw_only=True):
    """The document of `network create` and `network rm`.

    Attributes:
        conflicts: conflicts with other networks, for `create --force`.
        removed_leases: number of deleted leases, for `rm --force`.
    """

    name: str
    network: IPv4Network | None
    conflicts: tuple[str, ...] = ()
    removed_leases: int = 0


async def list_networks(store: Store) -> Networks:
    """Return all networks with a config or a lease, with the network without a name first.

    Raises:
        StoreError: the store does not respond.
    """
    return Networks(networks=tuple(entry for entry, _ in await _known(store)))


async def _known(store: Store) -> list[tuple[NetworkEntry, NetworkConfig | None]]:
    """Return the networks, each with its config if the config is valid."""
    configs: dict[str | None, Record] = {}
    leases: dict[str | None, list[Record]] = {}
    for record in (await store.list("")).records:
        name, key = _split(record.key)
        if key == CONFIG:
            configs[name] = record
        elif key.startswith(SUBNETS):
            leases.setdefault(name, []).append(record)
    names = sorted({*configs, *leases}, key=lambda name: name or "")
    return [_entry(name, configs.get(name), leases.get(name, [])) for name in names]


def _split(key: str) -> tuple[str | None, str]:
    """Return the name of the network of a key, or None for the network without a name, and the key within
    the network.
    """
    name, _, rest = key.partition("/")
    if rest and objection(name) is None:
        return name, rest
    return None, key


def _entry(
    name: str | None, config: Record | None, leases: Sequence[Record]
) -> tuple[NetworkEntry, NetworkConfig | None]:
    parsed, error = None, "there is no config"
    if config is not None:
        try:
            parsed, error = parse_network_config(config.value), ""
        except ConfigError as failure:
            error = str(failure)
    return NetworkEntry(
        name=name,
        network=None if parsed is None else parsed.network,
        ipv6_network=parsed.ipv6_network if parsed is not None and parsed.enable_ipv6 else None,
        backend_type=None if parsed is None else parsed.backend_type,
        leases=len(leases),
        reservations=sum(record.lease_id == 0 for record in leases),
        error=error or None,
        config_revision=0 if config is None else config.revision,
    ), parsed


def check_name(name: str) -> None:
    """Check the name of a network.

    Raises:
        UsageError: no network can have this name.
    """
    if (why := objection(name)) is not None:
        raise UsageError(f"{name!r} cannot be the name of a network: {why}", hint="Choose another name.")


async def create_network(store: Store, name: str, text: str, *, is_forced: bool) -> NetworkChange:
    """Write the config of a new network.

    Raises:
        ConfigError: the config is invalid.
        FlannelError: the network exists, or conflicts with another network and `is_forced` is false.
        StoreError: the store does not respond, or another program wrote the config in the meantime.
        UsageError: no network can have this name.
    """
    check_name(name)
    config = parse_network_config(text)
    known = await _known(store)
    if any(entry.name == name and entry.config_revision for entry, _ in known):
        raise FlannelError(
            f"the network {name} exists", hint=f"Change its config: flannelctl --store URL#{name} config set."
        )
    conflicts = tuple(_conflicts(config, name, known))
    if conflicts and not is_forced:
        raise FlannelError(
            f"the network {name} conflicts with another network: {'; '.join(conflicts)}",
            hint="Change its config. If no host runs both networks, create the network with --force.",
        )
    put = Put(key=f"{name}/{CONFIG}", value=text.encode(), ttl_s=None, expected=0)
    if isinstance(await store.write(put), Conflict):
        raise StoreError(
            f"the network {name} was created by another program",
            hint="Check the networks with flannelctl network ls, and try again.",
        )
    return NetworkChange(name=name, network=config.network, conflicts=conflicts)


def _conflicts(
    config: NetworkConfig, name: str, known: Sequence[tuple[NetworkEntry, NetworkConfig | None]]
) -> Iterator[str]:
    for entry, other in known:
        if other is not None and entry.name != name:
            for why in conflicts_of(config, other):
                yield f"{why} as {shown_name(entry.name)}"


def shown_name(name: str | None) -> str:
    """Return the name of a network for people."""
    return "the network without a name" if name is None else f"the network {name}"


async def find_network(store: Store, name: str) -> NetworkEntry:
    """Return a network.

    Raises:
        NotReadyError: the network does not exist.
        StoreError: the store does not respond.
        UsageError: no network can have this name.
    """
    check_name(name)
    found = next((entry for entry, _ in await _known(store) if entry.name == name), None)
    if found is None:
        raise NotReadyError(f"there is no network {name}", hint="flannelctl network ls lists the networks.")
    return found


async def remove_network(store: Store, found: NetworkEntry, *, is_forced: bool) -> NetworkChange:
    """Delete the config of a network and, if `is_forced`, its leases.

    A new lease is conditional on the config, so no lease is written after the deletion of the config.

    Raises:
        FlannelError: the network has leases, and `is_forced` is false.
        StoreError: the store does not respond, or another program wrote the config in the meantime.
    """
    prefix, key = f"{found.name}/", f"{found.name}/{CONFIG}"
    if found.leases and not is_forced:
        raise _in_use(found, found.leases)
    config = await store.get(key)
    if (0 if config is None else config.revision) != found.config_revision:
        raise _changed(found)
    if config is not None:
        if isinstance(await store.write(Delete(key=key, expected=config.revision)), Conflict):
            raise _changed(found)
        late = (await store.list(prefix + SUBNETS)).records
        if late and not is_forced:
            await store.write(Put(key=key, value=config.value, ttl_s=None, expected=0))
            raise _in_use(found, len(late))
    removed = 0
    for part in (SUBNETS, CLAIMS):
        for record in (await store.list(prefix + part)).records:
            outcome = await store.write(Delete(key=record.key, expected=record.revision))
            removed += part == SUBNETS and not isinstance(outcome, Conflict)
    return NetworkChange(name=str(found.name), network=found.network, removed_leases=removed)


def _in_use(found: NetworkEntry, leases: int) -> FlannelError:
    return FlannelError(
        f"the network {found.name} has {leases} lease{'' if leases == 1 else 's'}",
        hint=f"Run flannelctl cleanup on its hosts, which flannelctl --store URL#{found.name} leases lists. "
        "--force also deletes the leases.",
    )


def _changed(found: NetworkEntry) -> StoreError:
    return StoreError(
        f"the config of the network {found.name} was written by another program",
        hint="Check the networks with flannelctl network ls, and try again.",
    )
