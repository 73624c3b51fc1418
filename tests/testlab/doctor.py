"""flannelctl doctor on a host of a test: its findings, and a host without findings."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from pyflannel.lab.topology import Host
from pyflannel.lab.waiting import together, wait_until
from testlab.documents import read_document
from testlab.overlay import Overlay

DEADLINE_S = 60.0


def examine(host: Host, *, exit_code: int = 0) -> dict[str, dict[str, Any]]:
    """Return the findings of doctor by code, and check their form."""
    ran = host.run(["flannelctl", "--json", "doctor"], check=False)
    assert ran.returncode == exit_code, ran.stdout + ran.stderr
    document = read_document(["doctor"], ran.stdout)
    assert document["ok"] == (exit_code == 0)
    for one in document["findings"]:
        assert one["severity"] in ("error", "warning", "info")
        assert one["cause"]
        assert one["fix"]
    return {one["code"]: one for one in document["findings"]}


def problems(host: Host) -> list[dict[str, Any]]:
    """Return the findings that are warnings or errors."""
    document = read_document(["doctor"], host.run(["flannelctl", "--json", "doctor"], check=False).stdout)
    return [one for one in document["findings"] if one["severity"] != "info"]


def joined_pair(overlay: Overlay, kind: str, **options: Any) -> list[Host]:
    """Start flanneld on two hosts of one link, and give the first a bridge like Docker's."""
    overlay.set_backend(kind, **options)
    pair = [overlay.hosts[name] for name in ("docker1", "docker2")]
    together([partial(overlay.join, host) for host in pair])
    overlay.settle(*pair)
    batch = f"link add br7 type bridge\nlink set br7 up\naddress add {pair[0].gateway()} dev br7\n"
    pair[0].run(["ip", "-batch", "-"], text=batch)
    return pair


@contextmanager
def without_problems(overlay: Overlay, host: Host) -> Iterator[Host]:
    """Check that doctor finds nothing on the host, before and after the block."""
    assert not problems(host)
    yield host
    # While two programs undo the changes of each other, a host may be ready for a moment.
    wait_until(
        lambda: host.run(["flannelctl", "doctor"], check=False).returncode == 0,
        what="doctor finds no error any more",
        deadline_s=DEADLINE_S,
    )
    overlay.wait_ready(host)
    assert not problems(host)
