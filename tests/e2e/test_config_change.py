"""A network config that excludes the subnet of a running host, on a real etcd and a real kernel."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from ipaddress import IPv4Network
from typing import Any

import pytest

Pinging = Callable[[Any, str], AbstractContextManager[Any]]

CONFIG = '{"Network":"10.100.0.0/16"}'
OTHER = '{"Network":"10.200.0.0/16","Backend":{"Type":"vxlan"}}'


@pytest.mark.parametrize("news", [OTHER, "no JSON", None])
def test_a_restart_after_a_change_of_the_network_keeps_the_subnet(
    new_network: Callable[..., Any], pinging: Pinging, news: str | None
) -> None:
    """Containers use addresses of the subnet. The daemon continues as before, and reports the change
    everywhere.
    """
    network = new_network("docker1", "docker4", config=CONFIG)
    daemon, _ = network.start_all()
    host = network.hosts["docker1"]
    before, key = host.lease(), network.lease_key("docker1")
    owner = json.loads(network.record(key)["value"])["Pyflannel"]["Owner"]
    for name in network.hosts:
        network.wait_status(name, lambda status: status["peers"] == 1, "knows its peer")

    with pinging(host, network.overlay("docker4")) as pings:
        if news is None:
            network.etcdctl("del", "/coreos.com/network/config")
        else:
            network.put("config", news)
        daemon.kill()
        network.start("docker1")
        status = network.wait_status(
            "docker1",
            lambda status: status["lease"]["phase"] == "held" and status["lease"]["expires_in_s"] is not None,
            "holds its lease",
        )
        pings.wait_answered(more=100)

    record = network.record(key)
    findings = json.loads(host.flannelctl("doctor", "--json", check=False))["findings"]
    assert host.lease() == before
    assert status["lease"]["subnet"] == str(before)
    assert pings.lost == 0
    assert json.loads(record["value"])["Pyflannel"]["Owner"] == owner
    assert record["lease"]
    assert "keeps running with the last valid network config" in " ".join(status["warnings"])
    assert [one["code"] for one in findings if one["code"] == "bad-config"] == ["bad-config"]
    # To write the config in force again has no effect on the hosts.
    again = json.loads(host.flannelctl("config", "set", "--dry-run", "--json", CONFIG))
    assert again["Effects"] == []
    assert again["Difference"] != []


def test_a_change_of_the_network_takes_effect_on_request(new_network: Callable[..., Any]) -> None:
    """The operator runs the command that log, status and doctor show."""
    network = new_network("docker1", config=CONFIG)
    daemon = network.start("docker1")
    host, key = network.hosts["docker1"], network.lease_key("docker1")
    network.put("config", OTHER)
    network.wait_logged("docker1", "flannelctl cleanup")
    daemon.kill()
    network.start("docker1")
    hint = next(
        one["fix"]
        for one in json.loads(host.flannelctl("doctor", "--json", check=False))["findings"]
        if one["code"] == "bad-config"
    )

    host.flannelctl("cleanup")
    network.start("docker1")

    assert "flannelctl cleanup" in hint
    assert host.lease().subnet_of(IPv4Network("10.200.0.0/16"))
    assert network.record(key) is None
