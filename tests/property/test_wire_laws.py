"""Laws of the store's formats: written values are read back; any input raises only pyflannel's errors."""

import json
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network, IPv6Network

from hypothesis import given
from hypothesis import strategies as st

from pyflannel.errors import ConfigError, WireError
from pyflannel.model.lease import Claim, Lease, LeaseAttributes
from pyflannel.model.store_record import Record
from pyflannel.wire.json_values import escape
from pyflannel.wire.lease_json import (
    format_claim,
    format_lease_attributes,
    parse_claim,
    parse_lease_attributes,
)
from pyflannel.wire.lease_record import format_subnet_key, lease_key, lease_of, lease_value, parse_subnet_key
from pyflannel.wire.network_config_json import format_network_config, parse_network_config

MAPPED = IPv6Network("::ffff:0:0/96")


def ipv4_networks(shortest: int, longest: int) -> st.SearchStrategy[IPv4Network]:
    return st.builds(
        lambda number, length: IPv4Network((number, length), strict=False),
        st.integers(0, 2**32 - 1),
        st.integers(shortest, longest),
    )


def ipv6_networks(shortest: int, longest: int) -> st.SearchStrategy[IPv6Network]:
    return st.builds(
        lambda number, length: IPv6Network((number, length), strict=False),
        st.integers(0, 2**128 - 1),
        st.integers(shortest, longest),
    ).filter(lambda network: not network.overlaps(MAPPED) or network.prefixlen < 96)


texts = st.text(st.characters(codec="utf-8"), max_size=20)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
backend_data = st.none() | json_values.map(
    lambda value: escape(json.dumps(value, separators=(",", ":"), ensure_ascii=False))
)

attributes_without_owner = st.builds(
    LeaseAttributes,
    public_ip=st.ip_addresses(v=4),
    public_ipv6=st.none() | st.ip_addresses(v=6),
    backend_type=texts,
    backend_data=backend_data,
    backend_v6_data=backend_data,
)
attributes_with_owner = st.builds(
    LeaseAttributes,
    public_ip=st.ip_addresses(v=4),
    public_ipv6=st.none() | st.ip_addresses(v=6),
    backend_type=texts,
    backend_data=backend_data,
    owner=texts.filter(bool),
    host_name=st.none() | st.sampled_from(["docker1", "web-7.example.com"]),
    port=st.none() | st.integers(1, 65535),
    signing_key=st.none() | st.binary(min_size=32, max_size=32),
    counter=st.none() | st.integers(1, 2**53),
    signature=st.none() | st.binary(min_size=64, max_size=64),
    reads=st.lists(texts, max_size=3).map(lambda reads: tuple(sorted(reads))),
)
attributes = attributes_without_owner | attributes_with_owner

addresses = st.ip_addresses().map(str) | st.sampled_from(["10.3.0.0", "10.3.255.0", "fc00::", "0.0.0.0"])
networks = ipv4_networks(0, 32).map(str) | ipv6_networks(0, 128).map(str) | st.just("10.3.0.0/16")
flags = st.none() | st.booleans()
families = st.sampled_from(
    [{}, {"EnableIPv6": True}, {"EnableIPv4": False}, {"EnableIPv4": False, "EnableIPv6": True}]
)
lengths = st.none() | st.integers(-1, 130)
config_members = {
    "Network": networks,
    "SubnetLen": lengths,
    "SubnetMin": addresses,
    "SubnetMax": addresses,
    "IPv6Network": networks,
    "IPv6SubnetLen": lengths,
    "IPv6SubnetMin": st.none() | addresses,
    "IPv6SubnetMax": st.none() | addresses,
    "EnableIPv4": flags,
    "EnableIPv6": flags,
    "EnableNFTables": flags,
    "Backend": st.dictionaries(texts, json_values, max_size=3).map(lambda backend: backend | {"Type": "udp"}),
    "networ\u212a": networks,
    "\u017fubnetLen": lengths,
}
sound_members = {
    "SubnetLen": st.integers(18, 30),
    "SubnetMin": st.integers(0, 63).map(lambda third: f"10.3.{third}.0"),
    "SubnetMax": st.integers(64, 255).map(lambda third: f"10.3.{third}.0"),
    "IPv6SubnetMin": st.integers(0, 0xFF).map(lambda fourth: f"fd00:3:0:{fourth:x}::"),
    "Backend": config_members["Backend"],
}
sound_configs = st.builds(
    lambda config, family: config | family,
    st.fixed_dictionaries(
        {"Network": st.just("10.3.0.0/16"), "IPv6Network": st.just("fd00:3::/48")}, optional=sound_members
    ),
    families,
)
configs = st.fixed_dictionaries({}, optional=config_members) | sound_configs


@given(st.text() | st.binary())
def test_any_text_is_a_config_or_a_config_error(text: str | bytes) -> None:
    with suppress(ConfigError):
        parse_network_config(text)


@given(configs)
def test_a_config_that_is_printed_is_read_as_the_same_config(members: dict[str, object]) -> None:
    try:
        config = parse_network_config(json.dumps(members))
    except ConfigError:
        return

    assert parse_network_config(format_network_config(config)) == config


@given(ipv4_networks(1, 28), st.integers(0, 30))
def test_computed_ipv4_subnets_are_in_the_network(network: IPv4Network, length: int) -> None:
    if length and length < network.prefixlen + 2:
        length = 0

    config = parse_network_config(json.dumps({"Network": str(network), "SubnetLen": length}))

    assert config.subnet_min is not None
    assert config.subnet_max is not None
    first = IPv4Network((config.subnet_min, config.subnet_length))
    last = IPv4Network((config.subnet_max, config.subnet_length))
    assert first.subnet_of(network)
    assert last.subnet_of(network)
    assert last.broadcast_address == network.broadcast_address
    assert int(first.network_address) - int(network.network_address) == first.num_addresses
    assert config.admits(first)
    assert config.admits(last)


@given(ipv6_networks(1, 124), st.integers(0, 126))
def test_computed_ipv6_subnets_are_in_the_network(network: IPv6Network, length: int) -> None:
    if length and length < network.prefixlen + 2:
        length = 0
    members = {"EnableIPv4": False, "EnableIPv6": True, "IPv6Network": str(network), "IPv6SubnetLen": length}

    config = parse_network_config(json.dumps(members))

    assert config.ipv6_subnet_min is not None
    assert config.ipv6_subnet_max is not None
    first = IPv6Network((config.ipv6_subnet_min, config.ipv6_subnet_length))
    last = IPv6Network((config.ipv6_subnet_max, config.ipv6_subnet_length))
    assert first.subnet_of(network)
    assert last.broadcast_address == network.broadcast_address
    assert int(first.network_address) - int(network.network_address) == first.num_addresses


@given(st.text() | st.from_regex(r"[0-9.]{1,15}-[0-9]{1,2}(&[0-9a-f:]{1,39}-[0-9]{1,3})?", fullmatch=True))
def test_any_text_is_the_only_key_of_its_subnets_or_an_error(text: str) -> None:
    try:
        subnet, ipv6_subnet = parse_subnet_key(text)
    except WireError:
        return

    assert format_subnet_key(subnet, ipv6_subnet) == text


@given(ipv4_networks(0, 31), st.none() | ipv6_networks(0, 127))
def test_subnets_are_read_back_from_their_key(subnet: IPv4Network, ipv6_subnet: IPv6Network | None) -> None:
    assert parse_subnet_key(format_subnet_key(subnet, ipv6_subnet)) == (subnet, ipv6_subnet)


@given(attributes)
def test_attributes_are_read_back_from_their_value(written: LeaseAttributes) -> None:
    value = format_lease_attributes(written)

    assert json.loads(value)["PublicIP"] == str(written.public_ip)
    assert parse_lease_attributes(value) == written


@given(st.binary() | json_values.map(lambda value: json.dumps(value).encode()))
def test_any_value_is_a_lease_or_a_wire_error(value: bytes) -> None:
    with suppress(WireError):
        parse_lease_attributes(value)
    with suppress(WireError):
        parse_claim(value, IPv4Network("10.3.1.0/24"), 1)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "PublicIP": addresses,
            "publicip": addresses | json_values,
            "PublicIPv6": addresses | json_values,
            "BackendType": texts | json_values,
            "BackendData": json_values,
            "Pyflannel": json_values,
            "pyflannel": json_values,
            "x": json_values,
        },
    )
)
def test_any_json_members_are_a_lease_or_a_wire_error(members: dict[str, object]) -> None:
    try:
        read = parse_lease_attributes(json.dumps(members).encode())
    except WireError:
        return

    assert parse_lease_attributes(format_lease_attributes(read)) == read


@given(attributes_without_owner, json_values)
def test_keys_of_pyflannel_do_not_change_the_other_fields(written: LeaseAttributes, ours: object) -> None:
    value = json.loads(format_lease_attributes(written))
    value["Pyflannel"] = ours

    read = parse_lease_attributes(json.dumps(value, ensure_ascii=False).encode())

    assert (read.public_ip, read.public_ipv6) == (written.public_ip, written.public_ipv6)
    assert (read.backend_type, read.owner) == (written.backend_type, None)


@given(texts.filter(bool), st.ip_addresses(v=4), st.integers(1, 2**62))
def test_a_claim_is_read_back_from_its_value(owner: str, public_ip: IPv4Address, revision: int) -> None:
    claim = Claim(subnet=IPv4Network("10.3.1.0/24"), owner=owner, public_ip=public_ip, revision=revision)

    assert parse_claim(format_claim(claim), claim.subnet, revision) == claim


@given(ipv4_networks(0, 31), attributes, st.integers(1, 2**62), st.booleans())
def test_a_lease_is_read_back_from_its_record(
    subnet: IPv4Network, written: LeaseAttributes, revision: int, has_ttl: bool
) -> None:
    lease = Lease(subnet=subnet, attributes=written, revision=revision, has_ttl=has_ttl)

    record = Record(
        key=lease_key(lease), value=lease_value(lease), revision=revision, lease_id=5 if has_ttl else 0
    )

    assert lease_of(record) == lease
