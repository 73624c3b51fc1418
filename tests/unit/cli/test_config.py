"""flannelctl config: what is odd about a config is said, and what is wrong is refused."""

import json

import pytest

from pyflannel.programs.flannelctl import run

NETWORK = "10.100.0.0/16"


def validate(**backend: object) -> int:
    return run(["config", "validate", json.dumps({"Network": NETWORK, "Backend": backend})])


def test_a_key_without_effect_is_warned_of(capfd: pytest.CaptureFixture[str]) -> None:
    code = validate(Type="vxlan", VNI=7, Name="tunnel")

    printed = capfd.readouterr()
    assert code == 0
    assert json.loads(printed.out)["BackendType"] == "vxlan"
    assert printed.err.startswith(
        "flannelctl: warning: Backend.Name has no effect: the vxlan backend knows VNI"
    )


def test_a_value_out_of_range_is_refused_with_what_is_allowed(capfd: pytest.CaptureFixture[str]) -> None:
    code = validate(Type="vxlan", VNI=16777216)

    printed = capfd.readouterr()
    assert code == 2
    assert printed.out == ""
    assert "Backend.VNI is 16777216, not a whole number from 0 to 16777215" in printed.err
