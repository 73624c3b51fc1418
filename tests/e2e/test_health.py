"""/healthz, /readyz and /metrics over TCP follow the state of the host."""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest

from pyflannel.lab.waiting import wait_until

SOON_S = 60.0
PORT = 8081
FOREIGN = '{"PublicIP":"203.0.113.9","PublicIPv6":null,"Pyflannel":{"Owner":"other-host"}}'
"""A lease of a host that does not exist."""

HOLD = "import socket, time; s = socket.create_server(('0.0.0.0', {port})); time.sleep(3600)"
"""A program that uses a port and responds to no request."""

READY = (200, "flanneld is ready")

NewNetwork = Callable[..., Any]
NetworkOf = Callable[..., AbstractContextManager[Any]]


METRICS_PORT = 8471


def get(network: Any, path: str, port: int = PORT) -> tuple[int, str]:
    """Return status and body of a request from the router."""
    request = f"GET {path} HTTP/1.1\\r\\nHost: docker1\\r\\nConnection: close\\r\\n\\r\\n"
    script = f"exec 3<>/dev/tcp/10.10.10.101/{port}; printf '{request}' >&3; cat <&3"
    said = network.lab.router.run(["bash", "-c", script], check=False).stdout
    head, _, body = said.partition("\n\n") if "\r" not in said else said.partition("\r\n\r\n")
    return (int(head.split()[1]) if head else 0), body


def metrics(network: Any) -> set[str]:
    """Return the lines of /metrics."""
    status, body = get(network, "/metrics", METRICS_PORT)
    assert status == 200
    return set(body.splitlines())


def wait_answer(network: Any, text: str) -> None:
    """Wait until the answer of /readyz is 503 with `text`, or 200 if there is no text."""
    seen: list[tuple[int, str]] = []

    def look() -> bool:
        seen.append(get(network, "/readyz"))
        status, body = seen[-1]
        return status == 503 and text in body if text else seen[-1] == READY

    try:
        wait_until(look, what=f"/readyz answers {text or 'ready'}", deadline_s=SOON_S)
    except Exception as error:
        error.add_note(f"it answers {seen[-1]}; the log:\n{network.log('docker1')}")
        raise


@pytest.fixture(scope="module")
def network(network_of: NetworkOf) -> Iterator[Any]:
    """A ready host, before and after each test."""
    with network_of("docker1") as network:
        network.start("docker1", f"--healthz-port={PORT}", f"--http=10.10.10.101:{METRICS_PORT}")
        wait_answer(network, "")
        yield network


def test_a_ready_daemon_is_healthy_and_ready(network: Any) -> None:
    assert get(network, "/healthz") == (200, "flanneld is running")
    assert get(network, "/readyz") == READY
    assert get(network, "/status")[0] == 404
    assert get(network, "/metrics")[0] == 404  # health does not expose metrics
    assert get(network, "/healthz", METRICS_PORT) == (200, "flanneld is running")
    assert get(network, "/readyz", METRICS_PORT) == READY
    assert {"flannel_ready 1.0", "flannel_datastore_up 1.0"} <= metrics(network)
    assert f"Start healthz server on 0.0.0.0:{PORT}\n" in network.log("docker1")


def test_readiness_follows_the_store(network: Any) -> None:
    network.lab.router.run(["pkill", "-STOP", "-x", "etcd"])
    network.lab.router.run(["pkill", "-KILL", "-x", "etcd"])
    wait_answer(network, "flanneld is not ready yet: the store: ")
    alive, away = get(network, "/healthz"), metrics(network)

    network.etcd.start()

    wait_answer(network, "")
    assert alive == (200, "flanneld is running")
    assert {"flannel_ready 0.0", "flannel_datastore_up 0.0", 'flannel_lease_phase{phase="held"} 1.0'} <= away


def test_readiness_follows_the_subnet(network: Any) -> None:
    key = network.lease_key("docker1")

    network.put(key, FOREIGN)
    wait_answer(network, "this host's subnet, which 203.0.113.9 (other-host) holds")
    taken = metrics(network)
    network.etcdctl("del", f"/coreos.com/network/{key}")

    wait_answer(network, "")
    assert {"flannel_ready 0.0", 'flannel_lease_phase{phase="taken"} 1.0'} <= taken


def test_readiness_follows_a_failed_pass(network: Any) -> None:
    host = network.hosts["docker1"]

    host.run(["mount", "-t", "tmpfs", "tmpfs", "/dev/net"])
    host.run(["ip", "link", "delete", "flannel0"])
    wait_answer(network, "link flannel0: missing: ")
    failing = metrics(network)
    host.run(["umount", "/dev/net"])

    wait_answer(network, "")
    assert "flannel_ready 0.0" in failing
    assert "flannel_operations_refused 0.0" not in failing


def test_readyz_names_the_missing_condition(new_network: NewNetwork) -> None:
    """Several networks are ready together or not at all."""
    network = new_network("docker1", config=None)
    network.etcd.start()
    network.launch(
        "docker1", f"--healthz-port={PORT}", f"--http=10.10.10.101:{METRICS_PORT}", "--networks=blue,red"
    )
    wait_answer(network, "blue: a valid network config: flannel config not found")

    network.put("blue/config", '{"Network":"10.100.0.0/16"}')
    wait_answer(network, "red: ")
    before = metrics(network)
    network.put("red/config", '{"Network":"10.101.0.0/16","Backend":{"Type":"udp","Port":8286}}')

    wait_answer(network, "")
    assert 'flannel_ready{network="red"} 0.0' in before
    assert {f'flannel_ready{{network="{name}"}} 1.0' for name in ("blue", "red")} <= metrics(network)


def test_ports_in_use_do_not_stop_the_daemon(new_network: NewNetwork) -> None:
    """The ports are logged, and opened when they are free. Meanwhile, the host joins its network."""
    network = new_network("docker1")
    host = network.hosts["docker1"]
    holder = host.start([sys.executable, "-c", HOLD.format(port=PORT)])
    knock = ["bash", "-c", f": >/dev/tcp/127.0.0.1/{PORT}"]
    wait_until(
        lambda: host.run(knock, check=False).returncode == 0, what="the port is held", deadline_s=SOON_S
    )

    network.start("docker1", f"--healthz-port={PORT}", "--healthz-ip=0.0.0.0", "--http=203.0.113.1:8471")

    network.wait_logged(
        "docker1",
        f"Could not serve --healthz-port={PORT}, retrying: TCP port 0.0.0.0:{PORT} is in use."
        f" Find the process that uses the port: ss -ltnp 'sport = :{PORT}'.\n",
    )
    network.wait_logged(
        "docker1",
        "Could not serve --http=203.0.113.1:8471, retrying: TCP port 203.0.113.1:8471 cannot be opened"
        ": Cannot assign requested address. Use an address of this host",
    )
    holder.kill()
    wait_answer(network, "")
