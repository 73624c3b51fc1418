"""An underlay that delivers TCP in segments, as a network card does: the host coalesces the segments."""

import itertools
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from pyflannel.lab.traffic import ping, wait_reached
from pyflannel.lab.waiting import wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

DEADLINE_S = 60.0
STREAM_DEADLINE_S = 120.0
SIZE_BYTES = 16 << 20

_RECEIVE = """
import hashlib, socket
with socket.create_server(("0.0.0.0", 5300)) as listener:
    print("listening", flush=True)
    with listener.accept()[0].makefile("rb") as stream:
        print(hashlib.file_digest(stream, "sha256").hexdigest(), flush=True)
"""

_SEND = """
import hashlib, random, socket, sys
data = random.Random(1).randbytes(int(sys.argv[2]))
with socket.create_connection((sys.argv[1], 5300), timeout=120) as stream:
    stream.sendall(data)
print(hashlib.sha256(data).hexdigest())
"""


def emulate_card(host) -> None:
    """Send packets of at most the MTU, and coalesce received segments of plain TCP."""
    for feature in ("tso off", "tx-udp_tnl-segmentation off", "tx-udp_tnl-csum-segmentation off", "gro on"):
        host.run(["ethtool", "-K", "eth0", *feature.split()])


_receivers = itertools.count(1)


@pytest.fixture(scope="module")
def ends(overlay):
    """docker1 and docker4 in one network, with a container each, on emulated network cards."""
    ends = [overlay.hosts["docker1"], overlay.hosts["docker4"]]
    for host in ends:
        emulate_card(host)
        overlay.daemons[host.name] = host.start_flanneld(f"--store={overlay.etcd.url}", "--fast-path-gro=on")
    overlay.settle(*ends)
    containers = [host.container("box", gateway=host.gateway(), mtu=1472) for host in ends]
    wait_reached(containers, deadline_s=DEADLINE_S)
    for host in ends:
        wait_until(
            lambda host=host: gro_links_of(host) == ["flannel0-gro", "flannel0-rx"],
            what=f"the GRO veth of {host.name}",
            deadline_s=DEADLINE_S,
        )
    box, far = containers
    wait_until(
        lambda: (
            ping(box, far.address).is_reached and all(counters(overlay, one).get("delivered") for one in ends)
        ),
        what="packets bypass the bridges",
        deadline_s=DEADLINE_S,
    )
    return ends, containers


def counters(overlay, host) -> dict[str, int]:
    return dict(overlay.status(host).fast_path.counters)


def gro_links_of(host) -> list[str]:
    return sorted(one["ifname"] for one in host.links() if one["ifname"].startswith("flannel0-"))


def stream_arrives(source, destination, size: int = SIZE_BYTES) -> bool:
    """Return whether a stream arrives unchanged."""
    name = f"receive-{next(_receivers)}"  # a separate log, without lines of an earlier receiver
    receiver = destination.start_in_network([sys.executable, "-c", _RECEIVE], name=name)
    wait_until(
        lambda: "listening" in receiver.last_words(), what="the receiver listens", deadline_s=DEADLINE_S
    )
    sent = source.run_in_network(
        [sys.executable, "-c", _SEND, str(destination.address), str(size)], timeout_s=STREAM_DEADLINE_S
    ).stdout
    receiver.wait(STREAM_DEADLINE_S)
    return sent.strip() in receiver.last_words()


def test_a_stream_arrives_completely_in_few_segments(overlay, ends):
    (_, other), (box, far) = ends
    before = counters(overlay, other)

    assert stream_arrives(box, far)

    after = counters(overlay, other)
    gained = {name: after[name] - before[name] for name in ("decapsulated", "rejoined", "delivered")}
    assert gained["decapsulated"] > SIZE_BYTES / 1472
    assert 0 < gained["rejoined"] < gained["decapsulated"] / 2
    assert 0 < gained["delivered"] < gained["decapsulated"] / 2


def test_other_packets_than_tcp_are_not_coalesced(overlay, ends):
    (_, other), (box, far) = ends
    before = counters(overlay, other)

    assert ping(box, far.address).is_reached

    after = counters(overlay, other)
    assert after["rejoined"] == before["rejoined"]
    assert after["decapsulated"] >= before["decapsulated"] + 3


@pytest.mark.parametrize(
    "damage",
    [
        "ip link delete flannel0-gro",
        "ip link set flannel0-rx down",
        "ethtool -K flannel0-rx gro off",
        "ip link set flannel0-rx mtu 600",
    ],
)
def test_a_damaged_gro_veth_is_repaired_while_a_stream_runs(overlay, ends, damage):
    (_, other), (box, far) = ends
    # The ping lets the host learn the neighbours, which change its plan.
    assert ping(box, far.address).is_reached
    repairs = overlay.status(other).reconcile.repairs
    with ThreadPoolExecutor() as aside:
        arrives = aside.submit(stream_arrives, box, far, size=8 * SIZE_BYTES)
        begun = counters(overlay, other)["rejoined"]
        wait_until(
            lambda: counters(overlay, other)["rejoined"] > begun,
            what="the stream runs",
            deadline_s=DEADLINE_S,
        )
        logged = len(overlay.log(other))
        other.run(damage.split())
        # A pass for a changed plan may create the object again; this is no repair.
        wait_until(
            lambda: (
                overlay.status(other).reconcile.repairs > repairs
                or "flannel0-gro: missing" in overlay.log(other)[logged:]
            ),
            what="a repair",
            deadline_s=DEADLINE_S,
        )
        assert arrives.result()

    test_a_stream_arrives_completely_in_few_segments(overlay, ends)


def test_disabling_the_fast_path_removes_all_its_objects(overlay, ends):
    (_, other), (box, far) = ends
    overlay.daemons[other.name].stop()

    overlay.join(other)

    wait_until(lambda: gro_links_of(other) == [], what="no GRO veth", deadline_s=DEADLINE_S)
    before = counters(overlay, other)["rejoined"]
    assert stream_arrives(box, far)
    assert counters(overlay, other)["rejoined"] == before
