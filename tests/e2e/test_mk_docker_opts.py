"""The installed mk-docker-opts writes the same files as flannel's script, and never executes its input."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyflannel.errors import WireError
from pyflannel.wire.subnet_env import parse_assignments

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/mk-docker-opts.json").read_text())["cases"]
INSTALLED = Path(sys.executable).with_name("mk-docker-opts.sh")
SUBNET_ENV = "FLANNEL_SUBNET=10.77.9.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n"
COMBINED = 'DOCKER_OPTS=" --bip=10.77.9.1/24 --ip-masq=true --mtu=1472"\n'
DEADLINE_S = 60

# Each case has its own /run and network. The output in /run is copied to the working directory.
SANDBOX = """
set -e
mount -t tmpfs tmpfs /run
mkdir /run/flannel
if [ -e default_input ]; then cp default_input /run/flannel/subnet.env; fi
ip link add d0 type veth peer name d1
ip addr add 192.168.50.7/24 dev d0
ip link set d0 up
ip link set d1 up
while read -r route; do ip route add $route; done < routes
set +e
"$@"
status=$?
if [ -e /run/docker_opts.env ]; then cp /run/docker_opts.env default_output; fi
exit $status
"""

INDIVIDUAL = """\
DOCKER_OPT_BIP="--bip=10.77.9.1/24"
DOCKER_OPT_IPMASQ="--ip-masq=true"
DOCKER_OPT_MTU="--mtu=1472"
"""
HAS_ROUTE = "Your routing table already contains the subnet: 10.77.9.0/24 via 192.168.50.9 dev d0 \n"
UNWRITABLE = {"stderr": "./no/such/dir/out.env: No such file or directory\n", "exit": 2}


def refused(part: str) -> dict[str, Any]:
    """Return the expected differences for input that needs a shell."""
    cause = f"./subnet.env: line 1: {part} needs a shell, but no shell executes the file"
    hint = "Write assignments NAME=value. Write quotes around special characters of a shell."
    return {"output": None, "stderr": f"{cause}. {hint}\n", "exit": 2}


def missing(path: str) -> dict[str, Any]:
    """Return the expected differences for missing input."""
    cause = f"warning: {path} does not exist or is not a file, so Docker gets no subnet from it."
    return {"stderr": f"{cause} Start flanneld first.\n"}


# Differences from the original: number of the case, reason, changed values.
DIFFERENCES: dict[str, tuple[str, dict[str, Any]]] = {
    "046": ("arithmetic needs a shell", refused("an expansion")),
    "047": (
        "a command needs a shell; a file with one is refused rather than half understood",
        refused("the command 'FLANNEL_MTU'"),
    ),
    "055": ("the message is the shell's own", refused("'('")),
    "056": ("a command needs a shell: the file cannot end the program", refused("the command 'exit'")),
    "074": ("only the rewrite warns of a missing input", missing("./nothere")),
    "077": ("only the rewrite warns of a missing input", missing("./subnet.env")),
    "079": ("the messages are the shell's own", UNWRITABLE),
    "080": ("the messages are the shell's own; nothing written is never a success", UNWRITABLE),
    "082": ("the messages are the shell's own; nothing written is never a success", UNWRITABLE),
    "083": (
        "only a shell splits a file name into words",
        {"output": INDIVIDUAL + COMBINED, "stderr": "", "exit": 0},
    ),
    "085": (
        "0.6.2 did not look at routes; the newer releases do",
        {"stderr": HAS_ROUTE, "exit": 1},
    ),
    "091": ("110.7.9.0/24 is not 10.7.9.0/24", {"stderr": "", "exit": 0}),
    "092": ("the message is the shell's own", {"stderr": ""}),
    "095": ("only bash's dump of variables has the usage text in it", {"output": COMBINED}),
}


def run(
    directory: Path, *arguments: str, before: tuple[str, ...] = (), **more: Any
) -> subprocess.CompletedProcess[str]:
    """Run the installed program in `directory`, by a path of the same form as in the golden cases."""
    program = directory / "mk-docker-opts.sh"
    if not program.exists():
        program.symlink_to(INSTALLED)
    return subprocess.run(
        [*before, "./mk-docker-opts.sh", *arguments],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        **more,
    )


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["id"])
def test_output_and_exit_status_are_those_of_the_original(case: dict[str, Any], tmp_path: Path) -> None:
    _, changes = DIFFERENCES.get(case["id"].removeprefix("mk-docker-opts-"), ("", {}))
    expected = {"default_output": None, **case, **changes}
    if case["input"] is not None:
        (tmp_path / case.get("input_name", "subnet.env")).write_bytes(case["input"].encode())
    if case.get("default_input") is not None:
        (tmp_path / "default_input").write_text(case["default_input"])
    if case.get("output_before") is not None:
        (tmp_path / "out.env").write_text(case["output_before"])
    (tmp_path / "routes").write_text("".join(f"{route}\n" for route in case.get("routes", ())))
    path = "/nowhere" if case.get("ip_command_missing") else os.environ["PATH"]
    environment = [f"{name}={value}" for name, value in case.get("env", {}).items()]

    done = run(
        tmp_path,
        *case["args"],
        before=(
            *("unshare", "--mount", "--net", "sh", "-c", SANDBOX, "sh"),
            *("env", "-i", f"PATH={path}", *environment),
        ),
    )

    assert _text(tmp_path / "out.env") == expected["output"]
    assert _text(tmp_path / "default_output") == expected["default_output"]
    assert done.stdout == expected["stdout"]
    assert done.stderr == expected["stderr"]
    assert done.returncode == expected["exit"]


def test_a_file_of_another_user_gives_no_other_options(tmp_path: Path) -> None:
    """Docker runs as root, and the user of flanneld writes subnet.env."""
    source = tmp_path / "subnet.env"
    lines = "FLANNEL_SUBNET=10.1.9.1/24\nFLANNEL_MTU=1472\nDOCKER_OPT_X=--insecure\nDOCKER_OPTS=--insecure\n"
    source.write_text(lines)
    os.chown(source, 65534, 65534)

    assert run(tmp_path, "-c", "-f", "./subnet.env", "-d", "./out.env").returncode == 0
    assert (tmp_path / "out.env").read_text() == 'DOCKER_OPTS=" --bip=10.1.9.1/24 --mtu=1472"\n'

    source.write_text(lines + "FLANNEL_IPV6_SUBNET=fd00::1/64\n")
    assert run(tmp_path, "-c", "-f", "./subnet.env", "-d", "./out.env").returncode == 0
    assert "--fixed-cidr-v6=fd00::/64 --ipv6" in (tmp_path / "out.env").read_text()

    source.write_text(lines.replace("1472", '"1472 --insecure"'))
    done = run(tmp_path, "-c", "-f", "./subnet.env", "-d", "./out.env")
    assert done.returncode == 2
    assert "FLANNEL_MTU is '1472 --insecure'" in done.stderr


@pytest.mark.parametrize("path", ["run/subnet.env", "run/networks/blue.env"])
def test_a_link_of_another_user_gives_no_other_options(path: str, tmp_path: Path) -> None:
    """The user of flanneld can write a file of root: /sys/class/net/flannel.1/ifalias."""
    source, chosen = tmp_path / path, tmp_path / "sys/flannel.1"
    chosen.mkdir(parents=True)
    (chosen / source.name).write_text("FLANNEL_MTU=1472\nDOCKER_OPT_X=--insecure\n")
    (tmp_path / "run").mkdir()
    os.chown(tmp_path / "run", 65534, 65534)
    if source.parent.name == "networks":
        source.parent.symlink_to(chosen)
    else:
        source.symlink_to(chosen / source.name)

    assert run(tmp_path, "-c", "-f", str(source), "-d", "./out.env").returncode == 0
    assert (tmp_path / "out.env").read_text() == 'DOCKER_OPTS=" --mtu=1472"\n'


def test_the_input_is_not_executed(tmp_path: Path) -> None:
    (tmp_path / "subnet.env").write_text("FLANNEL_MTU=$(touch executed; echo 1472)\n")

    done = run(tmp_path, "-f", "./subnet.env", "-d", "./out.env")

    assert done.returncode == 2
    assert {path.name for path in tmp_path.iterdir()} == {"subnet.env", "mk-docker-opts.sh"}


@given(st.text("AB=1 \t\n'\"\\$#;x~*\r", max_size=16))
@settings(max_examples=150, deadline=None)
def test_a_shell_reads_the_same_values_from_an_accepted_file(text: str) -> None:
    try:
        assigned = parse_assignments(text)
    except WireError:
        return
    expression = "".join(f'printf "%s\\0" "${{{name}}}";' for name in assigned)

    done = subprocess.run(
        ["dash", "-c", f"{text}\n{expression}"], env={}, capture_output=True, check=True, timeout=DEADLINE_S
    )

    assert done.stdout == b"".join(f"{value}\0".encode() for value in assigned.values())


def test_the_output_is_replaced_as_a_whole_and_keeps_mode_and_link(tmp_path: Path) -> None:
    (tmp_path / "subnet.env").write_text(SUBNET_ENV)
    real = tmp_path / "etc" / "docker"
    real.parent.mkdir()
    real.write_text("old\n")
    real.chmod(0o640)
    os.chown(real, 1, 1)
    (tmp_path / "out.env").symlink_to(real)

    with real.open() as reader:
        done = run(tmp_path, "-f", "./subnet.env", "-d", "./out.env", "-c")

        assert reader.read() == "old\n"
    found = real.stat()
    assert (done.returncode, done.stderr) == (0, "")
    assert real.read_text() == COMBINED
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o640, 1, 1)
    assert (tmp_path / "out.env").is_symlink()
    assert os.listdir(real.parent) == ["docker"]


def test_a_new_output_has_the_mode_that_the_umask_allows(tmp_path: Path) -> None:
    (tmp_path / "subnet.env").write_text(SUBNET_ENV)

    run(tmp_path, "-f", "./subnet.env", "-d", "./out.env", umask=0o027)

    assert stat.S_IMODE((tmp_path / "out.env").stat().st_mode) == 0o640


@pytest.mark.parametrize("path", ["/dev/stdout", "/proc/self/fd/1"])
def test_an_open_descriptor_is_written_in_place(tmp_path: Path, path: str) -> None:
    (tmp_path / "subnet.env").write_text(SUBNET_ENV)

    to_pipe = run(tmp_path, "-f", "./subnet.env", "-d", path, "-c")
    with (tmp_path / "out.env").open("w+") as file:
        subprocess.run(
            ["./mk-docker-opts.sh", "-f", "./subnet.env", "-d", path, "-c"],
            cwd=tmp_path,
            stdout=file,
            check=True,
            timeout=DEADLINE_S,
        )

        assert file.read() == COMBINED
    assert to_pipe.stdout == COMBINED


def test_a_file_mounted_by_itself_is_written_in_place(tmp_path: Path) -> None:
    (tmp_path / "subnet.env").write_text(SUBNET_ENV)
    (tmp_path / "real.env").write_text("old\n")
    (tmp_path / "out.env").touch()
    script = 'mount --bind real.env out.env && "$@"'

    done = run(
        tmp_path,
        *("-f", "./subnet.env", "-d", "./out.env", "-c"),
        before=("unshare", "--mount", "sh", "-c", script, "sh"),
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "real.env").read_text() == COMBINED


def test_a_full_disk_leaves_the_old_output_unchanged(tmp_path: Path) -> None:
    (tmp_path / "subnet.env").write_text(SUBNET_ENV)
    (tmp_path / "full").mkdir()
    script = """
        mount -t tmpfs -o size=8k tmpfs full && echo old > full/out.env
        cat /dev/zero > full/filling 2> /dev/null
        "$@"
        status=$?
        ls -A full; cat full/out.env
        exit $status
    """

    done = run(
        tmp_path,
        *("-f", "./subnet.env", "-d", "./full/out.env", "-c"),
        before=("unshare", "--mount", "sh", "-c", script, "sh"),
    )

    assert done.returncode == 2
    assert done.stderr == "./full/out.env: No space left on device\n"
    assert done.stdout == "filling\nout.env\nold\n"


def _text(path: Path) -> str | None:
    return path.read_bytes().decode() if path.exists() else None
