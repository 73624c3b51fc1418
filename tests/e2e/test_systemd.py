"""A host booted by systemd: order at boot, restarts under traffic, the watchdog, a reboot.

Uses a real systemd, a real Docker engine and the units of deploy/systemd in namespaces. A container on a
second host pings a container on this host.
"""

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from pyflannel.lab.containers import IMAGE, write_image
from pyflannel.lab.traffic import ping
from pyflannel.lab.waiting import wait_until
from testlab.booted_host import FORWARDER_UNIT, PAYLOAD, SOON_S, Booted
from testlab.booted_system import BootedSystem
from testlab.overlay import PingStream

missing = BootedSystem.missing()
pytestmark = pytest.mark.skipif(missing is not None, reason=f"no {missing}")

DEPLOY = Path(__file__).parents[2] / "deploy/systemd"
UNITS = "/etc/systemd/system"
OWN_UNITS = (
    "flanneld.service",
    *("flannel-forwarder.socket", "flannel-forwarder@.service"),
    *("flannel-wireguard.socket", "flannel-wireguard@.service"),
)
WIREGUARD_UNIT = r"flannel-wireguard@[\w.-]+\.service"
WIREGUARD_EXPOSURE_MAX = 20
EXPOSURE_MAX = 30
FORWARDER_EXPOSURE_MAX = 10
"""Maximum exposure of the forwarder's unit in tenths, for `systemd-analyze security --threshold`. A service
without any restriction has 100."""

NET_ADMIN, NET_RAW, BPF = 1 << 12, 1 << 13, 1 << 39
"""linux/capability.h."""

IN_DAEMON = """
attempt()
from pyflannel.programs.flanneld import main
sys.exit(main())
"""
IN_FORWARDER = """
from pyflannel.datapath.forwarder import Forwarder
from pyflannel.programs.forwarder import main
real = Forwarder.run
def run(self, watchdog):
    attempt()
    real(self, watchdog)
Forwarder.run = run
sys.exit(main())
"""

EACH_DEVICE = "[Match]\nName=flannel* docker*\n[Network]\nAddress=192.0.2.9/32\n"


@contextmanager
def busy(system: BootedSystem, count: int) -> Iterator[None]:
    """Use the processors with this number of processes, for the duration of a block."""
    loops = [system.start(["sh", "-c", "while :; do :; done"], name=f"busy-{n}") for n in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()


def write_file(system: BootedSystem, source: str, target: str) -> None:
    system.write(target, (DEPLOY / source).read_text())


@pytest.fixture(scope="module")
def booted(network_of: Callable[..., AbstractContextManager[Any]]) -> Iterator[Booted]:
    """The first boot. The store contains no network config yet, and flanneld must wait for it."""
    with network_of("docker1", "docker2") as network:
        network.start("docker2")
        network.etcdctl("del", "/coreos.com/network/config")
        system = BootedSystem(network.hosts["docker1"])
        system.install()
        for unit in OWN_UNITS:
            write_file(system, unit, f"{UNITS}/{unit}")
        write_file(system, "sysusers.d/flannel.conf", "/etc/sysusers.d/flannel.conf")
        write_file(
            system,
            "docker-by-subnet-env/docker.service.d/flannel.conf",
            f"{UNITS}/docker.service.d/flannel.conf",
        )
        system.write("/etc/default/flanneld", f"FLANNELD_ETCD_ENDPOINTS={network.etcd.endpoint}\n")
        system.enable("flanneld.service", "docker.service")
        system.boot()
        wait_until(
            lambda: "config" in system.show("flanneld", "StatusText"),
            what="flanneld waits for the config",
            deadline_s=SOON_S,
        )
        said = system.show("flanneld", "StatusText")
        began_early = system.show("docker", "ActiveState") != "inactive"
        network.put("config", '{"Network":"10.100.0.0/16"}')
        system.wait_up()
        other = network.hosts["docker2"]
        elsewhere = other.container("elsewhere", gateway=other.gateway(), mtu=1472)
        yield Booted(network, system, run_container(system), elsewhere, began_early, said)


def run_container(system: BootedSystem) -> str:
    """Run a container that Docker restarts. Return the address of the container."""
    archive = "/var/lib/docker/image.tar"
    write_image(system.directory / "docker/image.tar")
    system.run(["docker", "import", archive, IMAGE])
    options = ["--detach", "--restart=always", "--stop-signal=KILL", "--name=web"]
    system.run(["docker", "run", *options, IMAGE, "sleep", "1000"])
    form = "--format={{.NetworkSettings.Networks.bridge.IPAddress}}"
    return system.run(["docker", "inspect", form, "web"]).stdout.strip()


class TestBoot:
    def test_docker_starts_after_packets_can_flow(self, booted: Booted) -> None:
        ready = booted.time_of("ActiveEnter")
        docker_began = int(booted.system.show("docker", "ExecMainStartTimestampMonotonic"))

        assert booted.said_while_waiting.startswith("waiting for ")
        assert not booted.docker_began_early
        assert 0 < ready <= docker_began

    def test_docker_has_the_leased_subnet(self, booted: Booted) -> None:
        pid = booted.system.show("docker", "MainPID")
        command = booted.system.run(["cat", f"/proc/{pid}/cmdline"]).stdout.split("\0")

        assert f"--bip={booted.gateway()}" in command
        assert "--mtu=1472" in command
        assert booted.bridge_address() == booted.gateway()
        assert booted.system.systemctl("is-active", "docker").strip() == "active"

    def test_systemctl_status_shows_the_state_of_the_host(self, booted: Booted) -> None:
        booted.wait(
            lambda: booted.system.show("flanneld", "StatusText").endswith(", 1 peers"), "the peer is seen"
        )

        assert re.fullmatch(
            r"lease 10\.100\.\d+\.0/24, 1 peers", booted.system.show("flanneld", "StatusText")
        )

    def test_no_unit_failed_and_the_sandbox_refused_nothing(self, booted: Booted) -> None:
        failed = booted.system.systemctl("--failed", "--no-legend", "--plain").strip()
        log = booted.system.journal("flanneld.service")
        rules = booted.system.run(["iptables", "-S", "FLANNEL-FWD"]).stdout

        assert failed == ""
        assert "refused:" not in log
        assert "Operation not permitted" not in log
        assert "keeps more rights" not in log
        assert "-s 10.100.0.0/16" in rules

    def test_the_kernel_carries_the_packets(self, booted: Booted) -> None:
        """Programs are at the device, at both hooks of the underlay and at Docker's bridge, by pins."""
        booted.wait(lambda: len(booted.programs()) == 4, "four programs are attached")
        booted.wait(lambda: ping(booted.elsewhere, booted.container).is_reached, "packets flow")

        assert "No fast path" not in booted.system.journal("flanneld.service")

    def test_the_units_are_correct_and_hardened(self, booted: Booted) -> None:
        (forwarder,) = booted.units()
        verified = booted.system.run(["systemd-analyze", "verify", *OWN_UNITS, "docker.service"])

        assert (verified.stdout, verified.stderr) == ("", "")
        for unit, highest in (("flanneld.service", EXPOSURE_MAX), (forwarder, FORWARDER_EXPOSURE_MAX)):
            command = ["systemd-analyze", "security", f"--threshold={highest}", unit]
            exposure = booted.system.run(command, check=False)
            assert exposure.returncode == 0, exposure.stdout[-200:]

    def test_the_forwarder_has_a_unit_of_its_own(self, booted: Booted) -> None:
        (forwarder,) = booted.forwarders()
        own = booted.cgroup(forwarder)

        assert re.search(rf"/{FORWARDER_UNIT}$", own, re.MULTILINE)
        assert booted.rights(forwarder) == ("flannel-forwarder", 0)
        assert "flanneld.service" not in own


class TestRights:
    """The possible damage to the host by a defect in a process of flanneld."""

    def test_the_daemon_has_three_capabilities_and_no_root(self, booted: Booted) -> None:
        rights = booted.rights(booted.main_pid)

        assert rights == ("flanneld", NET_ADMIN | NET_RAW | BPF)

    def test_code_inside_the_units_has_no_access_to_secrets_or_systemd(self, booted: Booted) -> None:
        """Only the restrictions prevent these actions, because root may perform them."""
        system, (before,) = booted.system, booted.forwarders()
        with booted.running(IN_DAEMON), booted.running(IN_FORWARDER, "flannel-forwarder@.service"):
            of_daemon = booted.attempted("flanneld.service")
            system.run(["kill", before])
            of_forwarder = booted.attempted("flannel-forwarder@*")
            booted.wait(lambda: ping(booted.elsewhere, booted.container).is_reached, "packets flow")
        of_root = system.run([sys.executable, "-c", f"{PAYLOAD}\nattempt()"]).stderr

        assert of_daemon == ["start a process", "open a socket"]
        assert of_forwarder == []
        assert json.loads(of_root.removeprefix("payload ")) == [
            *("read /etc/shadow", "reach systemd", "reach the message bus", "reach Docker"),
            *("write to /etc", "become root", "start a process", "open a socket"),
        ]
        booted.wait_another_forwarder([before])

    def test_the_user_takes_over_from_a_flanneld_of_root(
        self, booted: Booted, pinging: Callable[..., AbstractContextManager[Any]]
    ) -> None:
        """After an update of the unit, files, programs and forwarder still belong to root.

        The programs carry the pings. In tests/lab/forwarder/test_hand_over.py, user space carries the pings.
        """
        (before,) = booted.forwarders()
        with booted.changed("User=root"):
            booted.system.run(["kill", before])
            forwarder, pid = booted.wait_another_forwarder([before]), booted.main_pid
            booted.wait(lambda: len(booted.programs()) == 4, "four programs are pinned")
            booted.wait(lambda: ping(booted.elsewhere, booted.container).is_reached, "packets flow")
            assert booted.rights(pid)[0] == "root"
            with pinging(booted.elsewhere, booted.container) as pings:
                booted.change("")
                booted.wait_another_daemon(pid)
                booted.wait_another_forwarder([forwarder])

        assert pings.lost == 0
        assert "Killed" not in booted.system.journal("flanneld.service")
        owners = booted.system.run(
            ["find", "/run/flannel", "/var/lib/flannel", "-not", "-user", "flanneld"]
        ).stdout
        assert owners == ""

    @pytest.mark.timeout(3600)
    def test_the_user_takes_over_a_forwarder_of_root_in_user_space(
        self, booted: Booted, long_run: bool, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The forwarder is taken over twenty times at 1,000 pings a second, while other processes use all
        processors.
        """
        if not long_run:
            pytest.skip("needs --long")

        with booted.changed("Environment=FLANNELD_FAST_PATH=off"):
            booted.wait(lambda: booted.programs() == set(), "user space carries the packets")
            for _ in range(20):
                forwarder = booted.start_forwarder_of_root()
                pid = booted.main_pid
                with (
                    busy(booted.system, os.cpu_count() or 1),
                    PingStream(
                        booted.elsewhere, IPv4Address(booted.container), interval_s=0.001, is_urgent=True
                    ) as pings,
                ):
                    pings.wait_answered()
                    booted.change("Environment=FLANNELD_FAST_PATH=off")
                    booted.wait_another_daemon(pid)
                    successor = booted.wait_another_forwarder([forwarder])
                    pings.wait_answered()
                sent = max(answer.number for answer in pings.answers())
                with capsys.disabled():
                    print(f"\n  {len(pings.lost())} of {sent} pings lost", end="", flush=True)
                assert booted.rights(successor) == ("flannel-forwarder", 0)
                assert pings.lost() == []


class TestRestart:
    @pytest.mark.parametrize("command", ["restart flanneld", "kill --signal=KILL flanneld"])
    def test_no_ping_is_lost(
        self, booted: Booted, command: str, pinging: Callable[..., AbstractContextManager[Any]]
    ) -> None:
        """The pings are between containers, and the kill ends all processes of the unit.

        The next daemon takes over the programs that the previous daemon attached.
        """
        booted.wait(lambda: len(booted.programs()) == 4, "four programs are attached")
        pid, forwarders, programs = booted.main_pid, booted.forwarders(), booted.programs()

        with pinging(booted.elsewhere, booted.container) as pings:
            booted.system.systemctl(*command.split())
            booted.wait_another_daemon(pid)

        assert pings.lost == 0
        assert (booted.forwarders(), booted.programs()) == (forwarders, programs)

    def test_missing_pins_are_created_again(
        self, booted: Booted, pinging: Callable[..., AbstractContextManager[Any]]
    ) -> None:
        """Without pins, the next daemon would attach its programs behind the permanent programs of the
        previous daemon.
        """
        booted.wait(lambda: len(booted.programs()) == 4, "four programs are attached")
        programs, pid = booted.programs(), booted.main_pid
        booted.system.run(["umount", "/run/flannel/.bpf"])

        with pinging(booted.elsewhere, booted.container) as pings:
            booted.system.systemctl("restart", "flanneld")
            booted.wait_another_daemon(pid)

        assert pings.lost == 0
        booted.wait(lambda: booted.programs() == programs, "the same programs are pinned")

    def test_docker_is_not_restarted_with_flanneld(self, booted: Booted) -> None:
        docker, pid = booted.system.show("docker", "MainPID"), booted.main_pid

        booted.system.systemctl("restart", "flanneld")

        booted.wait_another_daemon(pid)
        assert booted.system.show("docker", "MainPID") == docker

    def test_a_hanging_daemon_is_restarted(self, booted: Booted) -> None:
        with booted.changed("WatchdogSec=4"):
            forwarders, pid = booted.forwarders(), booted.wait_alive_for(4_500_000)

            booted.system.systemctl("kill", "--signal=STOP", "--kill-whom=main", "flanneld")

            booted.wait_another_daemon(pid)
            booted.wait_logged("Watchdog timeout")
            assert booted.forwarders() == forwarders

    def test_a_forwarder_without_a_unit_runs_nevertheless(self, booted: Booted) -> None:
        """An operator restricted the unit too much. After the next restart, the forwarder is in a unit."""
        (before,) = booted.forwarders()

        with booted.changed("InaccessiblePaths=/run/flannel-forwarder.sock"):
            booted.system.run(["kill", before])
            forwarder = booted.wait_another_forwarder([before])

            booted.wait_logged(
                "Started the forwarder inside this service, so both stop together: systemd starts no"
            )
            assert "flanneld.service" in booted.cgroup(forwarder)

        third = booted.wait_another_forwarder([before, forwarder])
        booted.wait_in_unit(third, rf"/{FORWARDER_UNIT}$")

    def test_wrong_use_is_not_retried_forever(self, booted: Booted) -> None:
        good = booted.system.run(["cat", "/etc/default/flanneld"]).stdout
        booted.system.run(["tee", "-a", "/etc/default/flanneld"], text="FLANNELD_LOG_FORMAT=poem\n")

        booted.system.systemctl("restart", "flanneld", check=False)

        booted.wait(lambda: booted.system.show("flanneld", "ActiveState") == "failed", "flanneld gives up")
        booted.wait_logged("FLANNELD_LOG_FORMAT")
        assert ping(booted.elsewhere, booted.container).is_reached
        booted.system.run(["tee", "/etc/default/flanneld"], text=good)
        booted.system.systemctl("start", "flanneld")

    def test_a_forwarder_after_its_hand_over_leaves_no_unit(self, booted: Booted) -> None:
        """A change of the port causes a hand-over to another forwarder."""
        before = booted.forwarders()

        booted.network.put("config", '{"Network":"10.100.0.0/16","Backend":{"Type":"udp","Port":8286}}')

        forwarder = booted.wait_another_forwarder(before)
        booted.wait_in_unit(forwarder, FORWARDER_UNIT)
        (unit,) = re.findall(FORWARDER_UNIT, booted.cgroup(forwarder))[:1]
        booted.wait(lambda: booted.units() == [unit], "the unit of the old one is gone")


@pytest.fixture(scope="class")
def encrypted(booted: Booted) -> Iterator[str]:
    """Change to the backend wireguard, and yield the process ID of wireguard-go. Change back afterwards."""
    booted.network.put("config", '{"Network":"10.100.0.0/16","Backend":{"Type":"wireguard"}}')
    booted.wait(lambda: ping(booted.elsewhere, booted.container).is_reached, "packets flow")
    booted.wait(lambda: booted.backend() == "wireguard", "the backend is wireguard")
    (process,) = booted.wireguard_go() or pytest.skip("the kernel has WireGuard, so there is no wireguard-go")
    yield process
    booted.network.put("config", '{"Network":"10.100.0.0/16"}')
    booted.wait(lambda: booted.backend() == "udp", "the backend is udp")
    booted.wait(lambda: booted.units("wireguard") == [], "the unit of wireguard-go is gone")
    booted.wait(lambda: ping(booted.elsewhere, booted.container).is_reached, "packets flow")


class TestWireguardGo:
    def test_wireguard_go_has_a_unit_and_one_capability(self, booted: Booted, encrypted: str) -> None:
        (unit,) = booted.units("wireguard")
        command = ["systemd-analyze", "security", f"--threshold={WIREGUARD_EXPOSURE_MAX}", unit]
        exposure = booted.system.run(command, check=False)

        assert re.search(rf"/{WIREGUARD_UNIT}$", booted.cgroup(encrypted), re.MULTILINE)
        assert booted.rights(encrypted) == ("flanneld", NET_ADMIN)
        assert exposure.returncode == 0, exposure.stdout[-200:]

    @pytest.mark.parametrize("command", ["restart flanneld", "kill --signal=KILL flanneld"])
    def test_a_restart_of_flanneld_loses_no_ping(
        self,
        booted: Booted,
        encrypted: str,
        command: str,
        pinging: Callable[..., AbstractContextManager[Any]],
    ) -> None:
        """The kill ends all processes of the unit of flanneld."""
        pid = booted.main_pid

        with pinging(booted.elsewhere, booted.container) as pings:
            booted.system.systemctl(*command.split())
            booted.wait_another_daemon(pid)

        assert pings.lost == 0
        assert booted.wireguard_go() == [encrypted]

    def test_a_killed_wireguard_go_starts_again_in_a_unit(self, booted: Booted, encrypted: str) -> None:
        booted.system.run(["kill", "-9", encrypted])

        booted.wait(lambda: booted.wireguard_go() not in ([], [encrypted]), "another wireguard-go")
        booted.wait(lambda: ping(booted.elsewhere, booted.container).is_reached, "packets flow")
        (process,) = booted.wireguard_go()
        booted.wait_in_unit(process, WIREGUARD_UNIT)


class TestOtherPrograms:
    def test_networkd_does_not_touch_pyflannels_devices(self, booted: Booted) -> None:
        """A file of an operator lets networkd configure each device."""
        system = booted.system
        own = (DEPLOY / "network/10-flannel.network").read_text()
        system.run(["mkdir", "-p", "/run/systemd/network"])
        system.run(["tee", "/run/systemd/network/10-flannel.network"], text=own)
        system.run(["tee", "/run/systemd/network/20-each.network"], text=EACH_DEVICE)

        system.systemctl("start", "systemd-networkd")

        booted.wait(
            lambda: booted.networkd_action("docker0") not in ("", "unmanaged"), "docker0 is configured"
        )
        booted.wait(lambda: booted.networkd_action("flannel0") == "unmanaged", "flannel0 is unmanaged")
        system.systemctl("stop", "systemd-networkd")


class TestReboot:
    def test_the_host_gets_the_same_subnet(self, booted: Booted) -> None:
        """In this test, Docker reads its options from the file of mk-docker-opts."""
        before, system = booted.gateway(), booted.system
        system.power_off()
        booted.remove_links()
        write_file(
            system,
            "docker-by-options/docker.service.d/flannel.conf",
            f"{UNITS}/docker.service.d/flannel.conf",
        )
        write_file(
            system,
            "docker-by-options/flanneld.service.d/docker-options.conf",
            f"{UNITS}/flanneld.service.d/docker-options.conf",
        )

        system.boot()
        system.wait_up()

        assert booted.gateway() == before
        assert booted.bridge_address() == before
        options = system.run(["cat", "/etc/default/docker"]).stdout
        assert options == f'DOCKER_OPTS=" --bip={before} --ip-masq=true --mtu=1472"\n'
        assert ping(booted.elsewhere, booted.container).is_reached  # Docker has started the container again
        verified = system.run(["systemd-analyze", "verify", "flanneld.service", "docker.service"])
        assert (verified.stdout, verified.stderr) == ("", "")

    def test_at_shutdown_containers_end_before_the_data_path(self, booted: Booted) -> None:
        said = booted.system.run(["journalctl", "--boot=-1", "--output=cat", "_PID=1"]).stdout

        def end_of(unit: str) -> int:
            return max(found.start() for found in re.finditer(rf"^{unit}: Deactivated", said, re.MULTILINE))

        assert end_of(r"docker\.service") < end_of(r"flanneld\.service")
        assert end_of(r"docker\.service") < end_of(FORWARDER_UNIT)

    def test_a_host_boots_with_an_unreachable_store(self, booted: Booted) -> None:
        """The host knows its subnet and its peers, and Docker starts with this subnet."""
        before = booted.gateway()
        booted.system.power_off()
        booted.remove_links()
        booted.network.lab.router.run(["pkill", "--exact", "etcd"])

        booted.system.boot()
        booted.system.wait_up()

        assert booted.bridge_address() == booted.gateway() == before
        assert ping(booted.elsewhere, booted.container).is_reached
        booted.network.etcd.start()
        booted.wait(
            lambda: "waiting" not in booted.system.show("flanneld", "StatusText"), "the store is back"
        )


class TestCleanup:
    def test_a_cleaned_host_has_no_remains(self, booted: Booted) -> None:
        """After the cleanup, systemd does not start the stopped services."""
        said = booted.system.run(["flannelctl", "cleanup"]).stdout

        assert "systemctl disable flanneld.service" in said
        assert booted.system.show("flanneld", "ActiveState") == "inactive"
        assert booted.system.show("flanneld", "SubState") == "dead"
        assert booted.units() == []
        for path in (
            *("/run/flannel", "/run/flannel-forwarder.sock", "/run/flannel-wireguard.sock"),
            *("/var/lib/flannel", "/sys/class/net/flannel0"),
        ):
            assert booted.system.run(["test", "-e", path], check=False).returncode == 1, path
