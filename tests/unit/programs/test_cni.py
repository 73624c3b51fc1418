"""The CNI plugin with recorded delegates acts as the original, except for the differences named here."""

import io
import json
import os
import stat
import subprocess
import sys
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pyflannel.programs import cni
from pyflannel.wire.cni import NewAddress, new_addresses

SOURCE = Path(__file__).parents[3] / "src"
GOLDEN = json.loads((Path(__file__).parents[2] / "golden/cni-plugin.json").read_text())["cases"]

FAKE = """#!/bin/sh
name=${0##*/}
cat >"DIR/calls/$$.$name.stdin"
env >"DIR/calls/$$.$name.env"
mv "DIR/calls/$$.$name.stdin" "DIR/calls/$$.$name.conf"
case $(cat DIR/mode) in
ok) cat DIR/answer ;;
fail) printf '{"code": 101, "msg": "delegate says no", "details": "some details"}'; exit 1 ;;
silent-fail) exit 1 ;;
junk) echo hello ;;
stderr-fail) echo oops >&2; exit 3 ;;
crash) kill -SEGV $$ ;;
esac
"""

CLEARER = {
    "delegate string": 7,
    "delegate type number": 7,
    "delegate type null": 7,
    "delegate type with slash": 7,
    "delegate name": 7,
    "delegate name and ipam": 7,
    "ipam list": 7,
    "ipam routes bad": 7,
    "subnetFile missing": 11,
    "subnetFile number": 7,
    "subnet.env: empty file": 11,
    "subnet.env: no subnet": 11,
    "subnet.env: no mtu": 11,
    "subnet.env: bad network": 11,
    "subnet.env: bad subnet": 11,
    "subnet.env: mtu negative": 11,
    "subnet.env: networks with space": 11,
    "subnet.env: empty subnet value": 11,
    "subnet.env: line without =": 11,
    "delegate fails silently": 999,
    "DEL saved without type": 7,
}
"""Cases in which the original has an internal error (999, or 0, or a crash); pyflannel's code."""

DIFFERENT = {
    "subnet.env: export prefix": "the line is an assignment, also for a shell",
    "DEL delegate fails": "the saved file remains, so that the runtime can repeat the DEL",
    "DEL saved unknown type": "the same",
    "DEL saved without type": "the same",
    "DEL saved file garbage": "the delegate runs with the configuration computed again",
    "CHECK 1.0.0": "the delegate runs",
    "CHECK 1.0.0 never added": "the attachment is unknown",
    "CHECK 0.4.0 without subnet.env": "the attachment is unknown",
    "STATUS 1.1.0": "the delegate runs",
    "STATUS 1.1.0 without subnet.env": "an ADD would fail",
    "GC 1.1.0": "the delegate runs",
    "ADD without CNI_COMMAND": "the name of the version",
}
"""Cases in which this plugin acts otherwise than the original. Each case has a test below."""


class Host:
    """A directory with subnet.env, saved files and recorded delegates."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        self.data = directory / "data"
        self._monkeypatch = monkeypatch
        for name in ("bin", "calls"):
            (directory / name).mkdir()
        self.install("bridge", "ipvlan", "ptp", "macvlan")
        self.answer({"cniVersion": "1.0.0", "ips": []})
        self.mode = "ok"

    def install(self, *delegates: str) -> None:
        for name in delegates:
            program = self.directory / "bin" / name
            program.write_text(FAKE.replace("DIR", str(self.directory)))
            program.chmod(0o755)

    def subnet_env(self, text: str | None) -> None:
        if text is not None:
            (self.directory / "subnet.env").write_bytes(text.encode())

    def answer(self, document: object) -> None:
        (self.directory / "answer").write_text(json.dumps(document))

    def run(self, stdin: str, environment: dict[str, str]) -> Any:
        (self.directory / "mode").write_text(self.mode)
        stdout, stderr = io.StringIO(), io.StringIO()
        given = io.TextIOWrapper(io.BytesIO(stdin.replace("DIR", str(self.directory)).encode()))
        with self._monkeypatch.context() as patch:
            for name in [name for name in os.environ if name.startswith("CNI_")]:
                patch.delenv(name)
            for name, value in environment.items():
                patch.setenv(name, value.replace("DIR", str(self.directory)))
            patch.setattr(sys, "stdin", given)
            patch.setattr(sys, "stdout", stdout)
            patch.setattr(sys, "stderr", stderr)
            status = cni.main()
        calls = sorted((self.directory / "calls").glob("*.conf"), key=lambda path: path.stat().st_mtime_ns)
        seen = []
        for call in calls:
            lines = call.with_suffix(".env").read_text().splitlines()
            own = dict(line.split("=", 1) for line in lines if line.startswith("CNI_"))
            seen.append(SimpleNamespace(delegate=call.name.split(".")[1], conf=call.read_text(), env=own))
            call.unlink()
        return SimpleNamespace(status=status, stdout=stdout.getvalue(), stderr=stderr.getvalue(), calls=seen)

    def command(self, command: str, **keys: object) -> Any:
        container, interface = keys.pop("container", "cid1"), keys.pop("interface", "eth0")
        environment = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": str(container),
            "CNI_IFNAME": str(interface),
            "CNI_NETNS": "/var/run/netns/x",
            "CNI_PATH": "DIR/bin",
        }
        conf = {"name": "n1", "cniVersion": "1.1.0", "type": "flannel", "subnetFile": "DIR/subnet.env"}
        return self.run(json.dumps({**conf, "dataDir": "DIR/data", **keys}), environment)

    def saved(self) -> dict[str, str]:
        if not self.data.is_dir():
            return {}
        return {path.name: path.read_text() for path in self.data.iterdir() if not path.is_symlink()}


SUBNET_ENV = (
    "FLANNEL_NETWORK=10.77.0.0/16\nFLANNEL_SUBNET=10.77.9.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
)


@pytest.fixture
def empty_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, monkeypatch)


@pytest.fixture
def host(empty_host: Host) -> Host:
    empty_host.subnet_env(SUBNET_ENV)
    return empty_host


@pytest.mark.parametrize(
    "case", [case for case in GOLDEN if case["name"] not in DIFFERENT], ids=lambda case: case["name"]
)
def test_the_plugin_acts_as_the_original(empty_host: Host, case: dict[str, Any]) -> None:
    host = empty_host
    host.subnet_env(case["subnet_env"])
    if not case["delegates_present"]:
        (host.directory / "bin/bridge").unlink()
    for name, text in (case.get("data_dir_before") or {}).items():
        host.data.mkdir(exist_ok=True)
        (host.data / name).write_text(text)
    for step in case["steps"]:
        host.mode = step["delegate_mode"]
        if step["exit"] == 0 and step["stdout"]:
            host.answer(json.loads(step["stdout"]))
        done = host.run(step["stdin"], step["env"])
        assert done.status == min(step["exit"], 1), done.stdout
        assert [(call.delegate, call.conf) for call in done.calls] == [
            (call["delegate"], call["stdin"].replace("DIR", str(host.directory)))
            for call in step["delegate_calls"]
        ]
        for call, wanted in zip(done.calls, step["delegate_calls"], strict=True):
            assert call.env == {
                name: value.replace("DIR", str(host.directory)) for name, value in wanted["env"].items()
            }
        if step["exit"] == 0:
            assert done.stdout == step["stdout"]
            wanted_files = step["data_dir"].get("files", {}) if step["data_dir"] else {}
            if "nested" not in case["name"]:
                assert host.saved() == {
                    name: file["content"].replace("DIR", str(host.directory))
                    for name, file in wanted_files.items()
                }
        else:
            _check_error(case["name"], step, json.loads(done.stdout), host)


def _check_error(name: str, step: dict[str, Any], error: dict[str, Any], host: Host) -> None:
    assert error["msg"]
    assert error.get("details")
    if name in CLEARER:
        assert error["code"] == CLEARER[name]
        return
    wanted = json.loads(step["stdout"])
    assert error["code"] == wanted["code"]
    assert wanted["msg"].split(":")[0] in error["msg"].replace(str(host.directory), "DIR")


def test_the_saved_file_is_readable_only_by_root(host: Host) -> None:
    host.command("ADD")
    assert stat.S_IMODE(host.data.stat().st_mode) == 0o700
    assert stat.S_IMODE((host.data / "cid1").stat().st_mode) == 0o600


def test_two_interfaces_of_one_container_have_separate_files(host: Host) -> None:
    host.command("ADD")
    host.command("ADD", interface="net1", name="n2")
    done = host.command("DEL", interface="net1", name="n2")
    assert [json.loads(call.conf)["name"] for call in done.calls] == ["n2"]
    assert host.command("DEL", interface="net1", name="n2").calls == []
    done = host.command("DEL")
    assert [json.loads(call.conf)["name"] for call in done.calls] == ["n1"]
    assert list(host.data.iterdir()) == []


def test_the_original_deletes_the_first_interface_and_the_second_remains(host: Host) -> None:
    host.command("ADD")
    host.command("ADD", interface="net1", name="n2")
    (host.data / "cid1").unlink()  # as the original does after a DEL
    assert [json.loads(call.conf)["name"] for call in host.command("DEL", interface="net1").calls] == ["n2"]
    assert host.command("DEL").calls == []


def test_a_container_of_the_original_is_deleted_after_a_further_interface_was_added(host: Host) -> None:
    host.data.mkdir()
    (host.data / "cid1").write_text('{"name":"n1","type":"ptp"}')
    host.command("ADD", interface="net1", name="n2")
    assert [call.delegate for call in host.command("DEL").calls] == ["ptp"]
    assert [call.delegate for call in host.command("DEL", interface="net1").calls] == ["bridge"]
    assert list(host.data.iterdir()) == []


def test_an_add_that_is_repeated_keeps_one_file(host: Host) -> None:
    host.command("ADD")
    host.command("ADD", delegate={"mtu": 1300})
    assert [json.loads(text)["mtu"] for text in host.saved().values()] == [1300]
    assert len(host.command("DEL").calls) == 1
    assert list(host.data.iterdir()) == []


@pytest.mark.parametrize("mode", ["fail", "silent-fail", "stderr-fail"])
def test_a_delete_that_fails_can_be_repeated(host: Host, mode: str) -> None:
    host.command("ADD")
    host.mode = mode
    assert host.command("DEL").status == 1
    host.mode = "ok"
    assert len(host.command("DEL").calls) == 1
    assert host.command("DEL").calls == []


def test_the_text_of_a_delegate_is_in_the_error(host: Host) -> None:
    host.mode = "stderr-fail"
    error = json.loads(host.command("ADD").stdout)
    assert error["msg"].startswith("failed to delegate add: netplugin failed: ")
    assert error["msg"].endswith("ended with status 3: oops")


def test_a_delegate_that_crashes_is_named_and_can_be_deleted(host: Host) -> None:
    host.mode = "crash"
    error = json.loads(host.command("ADD").stdout)
    host.mode = "ok"
    deleted = host.command("DEL")
    assert error["code"] == 999
    assert error["msg"].endswith("/bin/bridge was ended by signal 11: no error message")
    assert [call.env["CNI_COMMAND"] for call in deleted.calls] == ["DEL"]
    assert list(host.data.iterdir()) == []


def test_the_plugin_starts_with_few_modules() -> None:
    """Each start of a container loads the modules of the plugin."""
    show = "import sys, pyflannel.programs.cni; print(*sys.modules)"
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(SOURCE)!r}); {show}"]
    shown = subprocess.run([*command[:1], "-IS", *command[1:]], capture_output=True, text=True, check=True)

    slow = {"asyncio", "dataclasses", "inspect", "logging", "msgspec", "pathlib", "socket", "subprocess"}
    assert slow & set(shown.stdout.split()) == set()


def test_the_addresses_of_a_result_are_found_with_their_mac_address_and_the_links_of_the_host() -> None:
    interfaces = [{"name": "cni0"}, {"name": "eth0", "mac": "02:42:0a:4d:09:02", "sandbox": "/run/netns/x"}]
    ips = [{"address": "10.77.9.2/24", "interface": 1}, {"address": "fd00::2/64"}]

    found = new_addresses(json.dumps({"interfaces": interfaces, "ips": ips}))

    mac = bytes.fromhex("02420a4d0902")
    assert found == [
        NewAddress(IPv4Address("10.77.9.2"), mac, ("cni0",)),
        NewAddress(IPv6Address("fd00::2"), b"", ("cni0",)),
    ]


@pytest.mark.parametrize(
    "result",
    [
        "[]",
        "{}",
        '{"ip4": {"ip": "10.77.9.2/24"}}',
        '{"ips": [{"address": "10.77.9.2/24", "interface": 1}]}',
        '{"ips": [{"address": 7}]}',
        '{"ips": [7], "interfaces": 7}',
        '{"ips": [{"address": "nowhere"}], "interfaces": [{}]}',
        '{"ips": [{"address": "10.77.9.2/24", "interface": 0}], "interfaces": [{"name": "a", "mac": "zz"}]}',
    ],
)
def test_a_result_of_another_form_has_no_addresses(result: str) -> None:
    assert new_addresses(result) == []


def test_an_add_without_its_delegate_saves_nothing(host: Host) -> None:
    """If a file were saved, the DEL that follows would fail as long as the delegate is missing."""
    (host.directory / "bin/bridge").unlink()
    error = json.loads(host.command("ADD").stdout)
    assert error["msg"].startswith('failed to delegate add: failed to find plugin "bridge" in path [')
    assert "containernetworking-plugins" in error["details"]
    assert host.saved() == {}
    assert host.command("DEL").status == 0


def test_a_damaged_saved_file_is_replaced_by_the_present_configuration(host: Host) -> None:
    host.data.mkdir()
    (host.data / "cid1").write_text("garbage")
    done = host.command("DEL")
    assert done.status == 0
    assert "damaged" in done.stderr
    assert [json.loads(call.conf)["mtu"] for call in done.calls] == [1450]
    assert list(host.data.iterdir()) == []


def test_a_damaged_saved_file_without_subnet_env_does_not_block_the_delete(empty_host: Host) -> None:
    empty_host.data.mkdir()
    (empty_host.data / "cid1").write_text("garbage")
    assert (empty_host.command("DEL").status, list(empty_host.data.iterdir())) == (0, [])


@pytest.mark.parametrize("text", ["{}", '{"type":"nosuch"}', '{"type":"../bridge"}'])
def test_a_saved_file_whose_delegate_cannot_run_is_kept(host: Host, text: str) -> None:
    host.data.mkdir()
    (host.data / "cid1").write_text(text)
    assert host.command("DEL").status == (0 if text == "{}" else 1)
    assert bool(list(host.data.iterdir())) == (text != "{}")


def test_check_runs_the_delegate_with_the_previous_result(host: Host) -> None:
    host.command("ADD")
    done = host.command("CHECK", prevResult={"ips": [{"address": "10.77.9.2/24"}]})
    assert [call.env["CNI_COMMAND"] for call in done.calls] == ["CHECK"]
    assert json.loads(done.calls[0].conf)["prevResult"] == {"ips": [{"address": "10.77.9.2/24"}]}
    assert done.stdout == ""


def test_check_refuses_an_unknown_attachment(host: Host) -> None:
    error = json.loads(host.command("CHECK").stdout)
    assert error["code"] == 3
    assert "cid1" in error["msg"]


def test_check_refuses_a_container_of_another_subnet(host: Host) -> None:
    host.command("ADD")
    host.subnet_env(SUBNET_ENV.replace("10.77.9.1", "10.77.8.1"))
    error = json.loads(host.command("CHECK").stdout)
    assert "subnet" in error["msg"]


def test_check_reports_the_error_of_the_delegate(host: Host) -> None:
    host.command("ADD")
    host.mode = "fail"
    assert json.loads(host.command("CHECK").stdout)["code"] == 101


@pytest.mark.parametrize(
    ("command", "version"), [("CHECK", "0.3.1"), ("STATUS", "1.0.0"), ("GC", "1.0.0"), ("GC", "")]
)
def test_a_command_that_the_version_lacks_is_refused(host: Host, command: str, version: str) -> None:
    error = json.loads(host.command(command, cniVersion=version).stdout)
    assert error["code"] == 1
    assert command in error["msg"]


def test_status_succeeds_when_an_add_can_succeed(host: Host) -> None:
    done = host.command("STATUS")
    assert (done.status, done.stdout) == (0, "")
    assert [call.env["CNI_COMMAND"] for call in done.calls] == ["STATUS"]


def test_status_without_subnet_env_names_the_reason(empty_host: Host) -> None:
    error = json.loads(empty_host.command("STATUS").stdout)
    assert error["code"] == 50
    assert "subnet.env" in error["msg"]
    assert "flanneld does not run on this host" in error["details"]


def test_garbage_collection_deletes_attachments_that_do_not_exist(host: Host) -> None:
    for number in range(4):
        host.command("ADD", container=f"c{number}")
    host.command("ADD", container="c0", interface="net1")
    host.command("ADD", container="other", name="n2")
    (host.data / "old1").write_text('{"name":"n1","type":"bridge"}')
    (host.data / "old2").write_text('{"name":"n1","type":"bridge"}')
    valid = [{"containerID": name, "ifname": "eth0"} for name in ("c0", "c3", "old1")]
    done = host.command("GC", **{"cni.dev/valid-attachments": valid})
    assert (done.status, done.stdout) == (0, "")
    deleted = [
        (call.env["CNI_CONTAINERID"], call.env["CNI_IFNAME"])
        for call in done.calls
        if call.env["CNI_COMMAND"] == "DEL"
    ]
    assert sorted(deleted) == [("c0", "net1"), ("c1", "eth0"), ("c2", "eth0"), ("old2", "eth0")]
    assert sorted(host.saved()) == ["c0", "c3", "old1", "other"]
    [collected] = [call for call in done.calls if call.env["CNI_COMMAND"] == "GC"]
    assert json.loads(collected.conf)["cni.dev/valid-attachments"] == valid


def test_garbage_collection_accepts_the_former_name_of_its_key(host: Host) -> None:
    host.command("ADD")
    done = host.command("GC", **{"cni.dev/attachments": [{"containerID": "cid1", "ifname": "eth0"}]})
    assert [call.env["CNI_COMMAND"] for call in done.calls] == ["GC"]
    assert "cid1" in host.saved()


def test_garbage_collection_continues_after_a_failure_and_reports_the_failure(host: Host) -> None:
    host.command("ADD", container="c1", delegate={"type": "ptp"})
    host.command("ADD", container="c2")
    (host.directory / "bin/ptp").unlink()
    done = host.command("GC", **{"cni.dev/valid-attachments": []})
    error = json.loads(done.stdout)
    assert "c1" in error["msg"]
    assert list(host.saved()) == ["c1"]


def test_the_network_namespace_of_the_host_is_refused(host: Host) -> None:
    environment = {
        "CNI_CONTAINERID": "cid1",
        "CNI_IFNAME": "eth0",
        "CNI_NETNS": "/proc/self/ns/net",
        "CNI_PATH": "DIR/bin",
    }
    for command in ("ADD", "DEL"):
        done = host.run('{"name": "n1", "cniVersion": "1.0.0"}', {**environment, "CNI_COMMAND": command})
        assert json.loads(done.stdout)["code"] == 4
        assert done.calls == []


def test_without_a_command_the_plugin_prints_its_versions(host: Host) -> None:
    done = host.run("", {})
    assert (done.status, done.stdout) == (0, "")
    assert "1.1.0" in done.stderr


def test_an_export_in_subnet_env_is_read(empty_host: Host) -> None:
    empty_host.subnet_env("export " + SUBNET_ENV)
    assert empty_host.command("ADD").status == 0


def test_a_divided_subnet_gives_the_part_of_cni_to_the_delegate(host: Host) -> None:
    host.subnet_env(SUBNET_ENV + "FLANNEL_DOCKER0_SUBNET=10.77.9.1/27\nFLANNEL_CNI_SUBNET=10.77.9.33/27\n")

    done = host.command("ADD")

    assert json.loads(done.calls[0].conf)["ipam"]["ranges"] == [[{"subnet": "10.77.9.32/27"}]]


def test_a_divided_ipv6_subnet_gives_the_part_of_cni_to_the_delegate(host: Host) -> None:
    ipv6 = "FLANNEL_IPV6_NETWORK=fd00:5::/48\nFLANNEL_IPV6_SUBNET=fd00:5:0:34::1/64\n"
    host.subnet_env(SUBNET_ENV + ipv6 + "FLANNEL_IPV6_CNI_SUBNET=fd00:5:0:34:2000::1/67\n")

    done = host.command("ADD")

    ranges = json.loads(done.calls[0].conf)["ipam"]["ranges"]
    assert ranges[1] == [{"subnet": "fd00:5:0:34:2000::/67"}]


def test_a_subnet_of_ipv6_alone_is_the_range_of_the_delegate(host: Host) -> None:
    host.subnet_env(
        "FLANNEL_IPV6_NETWORK=fd00:5::/48\nFLANNEL_IPV6_SUBNET=fd00:5:0:34::1/64\n"
        "FLANNEL_MTU=1430\nFLANNEL_IPMASQ=true\n"
    )

    done = host.command("ADD")

    delegate = json.loads(done.calls[0].conf)
    assert delegate["ipam"]["ranges"] == [[{"subnet": "fd00:5:0:34::/64"}]]
    assert delegate["ipam"]["routes"] == [{"dst": "fd00:5::/48"}]
    assert (delegate["mtu"], delegate["ipMasq"]) == (1430, False)
