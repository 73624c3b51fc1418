"""Decisions of the Docker plugin: the division of the host's subnet, addresses, and the planned bridges."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from msgspec.structs import replace

from pyflannel.errors import DockerPluginError
from pyflannel.model.docker import (
    Division,
    DockerEndpoint,
    DockerNetwork,
    DockerParts,
    DockerState,
    Ipv6Pool,
    Pool,
)
from pyflannel.model.host import Host
from pyflannel.model.item import Item
from pyflannel.model.link import Address, Link
from pyflannel.model.network_config import IpAddress, IpNetwork, is_part
from pyflannel.model.route import IPV6_METRIC, PROTOCOL_KERNEL, SCOPE_LINK, Route

_PARTS_LENGTH = 3
"""Number of prefix bits that select a part of the subnet: 3 bits for eight parts."""

_LONGEST_SUBNET = 26
"""Prefix length of the smallest subnet that can be divided. Each part of this subnet has five addresses for
containers.
"""

_LONGEST_POOL = 29
_LONGEST_IPV6_POOL = 120

NETWORK_OPTION = "flannel.network"
_LENGTH_OPTION = "flannel.subnet-len"


def create_command(network: str) -> str:
    """Return the command that creates a network of Docker in the flannel network of this name."""
    command = "docker network create -d flannel --ipam-driver flannel"
    options = f" -o {NETWORK_OPTION}={network} --ipam-opt {NETWORK_OPTION}={network}" if network else ""
    return f"{command}{options} NAME"


def flannel_network(option: object, known: Sequence[str] | None, *, holder: str | None = None) -> str:
    """Return the flannel network that the user chose with an option.

    Args:
        option: the value of `flannel.network`; None if the option is missing.
        known: names of the flannel networks of this host; None if the host has only one network, without a
            name.
        holder: for the network driver, the flannel network whose addresses the IPAM driver gave.

    Raises:
        DockerPluginError: the network does not exist, or the options of the two drivers disagree.
    """
    if known is None:
        if option is not None:
            raise DockerPluginError(
                f"there is no flannel network {option}: flanneld runs one network, without a name",
                hint=f"Omit {NETWORK_OPTION}, or start flanneld with --networks.",
            )
        return ""
    if option is not None and option not in known:
        raise DockerPluginError(
            f"the flannel network {option} does not exist on this host; the existing networks are: "
            f"{', '.join(known) or 'none'}",
            hint="Choose an existing network, or write the config of the network to the store and add its "
            "name to --networks.",
        )
    if holder is not None and holder != option:
        which = "it is missing" if option is None else f"it is {option}"
        raise DockerPluginError(
            f"the addresses belong to the flannel network {holder} (--ipam-opt), so -o {NETWORK_OPTION} "
            f"must be {holder}, not {which}",
            hint=f"Run: {create_command(holder)}",
        )
    if option is None:
        raise DockerPluginError(
            f"no option selects one of the flannel networks of this host: {', '.join(known) or 'none yet'}",
            hint=f"Run, for example: {create_command(known[0] if known else 'NETWORK')}",
        )
    return str(option)


def divide(subnet: IpNetwork) -> Division | None:
    """Return the parts of a host's subnet; None if the subnet is too small, or not IPv4."""
    if not isinstance(subnet, IPv4Network) or subnet.prefixlen > _LONGEST_SUBNET:
        return None
    docker0, cni, *networks = subnet.subnets(prefixlen_diff=_PARTS_LENGTH)
    return Division(docker0, cni, tuple(networks))


def request_pool(
    state: DockerState,
    host: IPv4Network,
    taken: Collection[IPv4Network],
    *,
    wanted: IPv4Network | None,
    choice: IPv4Network | None,
    options: Mapping[str, str],
    network: str = "",
) -> tuple[DockerState, Pool]:
    """Return the addresses of a new network.

    Args:
        state: the state before the request.
        host: the subnet of this host.
        taken: prefixes of other bridges and routes of the host. Docker repeats its request forever if it gets
            one of these prefixes.
        wanted: the subnet that the user gave; None to choose one.
        choice: the part of the subnet from which addresses are chosen.
        options: options of the user for the IPAM driver.
        network: name of the flannel network; "" if the host has only one network, without a name.

    Raises:
        DockerPluginError: the pool does not exist.
    """
    division = divide(host)
    if division is None:
        raise DockerPluginError(
            f"the subnet {host} of this host is too small to be divided",
            hint=f"Write a network config with SubnetLen {_LONGEST_SUBNET} or less.",
        )
    length = _pool_length(options, host)
    taken = [*taken, *(pool.subnet for pool in state.pools.values())]
    taken += [network.subnet for network in state.networks.values()]
    if wanted is not None:
        subnet = _checked(wanted, host, division, taken)
    else:
        subnet = _chosen(division, length, taken)
    if choice is not None and not choice.subnet_of(subnet):
        raise DockerPluginError(
            f"the address range {choice} is not in the subnet {subnet}", hint="Correct --ip-range."
        )
    pool = Pool(subnet=subnet, choice=choice or subnet, network=network)
    return replace(state, pools={**state.pools, pool.name: pool}), pool


_IPV6_BITS = 16
"""Number of bits by which the prefix of an IPv6 pool is longer than the subnet of the host, for example a
/80 in a /64."""

_LONGEST_IPV6_SUBNET = 104


def request_ipv6_pool(
    state: DockerState,
    host: IPv6Network | None,
    *,
    wanted: IPv6Network | None,
    choice: IPv6Network | None,
    network: str = "",
) -> tuple[DockerState, Ipv6Pool]:
    """Return the IPv6 addresses of a new network: see `request_pool`. Docker does not compare IPv6 routes.

    Raises:
        DockerPluginError: the pool does not exist.
    """
    if host is None:
        raise DockerPluginError(
            "the flannel network has no IPv6 subnet for this host",
            hint="Write a network config with EnableIPv6 and IPv6Network, or create the network without"
            " --ipv6.",
        )
    if host.prefixlen > _LONGEST_IPV6_SUBNET:
        raise DockerPluginError(
            f"the subnet {host} of this host is too small to be divided",
            hint=f"Write a network config with IPv6SubnetLen {_LONGEST_IPV6_SUBNET} or less.",
        )
    _, _, *parts = host.subnets(prefixlen_diff=_PARTS_LENGTH)  # the second part is for CNI
    taken = [pool.subnet for pool in state.ipv6_pools.values()]
    taken += [one.ipv6_gateway.network for one in state.networks.values() if one.ipv6_gateway is not None]
    ends = f"{parts[0].network_address} to {parts[-1].broadcast_address}"
    candidates: Iterable[IPv6Network] = (
        one for part in parts for one in part.subnets(new_prefix=host.prefixlen + _IPV6_BITS)
    )
    if wanted is not None:
        is_inside = any(wanted.subnet_of(part) for part in parts) and wanted.prefixlen <= _LONGEST_IPV6_POOL
        candidates = [wanted] if is_inside else []
    subnet = next((one for one in candidates if not any(one.overlaps(other) for other in taken)), None)
    if subnet is None:
        raise DockerPluginError(
            f"the IPv6 subnet {wanted or ''} is not a free part of {ends}",
            hint=f"Choose a /{_LONGEST_IPV6_POOL} or larger in the subnet of this host, or omit the "
            "--subnet of IPv6.",
        )
    if choice is not None and not choice.subnet_of(subnet):
        raise DockerPluginError(
            f"the address range {choice} is not in the subnet {subnet}", hint="Correct --ip-range."
        )
    pool = Ipv6Pool(subnet=subnet, choice=choice or subnet, network=network)
    return replace(state, ipv6_pools={**state.ipv6_pools, pool.name: pool}), pool


def ipv6_part_of_cni(host: IPv6Network | None) -> IPv6Network | None:
    """Return the part of the host's IPv6 subnet for CNI; None if the subnet is not divided."""
    if host is None or host.prefixlen > _LONGEST_IPV6_SUBNET:
        return None
    return list(host.subnets(prefixlen_diff=_PARTS_LENGTH))[1]


def _pool_length(options: Mapping[str, str], host: IPv4Network) -> int:
    """Return the prefix length of the pool that the options request."""
    default = host.prefixlen + _PARTS_LENGTH
    for name in options:
        if name not in (_LENGTH_OPTION, NETWORK_OPTION):
            raise DockerPluginError(
                f"{name} is not an option of the IPAM driver flannel",
                hint=f"Use --ipam-opt with {_LENGTH_OPTION} or {NETWORK_OPTION}, or no option.",
            )
    text = options.get(_LENGTH_OPTION, str(default))
    if not (text.isascii() and text.isdigit() and host.prefixlen < int(text) <= _LONGEST_POOL):
        raise DockerPluginError(
            f"{_LENGTH_OPTION}={text} is not a prefix length from {host.prefixlen + 1} to {_LONGEST_POOL}",
            hint=f"Write --ipam-opt {_LENGTH_OPTION}={default}, for example.",
        )
    return int(text)


def _checked(
    wanted: IPv4Network, host: IPv4Network, division: Division, taken: Iterable[IPv4Network]
) -> IPv4Network:
    if not wanted.subnet_of(host) or wanted == host:
        raise DockerPluginError(
            f"the subnet {wanted} is not a part of the subnet {host} of this host",
            hint=f"Choose a subnet within {_in_words(division.networks)}, or omit --subnet.",
        )
    for part, user in ((division.docker0, "docker0"), (division.cni, "CNI")):
        if wanted.overlaps(part):
            raise DockerPluginError(
                f"the subnet {wanted} overlaps {part}, which is the part of {user}",
                hint=f"Choose a subnet within {_in_words(division.networks)}, or omit --subnet.",
            )
    if wanted.prefixlen > _LONGEST_POOL:
        raise DockerPluginError(
            f"the subnet {wanted} is too small",
            hint=f"Choose a /{_LONGEST_POOL} or larger, or omit --subnet.",
        )
    for other in taken:
        if wanted.overlaps(other):
            raise DockerPluginError(
                f"the subnet {wanted} overlaps {other}, which this host uses",
                hint="`ip route` shows the link that uses this prefix. Choose another subnet, or omit "
                "--subnet.",
            )
    return wanted


def _chosen(division: Division, length: int, taken: Collection[IPv4Network]) -> IPv4Network:
    for subnet in _candidates(division, length):
        if not any(subnet.overlaps(other) for other in taken):
            return subnet
    covering = [other for other in taken if all(other.supernet_of(part) for part in division.networks)]
    if covering:
        raise DockerPluginError(
            f"a route of this host contains {covering[0]}, so Docker does not accept a part of it for a "
            f"network",
            hint="If the route belongs to docker0, run mk-docker-opts -c -d /etc/default/docker and restart "
            "Docker. docker0 then gets its own part of the subnet. If the route belongs to a CNI bridge, "
            "delete the bridge.",
        )
    raise DockerPluginError(
        f"no /{length} of {_in_words(division.networks)} is free: each network of Docker needs one",
        hint="Remove unused networks with `docker network prune`, or create networks with fewer addresses "
        "with"
        f" --ipam-opt {_LENGTH_OPTION}={min(length + 1, _LONGEST_POOL)}.",
    )


def _candidates(division: Division, length: int) -> Iterator[IPv4Network]:
    part_length = division.docker0.prefixlen
    if length >= part_length:
        for part in division.networks:
            yield from part.subnets(new_prefix=length)
        return
    for part in division.networks:
        whole = part.supernet(new_prefix=length)
        if part.network_address == whole.network_address and not (
            whole.overlaps(division.docker0) or whole.overlaps(division.cni)
        ):
            yield whole


def _in_words(parts: Iterable[IPv4Network]) -> str:
    parts = tuple(parts)
    return f"{parts[0].network_address} to {parts[-1].broadcast_address}"


def release_pool(state: DockerState, name: str) -> DockerState:
    """Return the state without a pool. An unknown pool counts as already released."""
    return replace(
        state,
        pools={key: pool for key, pool in state.pools.items() if key != name},
        ipv6_pools={key: pool for key, pool in state.ipv6_pools.items() if key != name},
    )


def request_address(
    state: DockerState, name: str, wanted: IpAddress | None
) -> tuple[DockerState, Pool | Ipv6Pool, IpAddress]:
    """Return an address of a pool that is not in use.

    Raises:
        DockerPluginError: no address is free, or the requested address is in use.
    """
    pool = _pool(state, name)
    if wanted is None:
        wanted = next((one for one in pool.choice.hosts() if _is_free(pool, one)), None)
        if wanted is None:
            raise DockerPluginError(
                f"every address of {pool.choice} is in use",
                hint="Remove containers, or create another network with a larger"
                f" --subnet or a smaller --ipam-opt {_LENGTH_OPTION}.",
            )
    elif wanted not in pool.subnet:
        raise DockerPluginError(
            f"the address {wanted} is not in the subnet {pool.subnet}",
            hint="Choose an address in this subnet.",
        )
    elif wanted in pool.used:
        raise DockerPluginError(
            f"the address {wanted} is in use in the network {pool.subnet}", hint="Choose another address."
        )
    elif not _is_free(pool, wanted):
        raise DockerPluginError(
            f"the address {wanted} is the first or the last of {pool.subnet}", hint="Choose another address."
        )
    taken = _marked(pool, wanted, is_used=True)
    return _with_pool(state, taken), taken, wanted


def _marked(pool: Pool | Ipv6Pool, address: IpAddress, *, is_used: bool) -> Pool | Ipv6Pool:
    match pool, address:
        case Pool(), IPv4Address():
            return pool.marked(address, is_used=is_used)
        case Ipv6Pool(), IPv6Address():
            return pool.marked(address, is_used=is_used)
        case _:
            return pool


def _is_free(pool: Pool | Ipv6Pool, address: IpAddress) -> bool:
    ends = pool.subnet.network_address, pool.subnet.broadcast_address
    return address not in pool.used and address not in ends


def release_address(state: DockerState, name: str, address: IpAddress) -> DockerState:
    """Return the state in which an address of a pool is free, unless a container has it.

    Docker deletes the endpoint of a container before it releases the address. If another endpoint has the
    address, `without_dead` has already freed this address, and it was assigned again.
    """
    pool = state.pools.get(name) or state.ipv6_pools.get(name)
    if pool is None or any(address in _addresses(endpoint) for endpoint in state.endpoints.values()):
        return state
    return _with_pool(state, _marked(pool, address, is_used=False))


def _addresses(endpoint: DockerEndpoint) -> tuple[IpAddress, ...]:
    ipv6 = endpoint.ipv6_address
    return (endpoint.address.ip,) if ipv6 is None else (endpoint.address.ip, ipv6.ip)


def without_dead(state: DockerState, links: Collection[str]) -> DockerState:
    """Return the state without the containers that have joined a network and whose link is not in `links`.

    The kernel deletes the link with the network namespace of the container. If Docker removed a container
    while flanneld did not run, Docker does not repeat the request.
    """
    for endpoint in tuple(state.endpoints.values()):
        if not endpoint.sandbox or endpoint.link in links:
            continue
        state = remove_endpoint(state, endpoint.name)
        pools: list[Pool | Ipv6Pool] = [*state.pools.values(), *state.ipv6_pools.values()]
        for pool in pools:
            for address in _addresses(endpoint):
                if address in pool.subnet:
                    state = release_address(state, pool.name, address)
    return state


def _pool(state: DockerState, name: str) -> Pool | Ipv6Pool:
    pool = state.pools.get(name) or state.ipv6_pools.get(name)
    if pool is None:
        raise DockerPluginError(
            f"the pool {name} does not exist",
            hint="The saved state of the plugin was deleted. Remove the network and create it again.",
        )
    return pool


def _with_pool(state: DockerState, pool: Pool | Ipv6Pool) -> DockerState:
    match pool:
        case Pool():
            return replace(state, pools={**state.pools, pool.name: pool})
        case Ipv6Pool():
            return replace(state, ipv6_pools={**state.ipv6_pools, pool.name: pool})


def add_network(
    state: DockerState, network: DockerNetwork, options: Iterable[str], flannel: str = ""
) -> DockerState:
    """Return the state with another network of Docker in the flannel network named `flannel`.

    Raises:
        DockerPluginError: the addresses do not belong to flannel, or an option is unknown.
    """
    if not any(pool.subnet == network.subnet for pool in state.pools.values()):
        raise DockerPluginError(
            f"another IPAM driver chose the subnet {network.subnet}, which no other host knows",
            hint=f"Run: {create_command(flannel)}",
        )
    ipv6 = network.ipv6_gateway
    if ipv6 is not None and not any(pool.subnet == ipv6.network for pool in state.ipv6_pools.values()):
        raise DockerPluginError(
            f"another IPAM driver chose the subnet {ipv6.network}, which no other host knows",
            hint=f"Run: {create_command(flannel)} --ipv6",
        )
    for name in options:
        if name != NETWORK_OPTION:
            raise DockerPluginError(
                f"{name} is not an option of the network driver flannel",
                hint="Create the network without this option.",
            )
    return replace(state, networks={**state.networks, network.name: network})


def remove_network(state: DockerState, name: str) -> DockerState:
    """Return the state without a network and its endpoints."""
    return replace(
        state,
        networks={key: one for key, one in state.networks.items() if key != name},
        endpoints={key: one for key, one in state.endpoints.items() if one.network != name},
    )


def put_endpoint(state: DockerState, endpoint: DockerEndpoint) -> DockerState:
    """Return the state with an endpoint, which replaces an endpoint with the same identifier."""
    return replace(state, endpoints={**state.endpoints, endpoint.name: endpoint})


def remove_endpoint(state: DockerState, name: str) -> DockerState:
    """Return the state without an endpoint."""
    return replace(state, endpoints={key: one for key, one in state.endpoints.items() if key != name})


def mac_of(address: IPv4Address) -> str:
    """Return the MAC address of a container, computed in the same way as by Docker's bridge driver.

    A new container with the address of an earlier container also has the same MAC address, so that ARP
    entries remain correct.
    """
    return ":".join(f"{byte:02x}" for byte in (0x02, 0x42, *address.packed))


_QUEUE_LENGTH = 1000
"""Length of the transmit queue in packets, which is the kernel's default for a bridge."""


def plan_bridges_of_docker(parts: DockerParts, host: Host, mtu: int) -> Iterator[Item]:
    """Yield the bridge of each network in the host's subnet, its address and the connected route.

    For IPv6, yield only the address and the route. The MAC address is fixed, because otherwise a bridge takes
    the address of a port, and changes it with its ports.
    """
    for network in parts.networks:
        if not is_part(network.subnet, host.lease.subnet):
            continue
        ipv6, own = network.ipv6_gateway, host.lease.ipv6_subnet
        has_ipv6 = ipv6 is not None and own is not None and ipv6.network.subnet_of(own)
        if host.family == 6:
            if ipv6 is not None and has_ipv6:
                yield Address(link=network.bridge, address=ipv6)
                yield Route(
                    destination=ipv6.network, link=network.bridge, metric=IPV6_METRIC, protocol=host.protocol
                )
            continue
        yield Link(
            name=network.bridge,
            kind="bridge",
            mtu=mtu,
            queue_length=_QUEUE_LENGTH,
            has_ipv6=has_ipv6,
            alias=host.mark,
            mac=mac_of(network.gateway.ip),
        )
        yield Address(link=network.bridge, address=network.gateway)
        yield Route(
            destination=network.subnet,
            link=network.bridge,
            source=network.gateway.ip,
            protocol=PROTOCOL_KERNEL,
            scope=SCOPE_LINK,
        )
