"""Real hosts that require signed leases: a writer of the store receives none of their packets."""

import json
import os
import time
from pathlib import Path

import pytest

from pyflannel.lab.lab import PREFIX
from pyflannel.lab.topology import Host
from pyflannel.lab.waiting import together, wait_until
from testlab.documents import read_document

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

DEADLINE_S = 60.0


def key_of(host: Host) -> str:
    subnet = host.lease()
    return f"{PREFIX}/subnets/{subnet.network_address}-{subnet.prefixlen}"


def restart(overlay, host: Host, *flags: str) -> None:
    """Replace the running flanneld by a flanneld with other flags."""
    running = overlay.daemons.get(host.name)
    assert running is None or running.stop() == 0
    overlay.daemons[host.name] = host.start_flanneld(f"--store={overlay.etcd.url}", *flags)


def test_write_access_to_the_store_cannot_redirect_packets_of_hosts_that_require_signatures(
    overlay, ping_stream, figures
) -> None:
    one, two, eve = (overlay.hosts[name] for name in ("docker1", "docker2", "docker4"))
    together([lambda host=host: overlay.join(host) for host in (one, two)])
    keys = {
        host.name: json.loads(overlay.etcd.etcdctl("get", "--print-value-only", key_of(host)))
        for host in (one, two)
    }
    allowed = "".join(f"{value['Pyflannel']['Key']} {name}\n" for name, value in keys.items())
    subnets = {host.name: host.lease() for host in (one, two)}
    for host in (one, two):
        (host.directory / "etc/flannel-keys").write_text(allowed)
        restart(overlay, host, "--lease-signing=require", "--lease-keys=/etc/flannel-keys")
    overlay.settle(one, two)
    assert {host.name: host.lease() for host in (one, two)} == subnets
    stream = ping_stream(one, subnets["docker2"].network_address, interval_s=0.01)
    stream.wait_answered()
    peers = overlay.peers(one)

    said = len(overlay.log(one))
    signed = overlay.etcd.etcdctl("get", "--print-value-only", key_of(two)).strip()
    forged = {**json.loads(signed), "PublicIP": str(eve.address)}
    overlay.etcd.etcdctl("put", key_of(two), json.dumps(forged))

    overlay.wait_logged(one, "its signature does not match its key", after=said)
    wait_until(
        lambda: (
            json.loads(overlay.etcd.etcdctl("get", "--print-value-only", key_of(two)))["PublicIP"]
            == json.loads(signed)["PublicIP"]
        ),
        what="docker2 writes its lease again",
        deadline_s=DEADLINE_S,
    )
    stream.wait_answered()
    refusals = overlay.status(one).lease_signing.refused
    (refused,) = (each for each in refusals if each.fault == "invalid")
    assert (refused.subnet, refused.public_ip) == (subnets["docker2"], eve.address)
    assert not refused.is_in_store
    assert f"{subnets['docker2']} at {refused.host_text}, once" in one.flannelctl("status")
    findings = json.loads(one.flannelctl("--json", "doctor"))["findings"]
    causes = [each["cause"] for each in findings if each["code"] == "lease-signature"]
    assert "a lease is refused: its signature does not match its key" in causes
    stream.stop()
    assert stream.lost() == []
    assert overlay.peers(one) == peers
    status = Path(f"/proc/{overlay.daemons['docker1'].pid}/status").read_text()
    resident = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    figures(f"flanneld with --lease-signing=require: {int(resident.split()[1]) / 1024:.1f} MB.")


def test_hosts_accept_only_the_keys_that_an_operator_signed_in_the_store(
    overlay, ping_stream, figures
) -> None:
    """The attacker writes to etcd: it forges and deletes the list, and writes an older list again."""
    one, two = (overlay.hosts[name] for name in ("docker1", "docker2"))
    store, listed = f"--store={overlay.etcd.url}", f"{PREFIX}/allow-list"
    operator = two.directory / "run/operator.json"
    public = two.flannelctl("allow-list", "new-key", "/run/operator.json")
    for host in (one, two):
        (host.directory / "run/operators").write_text(public)
    flags = "--lease-signing=require", "--lease-operators=/run/operators"
    together([lambda host=host: restart(overlay, host, *flags) for host in (one, two)])
    keys = {
        host.name: json.loads((host.directory / "var/lib/flannel/lease-key.json").read_text())["Public"]
        for host in (one, two)
    }

    def publish(*names: str) -> float:
        (two.directory / "run/keys").write_text("".join(f"{keys[name]} {name}\n" for name in names))
        two.flannelctl(store, "allow-list", "sign", "/run/keys", "--key", "/run/operator.json")
        two.flannelctl(store, "allow-list", "publish", "/run/keys.signed")
        return time.monotonic()

    assert overlay.status(one).peers == 0
    at = publish("docker1", "docker2")
    overlay.settle(one, two)
    figures(f"A published allow-list takes effect in {time.monotonic() - at:.1f} s.")
    first = overlay.etcd.etcdctl("get", "--print-value-only", listed).strip()
    stream = ping_stream(one, two.lease().network_address, interval_s=0.01)
    stream.wait_answered()

    # The attacker signs a list with its own key, and replaces the list of the operator.
    forged = json.loads(first) | {"Keys": f"{'ab' * 32}\n", "Counter": 9}
    overlay.etcd.etcdctl("put", listed, json.dumps(forged))
    overlay.wait_status(
        one, has_trouble("the signature of the list does not match its key"), "reports a forged list"
    )
    overlay.etcd.etcdctl("del", listed)
    overlay.wait_status(one, has_trouble("does not contain the allow-list any more"), "reports a deletion")
    restart(overlay, one, *flags)
    overlay.settle(one)
    assert (
        overlay.wait_status(one, lambda status: status.peers == 1, "knows docker2").lease_signing.allowed == 2
    )
    assert stream.lost() == []
    stream.stop()

    # The operator removes docker2, and the attacker writes the first list again.
    publish("docker1")
    overlay.wait_status(one, lambda status: status.peers == 0, "sends no more to docker2")
    overlay.etcd.etcdctl("put", listed, first)
    overlay.wait_status(
        one, has_trouble("the counter 1 of the list is not higher than 2"), "reports an old list"
    )
    assert overlay.status(one).peers == 0
    assert operator.stat().st_mode & 0o077 == 0


def test_hosts_that_require_signatures_follow_the_config_of_any_writer(overlay) -> None:
    """Signatures do not cover the config."""
    host = overlay.hosts["docker1"]
    (host.directory / "etc/other-keys").write_text(f"{'ab' * 32}\n")
    restart(overlay, host, "--lease-signing=require", "--lease-keys=/etc/other-keys")
    subnet, backend = host.lease(), overlay.wait_ready(host).backend
    assert backend is not None
    assert backend.type == "udp"

    overlay.etcd.etcdctl("put", f"{PREFIX}/config", overlay.config(Backend={"Type": "vxlan"}))

    status = overlay.wait_status(
        host,
        lambda status: status.backend is not None and status.backend.type == "vxlan" and status.is_ready,
        "follows the config",
    )
    assert status.lease_signing.mode == "require"
    assert host.lease() == subnet


def has_trouble(text: str):
    def found(status) -> bool:
        signing = status.lease_signing
        return signing is not None and signing.trouble is not None and text in signing.trouble.text

    return found


def test_a_request_for_the_matrix_is_signed_and_a_forged_one_is_ignored(overlay) -> None:
    one, two = (overlay.hosts[name] for name in ("docker1", "docker2"))
    for host in (one, two):
        restart(overlay, host, "--lease-signing=require")
    overlay.settle(one, two)

    def states() -> list[list[str]]:
        document = read_document(["peers"], one.flannelctl("peers", "--matrix", "--json"))
        return [[cell["state"] for cell in row["cells"]] for row in document["matrix"]["rows"]]

    assert states() == [["reached"], ["reached"]]
    request, row_key = f"{PREFIX}/reach-request", key_of(two).replace("/subnets/", "/reach-row-")
    signed = json.loads(overlay.etcd.etcdctl("get", "--print-value-only", request))
    row = json.loads(overlay.etcd.etcdctl("get", "--print-value-only", row_key))
    assert row["Id"] == signed["Id"]
    overlay.etcd.etcdctl("del", row_key)

    overlay.etcd.etcdctl("put", request, json.dumps({**signed, "Id": "forged"}))

    assert states() == [["reached"], ["reached"]]  # this request was sent after the forged request
    (row,) = json.loads(overlay.etcd.etcdctl("get", "-w", "json", row_key))["kvs"]
    assert row["version"] == 1  # the number of rows since the deletion
