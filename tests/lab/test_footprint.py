"""The costs of a host in a network, printed without a limit: memory, idle time, delay."""

import json
import os
import sys
import time
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from pyflannel.lab.lab import PREFIX
from pyflannel.lab.topology import Host
from pyflannel.lab.waiting import wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

DEADLINE_S = 60.0
EVENTS = 10
NETWORK = IPv4Network("10.64.0.0/10")
POLL_S = 0.001
_OPERATIONS = 100  # etcd accepts at most 128 operations in a transaction

WRITE_LEASES = """
import asyncio, sys, time
from pyflannel.assembly.stores import open_store
from pyflannel.model.store_record import Put

async def write(url, *keys):
    store = open_store(url)
    await store.list("subnets/")
    for number, key in enumerate(keys):
        await asyncio.sleep(0.2)
        value = f'{{"PublicIP":"172.17.0.{number}"}}'.encode()
        print(time.monotonic(), flush=True)
        await store.write(Put(key=key, value=value, ttl_s=None, expected=None))
    await store.close()

asyncio.run(write(*sys.argv[1:]))
"""


@pytest.fixture(scope="module", autouse=True)
def joined(overlay) -> None:
    """Four hosts of a network with room for many others."""
    overlay.etcd.etcdctl("put", f"{PREFIX}/config", json.dumps({"Network": str(NETWORK), "SubnetLen": 24}))
    overlay.lab.each(overlay.join)
    overlay.settle(*overlay.hosts.values())


@pytest.fixture(scope="module")
def spare_subnets(overlay) -> list[IPv4Network]:
    """Subnets that no host of the lab has."""
    held = {host.lease() for host in overlay.hosts.values()}
    return [subnet for subnet in NETWORK.subnets(new_prefix=24) if subnet not in held][1:2000]


def write_leases(overlay, subnets: list[IPv4Network]) -> None:
    """Write a lease of another host for each subnet."""
    for start in range(0, len(subnets), _OPERATIONS):
        puts = [
            f'put {PREFIX}/subnets/{subnet.network_address}-24 "{{\\"PublicIP\\":\\"{address}\\"}}"'
            for number, subnet in enumerate(subnets[start : start + _OPERATIONS], start)
            for address in [IPv4Address("172.16.0.1") + number]
        ]
        command = ["env", "ETCDCTL_API=3", "etcdctl", f"--endpoints={overlay.etcd.endpoint}", "txn"]
        overlay.lab.router.run(command, text="\n" + "\n".join(puts) + "\n\n\n")


def process_ids(host: Host) -> dict[str, int]:
    """Return the process IDs of flanneld and its forwarder on the host, as seen from the machine."""
    found = {}
    for process in Path("/proc").iterdir():
        try:
            command = (process / "cmdline").read_text().split("\0")
            is_here = os.path.samefile(process / "ns/net", f"/proc/{host.init_pid}/ns/net")
        except (OSError, ProcessLookupError):
            continue
        if is_here and "pyflannel.programs.forwarder" in command:
            found["forwarder"] = int(process.name)
        elif is_here and any(word.endswith("bin/flanneld") for word in command[:2]):
            found["flanneld"] = int(process.name)
    return found


def memory_mb(pid: int) -> float:
    fields = Path(f"/proc/{pid}/status").read_text()
    kib = next(int(line.split()[1]) for line in fields.splitlines() if line.startswith("VmRSS"))
    return kib / 1024


def cpu_s(pid: int) -> float:
    """Return the processor time in seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("count", [4, 100, 1000])
def test_memory(overlay, spare_subnets, figures, count: int) -> None:
    host = overlay.hosts["docker1"]
    others = count - len(overlay.hosts)
    began = time.monotonic()
    write_leases(overlay, spare_subnets[:others])

    wait_until(
        lambda: len(overlay.peers(host)) == count - 1,
        what=f"{count - 1} peers",
        deadline_s=DEADLINE_S,
    )

    took_s = time.monotonic() - began
    sizes = {name: memory_mb(pid) for name, pid in process_ids(host).items()}
    assert set(sizes) == {"flanneld", "forwarder"}
    figures(
        f"{count} leases: flanneld {sizes['flanneld']:.1f} MB, forwarder {sizes['forwarder']:.1f} MB"
        f" ({took_s:.2f} s after the first of them was written)"
    )


def test_idle_time(overlay, figures, long_run: bool) -> None:
    """The network has 1,000 leases. In the long form, the time contains three audits."""
    span_s = 30.0 if long_run else 4.0
    processes = process_ids(overlay.hosts["docker1"])
    before = {name: cpu_s(pid) for name, pid in processes.items()}
    time.sleep(span_s)  # not a wait for an event: this period is measured
    shares = {name: (cpu_s(pid) - before[name]) / span_s for name, pid in processes.items()}
    figures(
        ", ".join(f"{name} {share:.2%} of a core" for name, share in shares.items())
        + f" in {span_s:.0f} idle s"
    )


def test_the_delay_from_a_lease_to_its_entry_in_the_table_is_printed(overlay, spare_subnets, figures) -> None:
    """The network has 1,000 leases. The other hosts are idle, so that they use no processor time."""
    host = overlay.hosts["docker1"]
    for other in overlay.hosts.values():
        if other is not host:
            overlay.daemons[other.name].stop()
    awaited = spare_subnets[1500 : 1500 + EVENTS]
    keys = [f"subnets/{subnet.network_address}-24" for subnet in awaited]
    script = [sys.executable, "-c", WRITE_LEASES, overlay.etcd.url, *keys]
    writer = overlay.lab.router.start(script, name="writer")
    seen: dict[int, float] = {}
    end = time.monotonic() + DEADLINE_S

    while len(seen) < EVENTS and time.monotonic() < end:
        subnets = {peer.subnet for peer in overlay.peers(host)}
        now = time.monotonic()
        for subnet in awaited:
            if int(subnet.network_address) in subnets:
                seen.setdefault(int(subnet.network_address), now)
        time.sleep(POLL_S)

    assert writer.wait(DEADLINE_S) == 0
    assert len(seen) == EVENTS
    written = [float(line) for line in (overlay.lab.router.directory / "log/writer.log").read_text().split()]
    pairs = zip(awaited, written, strict=True)
    times_ms = sorted((seen[int(subnet.network_address)] - at) * 1e3 for subnet, at in pairs)
    figures(
        f"from the write of a lease to the forwarder's table: median {times_ms[EVENTS // 2]:.1f} ms,"
        f" longest {times_ms[-1]:.1f} ms"
    )
