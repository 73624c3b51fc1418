"""The messages of the Debian package on hosts that lack a requirement, or run another flanneld, are true."""

import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyflannel.lab.lab import PREFIX, EtcdServer, Lab
from pyflannel.lab.topology import COOKBOOK, LEFT, Host, Topology
from pyflannel.lab.waiting import wait_until
from testlab.booted_system import BootedSystem
from testlab.debian_systems import (
    CODENAMES,
    NEEDS_DEBIAN_SYSTEMS,
    UnbootedSystem,
    bootable_system,
    install,
    newer,
    package_of,
)

ROOT = Path(__file__).parents[2]
SOON_S = 60.0
ENDPOINTS = f"http://{LEFT.gateway.ip}:2379"
SETTINGS = "/etc/default/flanneld"
DROP_IN = "/etc/systemd/system/flanneld.service.d/test.conf"
READ_ONLY_VAR = "mount --bind /var /var && mount -o remount,bind,ro /var"

pytestmark = NEEDS_DEBIAN_SYSTEMS


@pytest.fixture(scope="module", params=CODENAMES)
def release(request: pytest.FixtureRequest) -> str:
    """The Debian release."""
    return str(request.param)


@pytest.fixture(scope="module")
def package(dist: Path, release: str) -> Path:
    return package_of(dist, release)


@pytest.fixture(scope="module")
def lab(release: str) -> Iterator[Lab]:
    """A lab with an etcd and without hosts, for each release."""
    with Lab(f"d{os.getpid()}", Topology(COOKBOOK.segments, ())) as lab:
        etcd = EtcdServer(lab.router, str(LEFT.gateway.ip))
        etcd.start()
        etcd.etcdctl("put", f"{PREFIX}/config", '{"Network":"10.100.0.0/16"}')
        yield lab


@pytest.fixture(scope="module")
def host(lab: Lab) -> Host:
    return lab.add_hosts(COOKBOOK.hosts[0])[0]


@pytest.fixture(scope="module")
def system(host: Host, release: str) -> BootedSystem:
    """A booted system without the package."""
    system = BootedSystem(host, bootable_system(release))
    system.install()
    system.boot()
    system.wait_up()
    return system


ORIGINAL = "/opt/flannel/flanneld"
ORIGINALS_UNIT = f"""
[Service]
Environment=PYTHONHOME=/usr
ExecStart={ORIGINAL} -c "import signal; signal.sigwait([signal.SIGTERM])"
[Install]
WantedBy=multi-user.target
"""


@pytest.fixture
def original(system: BootedSystem) -> Iterator[str]:
    """A running original, with a unit of the name that the package uses; its process ID."""
    system.run(["sh", "-c", f"install -D $(readlink -f /usr/bin/python3) {ORIGINAL}"])
    system.run(["mkdir", "-p", "/run/flannel"])
    system.run(["tee", "/run/flannel/subnet.env"], text="FLANNEL_SUBNET=10.100.5.1/24\n")
    system.run(["tee", "/etc/systemd/system/flanneld.service"], text=ORIGINALS_UNIT)
    system.systemctl("daemon-reload")
    system.systemctl("enable", "--now", "flanneld")
    yield system.show("flanneld", "MainPID")
    system.systemctl("disable", "--now", "flanneld")
    system.run(["rm", "-r", "/etc/systemd/system/flanneld.service", "/opt/flannel"])
    system.systemctl("daemon-reload")


def test_a_running_original_is_named_and_not_changed(
    system: BootedSystem, package: Path, original: str, tmp_path: Path
) -> None:
    """Installation, upgrade, removal and purge do not change the original, whose unit has the same name."""
    for version in package, newer(package, tmp_path):
        said = install(system, version)
        assert f"an original flannel runs (pid {original}, {ORIGINAL}) and was not changed" in said
        assert "/etc/systemd/system/flanneld.service overrides the unit of this package" in said

    said = system.run(["dpkg", "--purge", "pyflannel"]).stdout

    assert "another flanneld runs, so /run/flannel is kept" in said
    assert system.run(["cat", "/run/flannel/subnet.env"]).stdout == "FLANNEL_SUBNET=10.100.5.1/24\n"
    assert (system.show("flanneld", "MainPID"), system.show("flanneld", "UnitFileState")) == (
        original,
        "enabled",
    )


@pytest.fixture(scope="module")
def installed(system: BootedSystem, package: Path) -> BootedSystem:
    """The system with the package and its settings; flanneld does not run."""
    said = install(system, package)
    assert "then: systemctl enable --now flanneld" in said
    system.run(["tee", SETTINGS], text=f"FLANNELD_ETCD_ENDPOINTS={ENDPOINTS}\n")
    return system


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        (f"flanneld --etcd-endpoints={ENDPOINTS}", "Run as root"),
        ("flannelctl cleanup --yes", "Run as root"),
        ("dpkg --install /root/pyflannel.deb", "superuser privilege"),
    ],
)
def test_without_root_each_program_reports_that_it_needs_root(
    installed: BootedSystem, command: str, complaint: str
) -> None:
    as_nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]

    refused = installed.run([*as_nobody, *shlex.split(command)], check=False)

    assert refused.returncode != 0
    assert complaint in refused.stderr


@pytest.fixture
def read_only_var(installed: BootedSystem) -> Iterator[BootedSystem]:
    """The installed system while /var is read-only."""
    installed.run(["sh", "-c", READ_ONLY_VAR])
    yield installed
    installed.systemctl("stop", "flanneld")
    installed.run(["umount", "/var"])


def test_with_a_read_only_var_the_journal_names_it_and_the_drop_in_of_the_guide_helps(
    read_only_var: BootedSystem,
) -> None:
    system = read_only_var
    system.systemctl("start", "--no-block", "flanneld")
    refusal = "Failed to set up special execution directory in /var/lib: Read-only file system"
    wait_until(lambda: refusal in system.journal("flanneld"), what="the refusal", deadline_s=SOON_S)

    guide = (ROOT / "docs/guides/systemd.md").read_text()
    (drop_in,) = re.findall(
        r"^```ini\n(\[Service\]\nStateDirectory=\n.*?)^```", guide, re.DOTALL | re.MULTILINE
    )
    system.run(["install", "-D", "/dev/stdin", DROP_IN], text=drop_in)
    system.systemctl("daemon-reload")
    system.systemctl("restart", "flanneld")

    assert "FLANNEL_SUBNET=" in system.run(["cat", "/run/flannel/subnet.env"]).stdout
    system.run(["rm", DROP_IN])
    system.systemctl("daemon-reload")


def test_with_a_read_only_var_dpkg_refuses_the_package(read_only_var: BootedSystem) -> None:
    refused = read_only_var.run(["dpkg", "--install", "/root/pyflannel.deb"], check=False)

    assert refused.returncode != 0
    assert "Read-only file system" in refused.stderr


def test_without_bpf_user_space_carries_packets_and_status_names_the_reason(installed: BootedSystem) -> None:
    """A filter answers bpf(2) with ENOSYS, as a kernel without eBPF does."""
    without_bpf = "[Service]\nSystemCallFilter=~bpf\nSystemCallErrorNumber=ENOSYS\n"
    installed.run(["install", "-D", "/dev/stdin", DROP_IN], text=without_bpf)
    installed.systemctl("daemon-reload")

    installed.systemctl("start", "flanneld")

    status = installed.run(["flannelctl", "status"]).stdout
    assert ", ready\n" in status
    assert "user-space: ENOSYS" in status
    installed.systemctl("stop", "flanneld")
    installed.run(["rm", DROP_IN])
    installed.systemctl("daemon-reload")


def test_of_two_versions_side_by_side_the_second_names_the_first(
    installed: BootedSystem, package: Path
) -> None:
    other = "/usr/local/bin/flanneld"
    installed.run(["install", "-D", "/usr/bin/flanneld", other])

    said = install(installed, package)
    installed.systemctl("start", "flanneld")
    refused = installed.run([other, f"--etcd-endpoints={ENDPOINTS}"], check=False)

    assert f"{other} exists too" in said
    assert refused.returncode != 0
    pid = installed.show("flanneld", "MainPID")
    assert f"flanneld (pid {pid}) is running already" in refused.stderr
    assert "argv[]=/usr/bin/flanneld" in installed.show("flanneld", "ExecStart")


def test_without_systemd_the_package_reports_the_steps_left_to_the_user(
    lab: Lab, package: Path, release: str, tmp_path: Path
) -> None:
    system = UnbootedSystem(lab.add_hosts(COOKBOOK.hosts[1])[0], bootable_system(release))

    said = install(system, package)
    assert "systemd does not run here, so the package starts and restarts nothing" in said
    assert "start the daemon with: flanneld --etcd-endpoints=" in said
    daemon = system.start(["flanneld", f"--etcd-endpoints={ENDPOINTS}"])
    wait_until(
        lambda: system.run(["test", "-e", "/run/flannel/subnet.env"], check=False).returncode == 0,
        what="subnet.env",
        deadline_s=SOON_S,
    )
    (pid,) = system.run(["pidof", "-x", "flanneld"]).stdout.split()
    said = install(system, newer(package, tmp_path))
    assert f"flanneld, pid {pid}, runs the former version until you restart it" in said

    system.run(["dpkg", "--purge", "pyflannel"])

    daemon.wait(SOON_S)
    assert system.run(["find", "/run", "/var/lib/flannel", "-name", "*flannel*"], check=False).stdout == ""
    assert not [link for link in lab.hosts["docker2"].links() if link["ifname"].startswith("flannel")]
