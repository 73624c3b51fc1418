"""Without libraries, rights or kernel features, user space carries the packets, and the host names the
reason.
"""

import json
import os
import sys

import pytest

from pyflannel.lab.containers import BRIDGE, create_bridge
from pyflannel.lab.kernel_path import measure_throughput
from pyflannel.lab.traffic import ping, wait_reached
from pyflannel.lab.waiting import wait_until
from pyflannel.model.status import Status
from testlab import kernel_programs, refusing
from testlab.inside import run_inside

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

DEADLINE_S = 60.0
SAFE = [
    "flannel_decap at eth0",
    "flannel_encap at flannel0",
    "flannel_hop at br0",
    "flannel_nexthop at eth0",
]
FEWER_RIGHTS = ["setpriv", "--bounding-set=-sys_admin"]
NO_LIBRARY = """
for library in $(ldconfig -p | sed -n 's/.*libbpf.so.1 .*=> //p'); do
    mount --bind /dev/null "$(realpath "$library")"
done
exec "$@"
"""


def with_refusal(call: str, code: str) -> list[str]:
    return [sys.executable, refusing.__file__, call, code]


@pytest.fixture(scope="module")
def ends(overlay):
    """docker1, whose kernel carries the packets, and docker2 without a flanneld; a container each."""
    one, other = overlay.hosts["docker1"], overlay.hosts["docker2"]
    for host in (one, other):
        overlay.join(host)
    overlay.settle(one, other)
    containers = [host.container("box", gateway=host.gateway(), mtu=1472) for host in (one, other)]
    wait_reached(containers, deadline_s=DEADLINE_S)
    for host in (one, other):
        wait_programs(host, SAFE)
    return other, containers


def wait_programs(host, expected: list[str]) -> None:
    wait_until(
        lambda: run_inside(host, kernel_programs.look).programs == expected,
        what=f"{host.name} has {expected or 'no program'}",
        deadline_s=DEADLINE_S,
    )


def start(overlay, host, *before: str, flags: tuple[str, ...] = ()) -> None:
    """Replace the running flanneld by a flanneld with a restriction, which the command `before` sets."""
    overlay.daemons[host.name].stop()
    command = [*before, "flanneld", f"--store={overlay.etcd.url}", *flags]
    overlay.daemons[host.name] = host.start_service(command, name="flanneld")


def wait_mode(overlay, host, mode: str) -> Status:
    return overlay.wait_status(
        host,
        lambda status: status.is_ready and status.fast_path.mode == mode,
        f"is ready with the fast path {mode}",
        deadline_s=DEADLINE_S,
    )


def doctors_codes(host) -> list[str]:
    findings = json.loads(host.flannelctl("--json", "doctor", check=False))["findings"]
    return [finding["code"] for finding in findings]


@pytest.mark.parametrize(
    ("before", "reason", "answer", "hint"),
    [
        (with_refusal("bpf", "EPERM"), "EPERM", "bpf(2): could not be probed, EPERM", "seccomp"),
        (with_refusal("bpf", "ENOSYS"), "ENOSYS", "bpf(2): could not be probed, ENOSYS", "seccomp"),
        (
            ["unshare", "--mount", "sh", "-c", NO_LIBRARY, "sh"],
            "libbpf.so.1: absent",
            "libbpf.so.1: absent",
            "Install libbpf",
        ),
        (FEWER_RIGHTS, "CAP_SYS_ADMIN or pins: absent", "CAP_SYS_ADMIN or pins: absent", "flannelctl pins"),
    ],
    ids=["filtered", "as if without eBPF", "no library", "no pins"],
)
def test_user_space_carries_packets_and_the_host_names_the_reason(
    overlay, ends, before, reason, answer, hint
):
    """Programs of an earlier daemon are removed."""
    host, (box, far) = ends
    start(overlay, host, flags=("--fast-path=off",))
    wait_programs(host, [])
    logged = len(overlay.log(host))

    start(overlay, host, *before)

    path = wait_mode(overlay, host, "user-space").fast_path
    assert reason in path.reason
    assert hint in path.hint
    assert answer in host.flannelctl("status")
    assert path.remarks == ()
    assert "no-fast-path" in doctors_codes(host)
    overlay.wait_logged(host, f"No fast path, user space carries the packets: {path.reason}", after=logged)
    assert run_inside(host, kernel_programs.look).programs == []
    assert ping(box, far.address).is_reached
    assert measure_throughput(box, far, seconds=1).received_bytes > 0
    assert_ready_while_the_kernel_is_probed_again(overlay, host)


def assert_ready_while_the_kernel_is_probed_again(overlay, host) -> None:
    """Check that the host is ready and logs nothing while flanneld probes the kernel again."""
    begun, logged = overlay.status(host).reconcile.passes, len(overlay.log(host))
    status = overlay.wait_status(
        host,
        lambda status: not status.is_ready or status.reconcile.passes >= begun + 2,
        "a second probe",
        deadline_s=DEADLINE_S,
    )
    assert status.is_ready
    assert "; refused: " not in overlay.log(host)[logged:]


def test_a_failing_mount_of_bpffs_is_reported(ends):
    """The mount fails without the right, and on a kernel without bpffs."""
    host, _ = ends

    for before, code in (
        (FEWER_RIGHTS, "EPERM: Operation not permitted"),
        (with_refusal("mount", "ENODEV"), "ENODEV: No such device"),
    ):
        done = host.run([*before, "flannelctl", "pins"], check=False)
        assert done.returncode != 0
        assert f"eBPF programs cannot be pinned in /run/flannel/.bpf: {code}" in done.stderr
        assert "packets pass through user space" in done.stderr


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        (FEWER_RIGHTS, ()),
        (FEWER_RIGHTS, ("--fast-path=off",)),
        (["setpriv", "--bounding-set=-sys_admin,-bpf"], ()),
    ],
    ids=["wanted", "not wanted", "without CAP_BPF"],
)
def test_a_daemon_with_fewer_rights_names_the_damage_that_it_cannot_repair(overlay, ends, command, flags):
    """The daemon repairs nothing, the packets arrive, and root can remove the programs."""
    host, (box, far) = ends
    start(overlay, host)
    wait_programs(host, SAFE)
    before, logged = run_inside(host, kernel_programs.look).identifiers, len(overlay.log(host))

    start(overlay, host, *command, flags=flags)

    mode = "off" if flags else "user-space"
    status = overlay.wait_status(
        host,
        lambda status: status.is_ready and status.fast_path.mode == mode and status.fast_path.remarks,
        "names them",
        deadline_s=DEADLINE_S,
    )
    (notice,) = status.fast_path.remarks
    assert all(place in notice.text for place in ("flannel0 egress", "eth0 ingress", "br0 egress"))
    assert "CAP_SYS_ADMIN" in notice.text
    overlay.wait_logged(host, str(notice), after=logged)
    assert f"warning    {notice}" in host.flannelctl("status")
    assert "programs-left" in doctors_codes(host)
    host.run(["ip", "link", "set", "flannel0", "mtu", "1400"])
    repaired = overlay.wait_status(
        host,
        lambda status: status.is_ready and status.reconcile.repairs > 0,
        "repairs damage",
        deadline_s=DEADLINE_S,
    )
    assert {kind: count for kind, count in repaired.reconcile.repairs_by_kind.items() if count} == {"link": 1}
    assert overlay.log(host)[logged:].count(notice.text) == 1
    assert run_inside(host, kernel_programs.look).identifiers == before
    assert ping(box, far.address).is_reached

    overlay.daemons[host.name].stop()
    said = host.flannelctl("--store", overlay.etcd.url, "cleanup", "--keep-lease")
    assert "removed program flannel_decap at eth0" in said
    assert run_inside(host, kernel_programs.look).identifiers == []
    overlay.join(host)


@pytest.fixture
def pins(ends):
    """Create the pins for the duration of the test."""
    host, _ = ends
    yield lambda: host.flannelctl("pins")
    host.run(["umount", "/run/flannel/.bpf"])


@pytest.mark.parametrize("flags", [(), ("--fast-path=off",)], ids=["wanted", "not wanted"])
def test_pins_that_root_creates_later_suffice(overlay, ends, pins, ping_stream, flags):
    """The running daemon removes the programs, and attaches its own programs if it has the rights. No ping is
    lost.
    """
    host, (_, far) = ends
    start(overlay, host)
    wait_programs(host, SAFE)
    start(overlay, host, *FEWER_RIGHTS, flags=flags)
    overlay.wait_status(
        host,
        lambda status: status.fast_path and status.fast_path.remarks,
        "names them",
        deadline_s=DEADLINE_S,
    )

    with ping_stream(overlay.hosts["docker1"], far.address, interval_s=0.01) as stream:
        stream.wait_answered()
        pins()
        # The change starts a pass before the next audit.
        host.run(["ip", "link", "set", "flannel0", "mtu", "1400"])
        overlay.wait_status(
            host,
            lambda status: (
                status.fast_path.mode == ("off" if flags else "safe") and not status.fast_path.remarks
            ),
            "has them",
            deadline_s=DEADLINE_S,
        )
        wait_programs(host, [] if flags else SAFE)
        stream.wait_answered()

    assert stream.lost() == []
    overlay.wait_logged(host, "Resolved the fast path problem: programs of an earlier flanneld")


@pytest.mark.parametrize("link", ["flannel0", BRIDGE])
def test_a_link_created_again_with_another_index_gets_its_programs(overlay, ends, link):
    host, (box, far) = ends
    start(overlay, host)
    wait_programs(host, SAFE)

    before = index(host, link)

    host.run(["ip", "link", "delete", link])
    if link == BRIDGE:
        create_bridge(host, host.gateway())
        host.run(["ip", "link", "set", "c-box", "master", BRIDGE])

    wait_programs(host, SAFE)
    wait_reached([box, far], deadline_s=DEADLINE_S)
    assert index(host, link) != before
    wait_until(
        lambda: (
            counted_packets_of_a_ping(overlay, host, box, far)
            == {"encapsulated", "decapsulated", "delivered"}
        ),
        what="the kernel carries the packets again",
        deadline_s=DEADLINE_S,
    )


def counted_packets_of_a_ping(overlay, host, box, far) -> set[str]:
    """Return the packets of a ping that the programs of a host counted, by outcome."""
    before = overlay.status(host).fast_path.counters
    assert ping(box, far.address).is_reached
    after = overlay.status(host).fast_path.counters
    return {outcome for outcome in after if after[outcome] > before.get(outcome, 0)}


def index(host, name: str) -> int:
    return next(link["ifindex"] for link in host.links() if link["ifname"] == name)
