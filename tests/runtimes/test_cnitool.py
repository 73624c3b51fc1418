"""The reference runtime of CNI, with delegates that know STATUS and GC."""

import json
import shlex
from pathlib import Path

import pytest

from pyflannel.errors import LabError
from pyflannel.lab.topology import Host
from testlab.cni_runtime import CHAIN_EFFECTS, FURTHER, chain_effects


class Cnitool:
    """`cnitool` on a host, with the network configuration raised to CNI 1.1.0."""

    def __init__(self, host: Host, programs: Path) -> None:
        self.host = host
        self._programs = programs
        conf = json.loads(host.run(["cat", "/etc/cni/net.d/10-flannel.conflist"]).stdout)
        plugins = [*conf["plugins"], *FURTHER]
        text = json.dumps({**conf, "cniVersion": "1.1.0", "name": "tool", "plugins": plugins})
        host.run(["sh", "-c", "mkdir -p /run/cnitool && cat >/run/cnitool/10-tool.conflist"], text=text)

    def __call__(self, command: str, namespace: str = "none") -> str:
        return self.host.run(self._words(command, namespace)).stdout

    def add_all(self, namespaces: list[str]) -> None:
        """Create these namespaces and attach them, four at a time."""
        each = shlex.join(self._words("add", "{}"))
        add = f"xargs -P4 -I{{}} sh -ec 'ip netns add {{}}; {each} >/run/cnitool/{{}}'"
        self.host.run(["sh", "-ec", add], text="\n".join(namespaces))

    def _words(self, command: str, namespace: str) -> list[str]:
        settings = [f"CNI_PATH={self._programs}:/opt/cni/bin", "NETCONFPATH=/run/cnitool"]
        return ["env", *settings, str(self._programs / "cnitool"), command, "tool", f"/run/netns/{namespace}"]


@pytest.fixture
def tool(hosts: list[Host], go_programs: Path) -> Cnitool:
    return Cnitool(hosts[0], go_programs)


def test_an_attachment_is_added_checked_and_deleted(tool: Cnitool) -> None:
    tool.host.run(["ip", "netns", "add", "t1"])
    tool("status")
    result = json.loads(tool("add", "t1"))
    assert result["cniVersion"] == "1.1.0"
    address = str(result["ips"][0]["address"]).partition("/")[0]
    assert chain_effects(tool.host, "t1", address) == CHAIN_EFFECTS
    tool("check", "t1")
    tool.host.run(["ip", "-n", "t1", "addr", "flush", "dev", "eth0"])
    with pytest.raises(LabError, match="failed to delegate check"):
        tool("check", "t1")
    tool("del", "t1")
    tool("del", "t1")
    assert address not in tool.host.run(["iptables-save", "-t", "filter"]).stdout
    tool.host.run(["ip", "netns", "delete", "t1"])


def test_garbage_collection_frees_the_addresses_of_lost_attachments(tool: Cnitool) -> None:
    lost = [f"g{number}" for number in range(100)]
    tool.add_all(lost)
    assert _saved(tool.host) == 100
    forget = 'rm -r /var/lib/cni/results; for name in "$@"; do ip netns delete $name; done'
    tool.host.run(["sh", "-ec", forget, "-", *lost])
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
