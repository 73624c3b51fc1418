"""The reference runtime of CNI, with delegates that know STATUS and GC."""

import json
from pathlib import Path

import pytest

from pyflannel.errors import LabError
from pyflannel.lab.topology import Host


class Cnitool:
    """`cnitool` on a host, with the network configuration raised to CNI 1.1.0."""

    def __init__(self, host: Host, programs: Path) -> None:
        self.host = host
        self._programs = programs
        conf = json.loads(host.run(["cat", "/etc/cni/net.d/10-flannel.conflist"]).stdout)
        text = json.dumps({**conf, "cniVersion": "1.1.0", "name": "tool"})
        host.run(["sh", "-c", "mkdir -p /run/cnitool && cat >/run/cnitool/10-tool.conflist"], text=text)

    def __call__(self, command: str, namespace: str = "none", **environment: str) -> str:
        settings = {
            "CNI_PATH": f"{self._programs}:/opt/cni/bin",
            "NETCONFPATH": "/run/cnitool",
            **environment,
        }
        given = [f"{name}={value}" for name, value in settings.items()]
        words = ["env", *given, str(self._programs / "cnitool"), command, "tool", f"/run/netns/{namespace}"]
        return self.host.run(words).stdout


@pytest.fixture
def tool(hosts: list[Host], go_programs: Path) -> Cnitool:
    return Cnitool(hosts[0], go_programs)


def test_an_attachment_is_added_checked_and_deleted(tool: Cnitool) -> None:
    tool.host.run(["ip", "netns", "add", "t1"])
    tool("status")
    result = json.loads(tool("add", "t1"))
    assert result["cniVersion"] == "1.1.0"
    tool("check", "t1")
    tool.host.run(["ip", "-n", "t1", "addr", "flush", "dev", "eth0"])
    with pytest.raises(LabError, match="failed to delegate check"):
        tool("check", "t1")
    tool("del", "t1")
    tool("del", "t1")
    tool.host.run(["ip", "netns", "delete", "t1"])


def test_garbage_collection_frees_the_addresses_of_lost_attachments(tool: Cnitool) -> None:
    for number in range(10):
        tool.host.run(["ip", "netns", "add", f"g{number}"])
        tool("add", f"g{number}")
    assert _saved(tool.host) == 10
    tool.host.run(
        ["sh", "-c", "rm -rf /var/lib/cni/results; for n in 0 1 2 3 4 5 6 7 8 9; do ip netns del g$n; done"]
    )
    tool("gc")
    assert _saved(tool.host) == 0
    find = ["find", "/var/lib/cni/networks/tool", "-name", "10.*"]
    assert tool.host.run(find).stdout == ""


def _saved(host: Host) -> int:
    return len(host.run(["find", "/var/lib/cni/flannel", "-type", "f"]).stdout.split())


def test_status_without_a_subnet_file_is_an_error_with_the_reason(tool: Cnitool) -> None:
    path = "/run/cnitool/10-tool.conflist"
    conf = json.loads(tool.host.run(["cat", path]).stdout)
    conf["plugins"][0]["subnetFile"] = "/run/nowhere/subnet.env"
    tool.host.run(["sh", "-c", f"cat >{path}"], text=json.dumps(conf))
    with pytest.raises(LabError, match=r"/run/nowhere/subnet\.env"):
        tool("status")
