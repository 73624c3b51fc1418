"""`flannelctl config set` shows the effects of another config on running hosts."""

import json
import time
from ipaddress import IPv4Address, IPv4Network

import pytest

from pyflannel.model.lease import LeaseEntry
from pyflannel.plan.backends import difference_of, effects_of
from pyflannel.wire.network_config_json import parse_network_config

LEASES = [
    LeaseEntry(
        subnet=IPv4Network(f"10.100.{number}.0/24"),
        public_ip=IPv4Address(f"172.16.0.{number}"),
        owner=f"host {number}",
        host_name=f"docker{number}",
    )
    for number in range(1, 8)
]
OLD = '{"Network":"10.100.0.0/16","Backend":{"Type":"vxlan"}}'


def effects(new: str, old: str = OLD, leases: list[LeaseEntry] = LEASES) -> list[str]:
    return effects_of(parse_network_config(old), parse_network_config(new), leases)


def with_backend(backend: str, more: str = "") -> str:
    return f'{{"Network":"10.100.0.0/16","Backend":{backend}{more}}}'


@pytest.mark.parametrize(
    ("new", "parts"),
    [
        (OLD, []),
        (
            with_backend('{"Type":"vxlan"}', ',"EnableIPv6":true,"IPv6Network":"fd00:5::/48"'),
            ["changes from 1450 to 1430 bytes"],
        ),
        (
            with_backend('{"Type":"host-gw"}'),
            [
                "from vxlan with VNI 1 to host-gw. They receive packets by both",
                "changes from 1450 to 1500 bytes",
            ],
        ),
        (with_backend('{"Type":"vxlan","VNI":2}'), ["from vxlan with VNI 1 to vxlan with VNI 2"]),
        (with_backend('{"Type":"vxlan","MTU":1400}'), ["changes from 1450 to 1350 bytes"]),
        (
            with_backend('{"Type":"vxlan","Port":9,"MacPrefix":"0E-2A"}'),
            ["Hosts change the port, MacPrefix in place, so packets stop for a moment"],
        ),
        (
            with_backend('{"Type":"vxlan"}', ',"EnableNFTables":true'),
            ["filter rules with nftables, and remove the rules of iptables"],
        ),
    ],
)
def test_the_effects_follow_from_both_configs(new: str, parts: list[str]) -> None:
    found = effects(new)

    assert len(found) == len(parts)
    assert all(part in effect for part, effect in zip(parts, found, strict=True))


def test_the_fast_path_is_named_with_the_udp_backend() -> None:
    old, new = '{"Network":"10.100.0.0/16"}', '{"Network":"10.100.0.0/16","FastPath":"off"}'

    assert effects(new, old) == ["Hosts turn the fast path off. No packet is lost."]
    assert effects(old, new) == ["Hosts turn the fast path on. No packet is lost."]


def test_the_effect_of_mode_flow_on_the_firewall_is_named() -> None:
    old, new = '{"Network":"10.100.0.0/16"}', '{"Network":"10.100.0.0/16","FastPath":"flow"}'

    assert effects(new, old) == [
        "Packets of known flows may bypass the firewall for up to a second. No packet is lost."
    ]
    assert effects(old, new) == ["Packets of known flows pass through the firewall. No packet is lost."]


def test_of_the_modes_only_flow_has_an_effect_on_vxlan() -> None:
    old = '{"Network":"10.100.0.0/16","Backend":{"Type":"vxlan"}}'
    flow, off = (old.replace("{", f'{{"FastPath":"{mode}",', 1) for mode in ("flow", "off"))

    assert effects(flow, old) == [
        "Packets of known flows may bypass the firewall for up to a second. No packet is lost."
    ]
    assert effects(off, old) == []


def test_hosts_with_another_subnet_are_named_with_the_remedy() -> None:
    (effect,) = effects('{"Network":"10.200.0.0/16","Backend":{"Type":"vxlan"}}')

    assert effect.startswith("7 of 7 hosts refuse this config")
    assert "10.100.1.0/24 of docker1 (172.16.0.1), " in effect
    assert "10.100.5.0/24 of docker5 (172.16.0.5) and 2 more" in effect
    assert "run the new network beside the present network" in effect


def test_a_larger_network_has_no_effect_on_running_hosts() -> None:
    assert effects('{"Network":"10.96.0.0/12","SubnetLen":24,"Backend":{"Type":"vxlan"}}') == []


def test_hosts_of_the_original_are_counted_when_the_backend_changes() -> None:
    original = LeaseEntry(subnet=IPv4Network("10.100.9.0/24"), public_ip=IPv4Address("172.16.0.9"))

    found = effects(with_backend('{"Type":"host-gw"}'), leases=[original])

    assert found[1].startswith("1 leases belong to the original flannel")


def test_long_configs_are_compared_in_a_short_time() -> None:
    """A writer of the store and a client of the page choose 64 KB each, with few different lines."""
    old, new = (
        json.dumps({"X": [100 + (number * step) % 151 for number in range(13_000)]}) for step in (7, 11)
    )
    started = time.process_time()

    found = difference_of(old, new)

    assert time.process_time() - started < 1.0
    assert (found[:3], found[-1]) == (["--- stored", "+++ new", "-{"], "+}")
    assert difference_of(old, old) == []
