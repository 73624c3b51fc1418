"""The CNI plugin on real hosts, with Debian's delegates: containers of two hosts reach each other."""

import json
import os
import signal
import time
from typing import Any

import pytest

from pyflannel.lab.lab import PREFIX
from pyflannel.lab.waiting import together, wait_until
from testlab.cni_runtime import CHAIN_EFFECTS, FURTHER, CniError, Runtime, chain_effects

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

SOON_S = 60.0


@pytest.fixture(scope="module")
def runtimes(overlay) -> tuple[Runtime, Runtime]:
    """The runtimes of two hosts in one vxlan network."""
    overlay.etcd.etcdctl("put", f"{PREFIX}/config", overlay.config(Backend={"Type": "vxlan"}))
    hosts = [overlay.hosts["docker1"], overlay.hosts["docker2"]]
    first, second = together([lambda host=host: Runtime(host) for host in hosts])
    error = _error_of_add(first)
    assert error.document["code"] == 11
    assert "flanneld does not run on this host" in error.document["details"]
    together([lambda host=host: overlay.join(host) for host in hosts])
    overlay.settle(*hosts)
    return first, second


def _error_of_add(runtime: Runtime) -> CniError:
    container = runtime.container("early")
    with pytest.raises(CniError) as caught:
        runtime.add(container)
    runtime.end(container)
    return caught.value


def _delete(runtime: Runtime, conf: dict[str, Any], container: str) -> None:
    """Delete an attachment, and repeat a failed DEL, as a runtime does, because iptables may be busy."""
    end = time.monotonic() + SOON_S
    while True:
        try:
            runtime.call("DEL", conf, container)
            return
        except CniError:
            if time.monotonic() > end:
                raise


def test_containers_of_two_hosts_reach_each_other_until_they_are_deleted(runtimes) -> None:
    first, second = runtimes
    one, other = first.container("c1"), second.container("c2")
    first.add(one)
    second.add(other)
    assert one.reaches(other.address)
    assert other.reaches(one.address)
    first.check(one)
    for runtime, container in ((first, one), (second, other)):
        runtime.delete(container)
        with pytest.raises(CniError, match="is unknown on this host"):
            runtime.check(container)
        runtime.end(container)
        assert runtime.remains() == []


def test_a_container_with_the_address_of_a_former_one_is_reached_immediately(runtimes) -> None:
    """The host and the other containers know the MAC address of the former container."""
    first, second = runtimes
    near, far, former = first.container("c-near"), second.container("c-far"), first.container("c-former")
    first.add(near)
    second.add(far)
    first.add(former)
    assert (near.reaches(former.address), far.reaches(former.address)) == (True, True)
    first.end(former)
    successor = first.container("c-successor")
    wanted = {"CNI_ARGS": f"IgnoreUnknown=1;IP={former.address}"}
    successor.result = json.loads(first.call("ADD", first.plugins[0], "c-successor", **wanted))

    reached = (near.reaches(former.address), far.reaches(former.address))

    for runtime, container in ((first, near), (second, far), (first, successor)):
        runtime.end(container)
    assert successor.address == former.address
    assert reached == (True, True)


def test_the_plugins_bandwidth_firewall_and_tuning_can_follow_in_the_chain(runtimes) -> None:
    runtime = Runtime(runtimes[0].host, FURTHER)
    container = runtime.container("c-chain")
    runtime.add(container)
    effects = chain_effects(runtime.host, "c-chain", container.address)
    assert container.reaches(runtimes[1].host.address)
    runtime.check(container)
    runtime.end(container)
    assert effects == CHAIN_EFFECTS
    assert container.address not in runtime.host.run(["iptables-save"]).stdout
    assert runtime.remains() == []


def test_the_command_check_detects_a_removed_address(runtimes) -> None:
    runtime, _ = runtimes
    container = runtime.container("c1")
    runtime.add(container)
    runtime.host.run(["ip", "-n", "c1", "addr", "flush", "dev", "eth0"])
    with pytest.raises(CniError, match="failed to delegate check"):
        runtime.check(container)
    runtime.end(container)


def test_a_delete_without_the_namespace_frees_the_address(runtimes) -> None:
    runtime, _ = runtimes
    container = runtime.container("c-gone")
    runtime.add(container)
    runtime.host.run(["ip", "netns", "delete", "c-gone"])
    runtime.call("DEL", runtime.plugins[0], "c-gone", CNI_NETNS="")
    # The kernel deletes the links of a namespace after the namespace itself.
    wait_until(lambda: runtime.remains() == [], what="no remains of the container", deadline_s=SOON_S)


def test_fifty_containers_at_once_get_fifty_addresses(runtimes) -> None:
    runtime, _ = runtimes
    names = [f"c{number}" for number in range(50)]
    runtime.host.run(["sh", "-c", 'for name in "$@"; do ip netns add $name; done', "-", *names])
    conf = runtime.plugins[0]
    results = together([lambda name=name: json.loads(runtime.call("ADD", conf, name)) for name in names])
    assert len({result["ips"][0]["address"] for result in results}) == 50
    together([lambda name=name: _delete(runtime, conf, name) for name in names])
    runtime.host.run(["sh", "-c", 'for name in "$@"; do ip netns delete $name; done', "-", *names])
    assert runtime.remains() == []


def test_an_add_that_was_killed_can_be_deleted_and_repeated(runtimes) -> None:
    runtime, _ = runtimes
    slow = (
        "#!/bin/sh\n/usr/lib/cni/bridge; touch /run/slow.$CNI_COMMAND\n[ $CNI_COMMAND = DEL ] || sleep 600\n"
    )
    runtime.host.run(["sh", "-c", 'cat >/opt/cni/bin/slow; chmod +x "$0"', "/opt/cni/bin/slow"], text=slow)
    conf = {**runtime.plugins[0], "delegate": {"type": "slow", "isGateway": True}}
    runtime.container("c-killed")
    command = runtime.command("ADD", "flannel", "c-killed")
    runtime.host.run(["sh", "-c", "cat >/run/conf"], text=json.dumps(conf))
    program = runtime.host.start(["sh", "-c", '"$@" </run/conf', "-", *command], name="killed-add")
    made = runtime.host.directory / "run/slow.ADD"
    wait_until(made.exists, what="the delegate has attached the container", deadline_s=SOON_S)
    program.send(signal.SIGKILL)
    runtime.host.run(["pkill", "-KILL", "-f", "/opt/cni/bin/"], check=False)
    assert runtime.remains() != []
    runtime.call("DEL", conf, "c-killed")
    assert runtime.remains() == []
    again = json.loads(runtime.call("ADD", runtime.plugins[0], "c-killed"))
    assert again["ips"]
    runtime.call("DEL", conf, "c-killed")
    runtime.call("DEL", conf, "c-killed")
    runtime.host.run(["ip", "netns", "delete", "c-killed"])
    assert runtime.remains() == []


def test_an_error_contains_the_reason_that_flanneld_gives(runtimes, overlay) -> None:
    runtime, _ = runtimes
    overlay.daemons["docker1"].send(signal.SIGTERM)
    overlay.daemons["docker1"].wait()
    runtime.host.run(["rm", "-f", "/run/flannel/subnet.env"])
    runtime.host.start(["flanneld", "--store=etcd://10.10.10.1:9", "--iface=nonesuch"], name="waiting")
    socket = runtime.host.directory / "run/flannel/flanneld.sock"
    wait_until(socket.exists, what="flanneld answers", deadline_s=SOON_S)
    assert "flanneld is not ready. flanneld waits for" in _error_of_add(runtime).document["details"]
