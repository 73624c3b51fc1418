"""The list of flags equals that of the original, of the help and of the reference."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from pyflannel.assembly.flanneld_flags import FLAGS, LATER_FLAGS
from pyflannel.assembly.options import (
    FlanneldOptions,
    RequestedText,
    parse_flanneld,
)
from pyflannel.errors import UsageError
from pyflannel.wire.go_flags import default_of

ROOT = Path(__file__).parents[3]


def golden(name: str) -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = json.loads((ROOT / "tests/golden" / name).read_text())["cases"]
    return cases


def test_help_and_version_are_printed_before_any_other_check() -> None:
    told = parse_flanneld(["--ip-masq", "--public-ip=x", "--version"], {"FLANNELD_IP_MASQ": "maybe"})
    usage = parse_flanneld(["-h"], {}, program="./flanneld")

    assert isinstance(told, RequestedText)
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*\n", told.text)
    assert told.stream == "stderr"  # as the original
    assert isinstance(usage, RequestedText)
    assert usage.text.startswith("Usage: ./flanneld [OPTION]...\n")
    assert usage.stream == "stdout"


def test_help_groups_the_flags_by_subject_and_ends_with_the_flags_not_yet_supported() -> None:
    usage = parse_flanneld(["--help"], {})
    assert isinstance(usage, RequestedText)

    parts = re.split(r"^(\S.*):\n", usage.text, flags=re.MULTILINE)
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    flags = {title: set(re.findall(r"^  --?(\w\S*?)(?:=|$)", text, re.M)) for title, text in sections.items()}

    assert list(sections) == [
        *("Store", "Kubernetes", "Leases", "Underlay", "Backend", "Firewall", "Docker", "Operation"),
        *("Accepted without effect", "Not supported yet"),
        *("Environment variables", "Exit codes", "Examples"),
    ]
    assert set.union(*list(flags.values())[:10]) == {flag.name for flag in FLAGS}
    assert flags["Not supported yet"] == {flag.name for flag in LATER_FLAGS}
    assert max(map(len, usage.text.splitlines())) <= 80


@pytest.mark.parametrize(
    "case", golden("cli-flags.json"), ids=lambda case: f"{case['version']}-{case['flag']}"
)
def test_every_flag_of_the_original_exists_with_its_default(case: dict[str, Any]) -> None:
    flag = next(flag for flag in FLAGS if flag.name == case["flag"])

    default = default_of(flag).value
    text = str(default).lower() if isinstance(default, bool) else str(default)
    assert (text or None) == (case.get("default") or ("0" if flag.kind == "integer" else None))


# Golden cases that pyflannel refuses. The original continued, or ended with status 0.
OUR_REFUSALS = {
    "words that are no flags were ignored (0.20.2) or answered by the usage with status 0 (0.6.2)": {
        "bool with separate word",
        "single dash word",
        "double dash then version",
        "positional",
        "positional before version",
    },
    "a wrong variable became zero, or was ignored": {
        "env bad bool",
        "env bad int",
        "env bad bool for a flag with default true",
    },
    "wrong values showed late, as status 1 or not at all": {
        "value that looks like a flag",
        "public-ip not an address",
        "renew margin 0",
        "renew margin -5",
        "bad endpoint",
        "empty endpoints",
        "bad iface regex",
        "kube bad config file",
        "kube with url, no names",
        "kube bad prefix",
    },
    "not there yet": {
        "listen bad scheme",
        "listen",
    },
}


@pytest.mark.parametrize("case", golden("cli-behaviour.json"), ids=lambda case: case["id"])
def test_command_lines_are_accepted_or_refused_as_by_the_original(case: dict[str, Any]) -> None:
    ours = _verdict(case["args"], case["env"])

    refused = any(case["name"] in names for names in OUR_REFUSALS.values())
    assert ours == ("refused" if refused else _original_verdict(case))


def _verdict(arguments: list[str], environment: dict[str, str]) -> str:
    try:
        parsed = parse_flanneld(arguments, environment)
    except UsageError:
        return "refused"
    if isinstance(parsed, FlanneldOptions):
        return "runs"
    return "usage" if parsed.text.startswith("Usage") else "version"


def _original_verdict(case: dict[str, Any]) -> str:
    first = (case["stderr_lines"] or [""])[0]
    if first.startswith(
        ("flag provided", "flag needs", "invalid value", "invalid boolean", "bad flag syntax")
    ):
        return "refused"
    if case["usage_on_stderr"]:
        return "usage"
    return "version" if first in ("dev", "0.5.3+git") else "runs"


def test_the_reference_names_every_flag_and_default() -> None:
    text = (ROOT / "docs/reference/flags.md").read_text()

    assert [flag.name for flag in FLAGS if f"`{flag.name}`" not in text] == []
    assert [flag.default for flag in FLAGS if flag.default and f"`{flag.default}`" not in text] == []
