"""The CNI plugin for hosts without Python, in a root directory that contains nothing else."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="chroot needs root")

DELEGATE = """#!/busybox sh
/busybox cat >/conf
echo '{"cniVersion": "1.0.0", "ips": [{"address": "10.77.9.2/24"}]}'
"""
SUBNET_ENV = (
    "FLANNEL_NETWORK=10.77.0.0/16\nFLANNEL_SUBNET=10.77.9.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
)
CONF = json.dumps({"name": "n1", "cniVersion": "1.0.0", "type": "flannel"})


@pytest.fixture
def root(dist: Path, tmp_path: Path) -> Path:
    """A root directory with the plugin and a delegate, without Python, a C library and a shell."""
    bin_dir = tmp_path / "opt/cni/bin"
    bin_dir.mkdir(parents=True)
    [archive] = dist.glob("flannel-cni-*.tar.gz")
    subprocess.run(["tar", "-xzf", archive, "-C", bin_dir], check=True)
    (bin_dir / "bridge").write_text(DELEGATE)
    (bin_dir / "bridge").chmod(0o755)
    busybox = shutil.which("busybox")
    assert busybox is not None
    shutil.copy(busybox, tmp_path / "busybox")
    return tmp_path


def run(root: Path, command: str) -> "subprocess.CompletedProcess[str]":
    environment = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": "c1",
        "CNI_IFNAME": "eth0",
        "CNI_NETNS": "/run/netns/c1",
        "CNI_PATH": "/opt/cni/bin",
    }
    return subprocess.run(
        ["/usr/sbin/chroot", root, "/opt/cni/bin/flannel"],
        input=CONF,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_plugin_attaches_a_container_on_a_host_without_python(root: Path) -> None:
    error = json.loads(run(root, "ADD").stdout)
    assert error["code"] == 11
    assert "flanneld does not run on this host" in error["details"]
    (root / "run/flannel").mkdir(parents=True)
    (root / "run/flannel/subnet.env").write_text(SUBNET_ENV)
    done = run(root, "ADD")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["ips"] == [{"address": "10.77.9.2/24"}]
    assert json.loads((root / "conf").read_text())["ipam"]["ranges"] == [[{"subnet": "10.77.9.0/24"}]]
    assert run(root, "DEL").returncode == 0
    assert list((root / "var/lib/cni/flannel").iterdir()) == []
