"""The installed flannelctl with real stores."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from pyflannel.programs.flannelctl import run as run_here
from testlab.documents import read_document

FLANNELCTL = str(Path(sys.executable).with_name("flannelctl"))
CONFIG = '{"Network": "10.100.0.0/16"}'

Run = Callable[..., subprocess.CompletedProcess[str]]
Here = Callable[..., Any]
_numbers = count()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run flannelctl with separate directories, without a daemon and without variables of the caller."""

    def program(*arguments: str, text: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "FLANNELD_RUN_DIR": str(tmp_path / "run"),
            "FLANNELD_STATE_DIR": str(tmp_path / "state"),
            "FLANNELD_SUBNET_FILE": str(tmp_path / "run" / "subnet.env"),
            **variables,
        }
        done = subprocess.run(
            [FLANNELCTL, *arguments],
            input=text,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert "Traceback" not in done.stderr
        return done

    return program


@pytest.fixture
def here(capfd: pytest.CaptureFixture[str]) -> Here:
    """Run flannelctl in this process, which takes a tenth of the time, and return its document."""

    def program(*arguments: str) -> Any:
        capfd.readouterr()
        run_here([*arguments, "--json"])
        return read_document(arguments, capfd.readouterr().out)

    return program


@pytest.fixture(params=["etcd", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty store."""
    if request.param == "sqlite":
        return f"sqlite://{tmp_path}/leases.db"
    etcd = request.getfixturevalue("shared_etcd")
    return f"etcd://{etcd.endpoint}/flannelctl-test-{next(_numbers)}"


@pytest.fixture
def prefix() -> str:
    """A prefix in the shared etcd that only this test uses."""
    return f"/flannelctl-test-{next(_numbers)}"


def document(done: subprocess.CompletedProcess[str]) -> Any:
    return read_document(done.args, done.stdout)


def test_help_loads_few_libraries(run: Run) -> None:
    """Completion and help need few libraries. The libraries of a command are loaded when it runs."""
    done = run("--help", PYTHONPROFILEIMPORTTIME="1")

    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert {"click", "pyflannel.programs.flannelctl"} <= loaded
    assert loaded & {"asyncio", "google", "grpclib", "h11", "h2", "rich", "sqlite3", "ssl"} == set()


@pytest.mark.parametrize("command", ["config", "leases", "status", "cleanup", "lab"])
def test_the_help_of_a_command_begins_as_in_the_list(run: Run, command: str) -> None:
    listed = run("--help").stdout
    explained = run(command, "--help")

    assert explained.returncode == 0
    line = next(line for line in listed.splitlines() if line.strip().startswith(f"{command} "))
    assert line.split(maxsplit=1)[1] in explained.stdout


class TestConfig:
    def test_get_returns_the_written_config(self, run: Run, store: str) -> None:
        written = run("--store", store, "config", "set", CONFIG)
        read = run("--store", store, "config", "get")

        assert (written.returncode, written.stderr) == (0, "")
        assert written.stdout.endswith("\nwrote the network config: 10.100.0.0/16\n")
        assert read.stdout == CONFIG + "\n"

    def test_etcdctl_finds_the_written_config(self, run: Run, shared_etcd: Any, prefix: str) -> None:
        run("--store", f"etcd://{shared_etcd.endpoint}{prefix}", "config", "set", CONFIG)

        assert shared_etcd.ctl("get", "--print-value-only", f"{prefix}/config").stdout.strip() == CONFIG

    def test_a_config_is_read_from_a_file_and_from_standard_input(
        self, run: Run, store: str, tmp_path: Path
    ) -> None:
        file = tmp_path / "config.json"
        file.write_text('{"Network": "10.1.0.0/16"}')

        run("--store", store, "config", "set", str(file))
        from_file = run("--store", store, "config", "get").stdout
        run("--store", store, "config", "set", "-", text='{"Network": "10.2.0.0/16"}')
        from_input = run("--store", store, "config", "get").stdout

        assert from_file == '{"Network": "10.1.0.0/16"}\n'
        assert from_input == '{"Network": "10.2.0.0/16"}\n'

    @pytest.mark.parametrize(
        ("bad", "named"),
        [
            ("{", "JSON"),
            ("{}", "Network"),
            ('{"Network": "10.100.0.0/33"}', "10.100.0.0/33"),
            ('{"Network": "10.100.0.0/16", "SubnetLen": 8}', "SubnetLen"),
            ('{"Network": "10.100.0.0/16", "SubnetMin": "10.99.0.0"}', "10.99.0.0"),
        ],
    )
    def test_a_bad_config_is_reported_and_not_written(
        self, run: Run, store: str, bad: str, named: str
    ) -> None:
        run("--store", store, "config", "set", CONFIG)

        refused = run("--store", store, "config", "set", bad)

        assert (refused.returncode, refused.stdout) == (2, "")
        assert named in refused.stderr
        assert len(refused.stderr.splitlines()) == 2
        assert run("--store", store, "config", "get").stdout == CONFIG + "\n"

    def test_a_missing_config_is_not_ready(self, run: Run, store: str) -> None:
        done = run("--store", store, "config", "get")

        assert done.returncode == 3
        assert "flannelctl config set" in done.stderr

    def test_get_as_json_contains_the_computed_values(self, run: Run, store: str) -> None:
        run("--store", store, "config", "set", CONFIG)

        got = document(run("--store", store, "config", "get", "--json"))

        assert got["text"] == CONFIG
        assert got["config"]["SubnetMax"] == "10.100.255.0"
        assert got["error"] is None

    def test_get_as_json_contains_the_fault_of_a_bad_config(
        self, run: Run, shared_etcd: Any, prefix: str
    ) -> None:
        shared_etcd.ctl("put", f"{prefix}/config", "nonsense")

        got = document(run("--json", "--store", f"etcd://{shared_etcd.endpoint}{prefix}", "config", "get"))

        assert (got["text"], got["config"]) == ("nonsense", None)
        assert got["error"]

    def test_validate_prints_the_computed_values(self, run: Run) -> None:
        done = run("config", "validate", '{"Network": "10.100.0.0/16", "SubnetLen": 26}')

        computed = json.loads(done.stdout)

        assert computed["Network"] == "10.100.0.0/16"
        assert computed["SubnetMin"] == "10.100.0.64"
        assert computed["BackendType"] == "udp"

    @pytest.mark.parametrize("source", ["{}", "/nowhere/config.json", "-"])
    def test_validate_refuses_a_bad_config(self, run: Run, source: str) -> None:
        done = run("config", "validate", source)

        assert (done.returncode, done.stdout) == (2, "")
        assert len(done.stderr.splitlines()) == 2


class TestLeases:
    LEASE = (
        '{"PublicIP":"10.10.10.101","PublicIPv6":null,"BackendType":"vxlan",'
        '"Pyflannel":{"Owner":"5d0f","Host":"docker1","Port":8285}}'
    )
    RESERVED = '{"PublicIP":"192.168.50.102","PublicIPv6":null}'

    @pytest.fixture
    def network(self, shared_etcd: Any, prefix: str) -> str:
        """A network with a lease of an hour, a reservation, and keys that are neither."""
        lease = shared_etcd.ctl("lease", "grant", "3600").stdout.split()[1]
        shared_etcd.ctl("put", "--lease", lease, f"{prefix}/subnets/10.100.93.0-24", self.LEASE)
        shared_etcd.ctl("put", f"{prefix}/subnets/10.100.15.0-24", self.RESERVED)
        shared_etcd.ctl("put", f"{prefix}/subnets/nonsense", self.LEASE)
        shared_etcd.ctl("put", f"{prefix}/subnets/10.100.16.0-24", "nonsense")
        return f"etcd://{shared_etcd.endpoint}{prefix}"

    def test_leases_are_listed_with_their_expiry(self, run: Run, network: str) -> None:
        leases = document(run("--store", network, "leases", "--json"))["leases"]

        assert [lease["subnet"] for lease in leases] == ["10.100.15.0/24", "10.100.93.0/24"]
        reserved, leased = leases
        assert (reserved["is_reservation"], reserved["expires_in_s"]) == (True, None)
        assert 3500 < leased["expires_in_s"] <= 3600
        assert (leased["public_ip"], leased["backend_type"]) == ("10.10.10.101", "vxlan")
        assert (leased["owner"], leased["host_name"], leased["port"]) == ("5d0f", "docker1", 8285)

    def test_the_table_contains_the_same_values(self, run: Run, network: str) -> None:
        done = run("--store", network, "leases")

        headings, reserved, leased = done.stdout.splitlines()
        assert headings.split() == ["SUBNET", "HOST", "PUBLIC", "IP", "BACKEND", "EXPIRES"]
        assert reserved.split()[:4] == ["10.100.15.0/24", "-", "192.168.50.102", "udp"]
        assert leased.split()[:4] == ["10.100.93.0/24", "docker1", "10.10.10.101", "vxlan"]
        assert "reserved" in reserved
        assert "in 59 min" in leased or "in 1 h" in leased

    def test_keys_without_a_lease_are_reported_on_standard_error(self, run: Run, network: str) -> None:
        done = run("--store", network, "leases")

        assert done.returncode == 0
        assert "subnets/nonsense" in done.stderr
        assert "subnets/10.100.16.0-24" in done.stderr

    def test_the_variables_of_flanneld_name_the_store(self, run: Run, shared_etcd: Any, network: str) -> None:
        done = run(
            "leases",
            "--json",
            FLANNELD_ETCD_ENDPOINTS=f"http://{shared_etcd.endpoint}",
            FLANNELD_ETCD_PREFIX=network[network.index("/", 7) :],
        )

        assert len(document(done)["leases"]) == 2

    def test_without_leases_the_list_is_empty(self, run: Run, store: str) -> None:
        run("--store", store, "config", "set", CONFIG)

        assert document(run("--store", store, "leases", "--json")) == {"leases": []}

    def test_a_subnet_is_reserved_and_released(self, here: Here, store: str) -> None:
        here("--store", store, "config", "set", CONFIG)
        subnet = "10.100.5.0/24"

        made = here("--store", store, "leases", "reserve", subnet, "--public-ip=10.9.9.9")
        again = here("--store", store, "leases", "reserve", subnet)
        listed = here("--store", store, "leases")["leases"]
        gone = here("leases", "--store", store, "release", subnet)

        assert (made["was_written"], made["public_ip"]) == (True, "10.9.9.9")
        assert (again["was_written"], again["revision"]) == (False, made["revision"])
        assert [(one["subnet"], one["is_reservation"]) for one in listed] == [(subnet, True)]
        assert (gone["holder"], gone["was_reservation"]) == ("none", True)
        assert here("--store", store, "leases") == {"leases": []}
        history = here("--store", store, "leases", "history")
        assert [one["event"] for one in history["changes"]] == ["reserved", "removed"]
        assert history["is_complete"]
        versions = here("--store", store, "config", "history")["versions"]
        assert [one["text"] for one in versions] == [CONFIG]

    def test_the_history_begins_after_the_compaction(
        self, here: Here, shared_etcd: Any, network: str
    ) -> None:
        key = f"{network[network.index('/', 7) :]}/subnets/10.100.93.0-24"
        shared_etcd.ctl("put", key, self.LEASE)
        written = shared_etcd.ctl("put", key, self.LEASE.replace("vxlan", "host-gw"), "--write-out=json")
        revision = json.loads(written.stdout)["header"]["revision"]
        shared_etcd.ctl("compact", str(revision))
        shared_etcd.ctl("del", key)

        history = here("--store", network, "leases", "history")

        assert [(one["revision"], one["event"], one["subnet"]) for one in history["changes"][::2]] == [
            (revision - 4, "reserved", "10.100.15.0/24"),
            (revision + 1, "removed", "10.100.93.0/24"),
        ]
        assert (history["begin"], history["is_complete"]) == (revision + 1, True)

    def test_the_time_of_a_change_is_derived_from_the_age_of_its_lease(
        self, here: Here, network: str
    ) -> None:
        changes = here("--store", network, "leases", "history")["changes"]

        found = {one["subnet"]: one["not_after"] for one in changes}
        assert time.time() - 60 < found["10.100.93.0/24"] <= time.time()

    def test_a_subnet_without_history_is_reported(self, here: Here, network: str) -> None:
        error = here("--store", network, "leases", "history", "10.200.0.0/24")["error"]

        assert (error["code"], error["message"]) == (1, "the history contains no lease of 10.200.0.0/24")

    @pytest.mark.parametrize("verb", ["reserve", "release", "history"])
    def test_a_wrong_subnet_is_named(self, here: Here, network: str, verb: str) -> None:
        error = here("--store", network, "leases", verb, "10.100.5.7/24")["error"]

        assert error["code"] == 2
        assert "'10.100.5.7/24' is not a subnet: 10.100.5.7/24 has host bits set" in error["message"]


def test_a_network_is_created_and_removed(here: Here, store: str) -> None:
    blue = '{"Network": "10.101.0.0/16", "Backend": {"Type": "udp", "Port": 8286}}'
    here("--store", store, "config", "set", CONFIG)

    made = here("--store", store, "network", "create", "blue", blue)
    reserved = here("--store", f"{store}#blue", "leases", "reserve", "10.101.5.0/24", "--public-ip=10.9.9.9")
    kept = here("--store", store, "network", "rm", "blue")["error"]
    listed = here("--store", store, "network", "ls")["networks"]
    gone = here("--store", store, "network", "rm", "blue", "--force")

    assert (made["network"], reserved["was_written"], kept["code"]) == ("10.101.0.0/16", True, 1)
    assert [(one["name"], one["leases"], one["reservations"]) for one in listed] == [
        (None, 0, 0),
        ("blue", 1, 1),
    ]
    assert gone["removed_leases"] == 1
    assert len(here("--store", store, "network", "ls")["networks"]) == 1


class TestFailures:
    @pytest.mark.parametrize(
        "arguments",
        [
            ["--nonsense"],
            ["nonsense"],
            ["config", "nonsense"],
            ["config", "set"],
            ["events", "too", "many"],
            ["--store", "nonsense", "leases"],
            ["--store", "sqlite://relative", "leases"],
            ["--store", "etcd://", "config", "get"],
        ],
    )
    def test_wrong_use_is_one_line_and_a_remedy(self, run: Run, arguments: list[str]) -> None:
        done = run(*arguments)

        assert (done.returncode, done.stdout) == (2, "")
        message, hint = done.stderr.splitlines()
        assert message.startswith("flannelctl: ")
        assert hint.startswith("  ")

    def test_an_invalid_variable_is_wrong_use(self, run: Run) -> None:
        done = run("leases", FLANNELD_ETCD_ENDPOINTS="nonsense")

        assert done.returncode == 2
        assert "FLANNELD_ETCD_ENDPOINTS" in done.stderr

    def test_an_unreachable_store_fails_the_command(self, run: Run) -> None:
        done = run("--store", "etcd://127.0.0.1:9/prefix", "leases")

        assert (done.returncode, done.stdout) == (1, "")
        assert "127.0.0.1:9" in done.stderr
        assert len(done.stderr.splitlines()) == 2

    def test_a_selected_daemon_that_does_not_respond_is_not_ready(self, run: Run, tmp_path: Path) -> None:
        done = run("--socket", str(tmp_path / "missing.sock"), "leases")

        assert done.returncode == 3
        assert "missing.sock" in done.stderr
