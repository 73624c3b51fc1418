"""Computes the attributes of the lease that this host publishes from the host's condition."""

import logging
from ipaddress import IPv4Network, IPv6Address, IPv6Network

from msgspec.structs import replace

from pyflannel.engine.condition import HostCondition
from pyflannel.engine.world import HostOptions
from pyflannel.errors import WireError
from pyflannel.model.lease import BackendData, BackendPart, LeaseAttributes, Vtep, WireguardData
from pyflannel.model.lease_protocol import Wanted
from pyflannel.model.network_config import BOTH_FAMILIES, Family, IpNetwork
from pyflannel.plan.backend.vxlan import may_stay
from pyflannel.plan.backends import Backend
from pyflannel.wire.lease_json import format_backend_data
from pyflannel.wire.subnet_env import previous_ipv6_subnet, previous_subnet

log = logging.getLogger(__name__)


def previous_run_subnet(options: HostOptions) -> IpNetwork | None:
    """Return the subnet of the previous run that identified its lease, from the old subnet.env; None if no
    subnet is known.
    """
    if options.subnet_env is None:
        return None
    try:
        return previous_subnet(options.subnet_env) or _previous_ipv6(options)
    except WireError as error:
        log.error(
            "Couldn't parse previous FLANNEL_SUBNET from subnet file at %s: %s",
            options.plan.subnet_file,
            error,
        )
        return None


def _previous_ipv6(options: HostOptions) -> IPv6Network | None:
    """Return the IPv6 subnet of the previous run; None if it is missing or malformed."""
    try:
        return None if options.subnet_env is None else previous_ipv6_subnet(options.subnet_env)
    except WireError:
        return None


def wanted_lease(
    condition: HostCondition,
    options: HostOptions,
    *,
    reads: tuple[str, ...],
    previous: IpNetwork | None,
    avoided: tuple[IpNetwork, ...],
) -> Wanted:
    """Return the lease that this host wants, if config, backend and underlay are known.

    Args:
        condition: condition of the host.
        options: options of the operator.
        reads: packet formats that the host accepts in addition to those of the original.
        previous: subnet of the previous run, from the old subnet.env.
        avoided: prefixes that a new subnet should not overlap.
    """
    inputs = condition.inputs
    config, underlay = inputs.config, inputs.underlay
    assert config is not None
    assert underlay is not None
    attributes = LeaseAttributes(
        public_ip=underlay.public_ip,
        public_ipv6=_public_ipv6(condition) if config.enable_ipv6 else None,
        reads=tuple(sorted({*reads, *inputs.backends[0].reads})),
    )
    return Wanted(
        network=config,
        config_revision=condition.config.revision,
        attributes=identified(attributes, condition, host_name=options.host_name),
        previous=previous if isinstance(previous, IPv4Network) else None,
        previous_ipv6=_previous_ipv6(options),
        avoided=avoided,
        ttl_s=options.lease_ttl_s,
        renew_margin_s=options.renew_margin_s,
        renumbers=options.renumbers,
    )


def _public_ipv6(condition: HostCondition) -> IPv6Address | None:
    """Return the IPv6 address to publish; if the host has lost it, the address in its current lease.

    Some releases of the original crash on a lease with an IPv6 subnet and without this address.
    """
    underlay, held = condition.inputs.underlay, condition.held
    if underlay is not None and underlay.public_ipv6 is not None:
        return underlay.public_ipv6
    return None if held is None else held.lease.attributes.public_ipv6


def identified(
    attributes: LeaseAttributes, condition: HostCondition, *, host_name: str | None
) -> LeaseAttributes:
    """Return the attributes with this host's current identity: owner, names and public keys.

    The outermost keys of the lease name the backend by which this host prefers to send. The lease does not
    name the next backend before it is prepared.
    """
    inputs, identity = condition.inputs, condition.identity
    served = inputs.backends if inputs.is_prepared else inputs.backends[:-1]
    part, *also = (_part(backend, condition) for backend in served)
    attributes = replace(
        attributes, owner=identity.owner, host_name=host_name, signing_key=identity.signing_key
    )
    return attributes.with_backend(part, tuple(also))


def _part(backend: Backend, condition: HostCondition) -> BackendPart:
    """Return the part of the lease that describes a backend, in both families."""
    config = condition.inputs.config
    families = () if config is None else config.families
    data, data_v6 = (
        _data(backend, condition, family) if family in families and family in backend.families else None
        for family in BOTH_FAMILIES
    )
    return BackendPart(
        backend_type=backend.lease_type,
        backend_data=format_backend_data(data) if isinstance(data, WireguardData) else None,
        backend_v6_data=format_backend_data(data_v6) if isinstance(data_v6, WireguardData) else None,
        port=backend.port,
        vtep=data if isinstance(data, Vtep) else None,
        vtep_v6=data_v6 if isinstance(data_v6, Vtep) else None,
        wireguard=data if isinstance(data, WireguardData) else None,
        wireguard_v6=data_v6 if isinstance(data_v6, WireguardData) else None,
    )


def _data(backend: Backend, condition: HostCondition, family: Family) -> BackendData | None:
    """Return the data that the lease contains for a backend. A VTEP address that the peers already know is
    not changed.
    """
    owner, held = condition.identity.owner, condition.held
    data = backend.lease_data(owner, condition.inputs.wireguard, family)
    if isinstance(data, Vtep) and held is not None and held.lease.attributes.owner == owner:
        known = (one.attributes for one in held.lease.variants)
        published = (one.vtep if family == 4 else one.vtep_v6 for one in known)
        return next((vtep for vtep in published if may_stay(vtep, data)), data)
    return data
