"""The wheel contains all files that a host needs, with the content of the source."""

import shutil
import zipfile
from pathlib import Path

import pytest

from pyflannel import VERSION
from pyflannel.programs.flannelctl import COMMANDS

ROOT = Path(__file__).parents[2]
DEPLOY, PROGRAMS = ROOT / "deploy", "pyflannel/kernel/bpf/fastpath.bpf.o"
SHARE = f"pyflannel-{VERSION}.data/data/share"
COMPLETION = {
    "bash-completion/completions/{}": "{}.bash",
    "zsh/site-functions/_{}": "_{}",
    "fish/vendor_completions.d/{}.fish": "{}.fish",
}

pytestmark = [
    pytest.mark.skipif(shutil.which("help2man") is None, reason="no help2man"),
    pytest.mark.timeout(3600),
]


def needed_files() -> dict[str, Path]:
    """The path in the wheel of each file that a host needs, and its source."""
    needed = {PROGRAMS: ROOT / "src" / PROGRAMS}
    for name in ("systemd", "prometheus"):
        for path in filter(Path.is_file, (DEPLOY / name).rglob("*")):
            needed[f"{SHARE}/pyflannel/{path.relative_to(DEPLOY)}"] = path
    for to, source in COMPLETION.items():
        for program in ("flanneld", "flannelctl"):
            needed[f"{SHARE}/{to.format(program)}"] = DEPLOY / "completion" / source.format(program)
    return needed


def test_the_wheel_contains_units_completion_alert_rules_and_programs_of_the_fast_path(dist: Path) -> None:
    (built,) = dist.glob("pyflannel-*.whl")
    needed = needed_files()

    with zipfile.ZipFile(built) as wheel:
        assert needed.keys() - {*wheel.namelist()} == set()
        assert [name for name, path in needed.items() if wheel.read(name) != path.read_bytes()] == []


def test_the_wheel_contains_a_man_page_of_each_program_and_command(dist: Path) -> None:
    (built,) = dist.glob("pyflannel-*.whl")
    documented = {"flanneld", "flannelctl", "mk-docker-opts", *(f"flannelctl-{verb}" for verb in COMMANDS)}

    with zipfile.ZipFile(built) as wheel:
        pages = {name for name in wheel.namelist() if name.startswith(f"{SHARE}/man/")}

    assert pages == {f"{SHARE}/man/man8/{name}.8" for name in documented}
