"""Probes of the kernel features for the fast path: present, absent, or hidden by a right or a filter."""

import errno
import json
import os
import subprocess
import sys

import pytest
from msgspec.structs import replace

from pyflannel.errors import TargetError
from pyflannel.kernel.bpf import features
from pyflannel.kernel.bpf.features import (
    BPF,
    NET_ADMIN,
    ProcessRights,
    ask_map_type,
    ask_program_type,
    examine,
    has_helper,
)
from pyflannel.kernel.bpf.hooks import ask_tcx
from pyflannel.kernel.bpf.layout import PEERS
from pyflannel.kernel.bpf.libbpf import LIBRARY, Libbpf
from pyflannel.kernel.bpf.objects import KernelObjects, ObjectFile, read_object
from pyflannel.kernel.bpf.pins import pin_directory, remove_pin_directory
from testlab import refusing

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="rights can only be taken from root")

SCHED_CLS, XDP = 3, 6
ASK = """
import json, sys
from msgspec.structs import asdict
from pyflannel.kernel.bpf.fast_path import FastPath
print(json.dumps([asdict(one) for one in FastPath(sys.argv[1]).features()]))
"""


def ask(*before: str, pins="/nowhere") -> dict[str, dict]:
    """Return the results of a process with this command, by the first two words of the feature."""
    done = subprocess.run(
        [*before, sys.executable, "-c", ASK, str(pins)], capture_output=True, text=True, check=True
    )
    return {" ".join(found["name"].split()[:2]).rstrip(","): found for found in json.loads(done.stdout)}


def answers(found: dict[str, dict], *names: str) -> list[str]:
    return [found[name]["answer"] for name in names]


def with_rights(*names: str) -> list[str]:
    rights = "-all" + "".join(f",+{name}" for name in names)
    return ["setpriv", f"--bounding-set={rights}", f"--inh-caps={rights}"]


def with_refusal(call: str, code: str) -> list[str]:
    return [sys.executable, refusing.__file__, call, code]


KERNEL = ("programs SCHED_CLS", "maps LPM_TRIE", "tcx")


def test_with_all_rights_each_feature_is_present():
    found = ask()

    assert {one["answer"] for one in found.values()} == {"present"}
    assert answers(found, "bpf(2)", "CAP_BPF", "helpers of", *KERNEL)
    assert found["CAP_SYS_ADMIN or"]["detail"] == "by identifiers"
    assert found[LIBRARY]["detail"].startswith("v")


def test_a_missing_right_is_absent_and_the_features_that_need_it_are_unknown():
    found = ask(*with_rights("net_admin"))

    assert answers(found, "bpf(2)", "CAP_BPF", "CAP_NET_ADMIN") == ["present", "absent", "present"]
    assert answers(found, *KERNEL) == ["unknown", "unknown", "present"]
    assert "EPERM" in found["maps LPM_TRIE"]["detail"]
    assert "CAP_BPF" in found["maps LPM_TRIE"]["hint"]


def test_pins_replace_the_right_to_open_programs(tmp_path):
    poor, directory = with_rights("bpf", "net_admin"), tmp_path / "own pins"

    without = ask(*poor, pins=directory)["CAP_SYS_ADMIN or"]
    with pin_directory(str(directory)):
        pass
    try:
        pinned = ask(*poor, pins=directory)["CAP_SYS_ADMIN or"]
    finally:
        remove_pin_directory(str(directory))

    assert without["answer"] == "absent"
    assert "flannelctl pins" in without["hint"]
    assert (pinned["answer"], pinned["detail"]) == ("present", f"pins in {directory}")


@pytest.mark.parametrize("code", ["EPERM", "ENOSYS"])
def test_a_refusal_of_a_seccomp_filter_does_not_count_as_one_of_the_kernel(code):
    found = ask(*with_refusal("bpf", code))

    assert answers(found, "bpf(2)", "CAP_BPF") == ["unknown", "present"]
    assert code in found["bpf(2)"]["detail"]
    assert "seccomp" in found["bpf(2)"]["hint"]
    assert "tcx" not in found


def test_a_refusal_by_a_missing_right_or_a_filter_means_unknown():
    found = ask(*with_refusal("bpf", "EPERM"), *with_rights("net_admin"))

    assert answers(found, "bpf(2)", "CAP_BPF") == ["unknown", "absent"]


def test_rights_of_a_user_namespace_prove_nothing():
    found = ask("unshare", "--user", "--map-root-user")

    assert answers(found, "bpf(2)", "CAP_BPF", "CAP_NET_ADMIN") == ["present", "unknown", "unknown"]


def test_a_feature_that_no_kernel_has_is_absent():
    nothing = replace(PEERS, type=999)

    assert ask_program_type(999)[0] == "absent"
    assert ask_map_type(nothing)[0] == "absent"
    assert not has_helper(SCHED_CLS, 9999)
    assert not has_helper(SCHED_CLS, 44)  # bpf_xdp_adjust_head, which is for XDP
    assert has_helper(XDP, 44)
    assert ask_tcx() == ("present", None)


def found_with(monkeypatch, *, rights=None, library=Libbpf, read=read_object, **patched) -> dict:
    """Return the results if some answers of the kernel are replaced."""
    for name, value in patched.items():
        monkeypatch.setattr(features, name, value)
    if rights is not None:
        monkeypatch.setattr(features, "own_rights", lambda: rights)
    return {one.name: one for one in examine(KernelObjects(), library, read)}


def no_call(*_):
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


def test_a_kernel_without_the_call_has_no_ebpf(monkeypatch):
    """Without a filter, the error can only come from the kernel."""
    free = ProcessRights(capabilities=BPF | NET_ADMIN, is_filtered=False, is_confined=False)

    found = found_with(monkeypatch, rights=free, call_bpf=no_call)

    assert found["bpf(2)"].answer == "absent"
    assert "CONFIG_BPF_SYSCALL" in found["bpf(2)"].hint


def test_the_probed_helpers_are_those_that_the_object_calls(monkeypatch):
    """A helper that this kernel lacks is named, and so would be a missing type of map."""
    strange = ObjectFile(read_object().data.replace(b"\x85\0\0\0\x98\0\0\0", b"\x85\0\0\0\x0f\x27\0\0"), b"")

    found = found_with(monkeypatch, read=lambda: strange, SHARED=(replace(PEERS, type=999), PEERS))

    assert 152 in read_object().helpers["tc"]
    assert (found["helpers of SCHED_CLS"].answer, found["helpers of SCHED_CLS"].detail) == (
        "absent",
        "number 9999",
    )
    assert found["maps of type 999"].answer == "absent"


def test_without_tcx_programs_are_classifiers(monkeypatch):
    found = found_with(monkeypatch, ask_tcx=lambda: ("absent", OSError(errno.EINVAL, "")))

    assert found["tcx"].answer == "absent"
    assert not found["tcx"].is_needed
    assert "clsact" in found["tcx"].detail


def test_missing_software_is_named_with_its_package(monkeypatch):
    def damage():
        raise TargetError("the eBPF programs cannot be read", hint="Install pyflannel again.")

    found = found_with(monkeypatch, library=lambda: Libbpf("libbpf-missing.so.1"), read=damage)

    assert found[LIBRARY].answer == "absent"
    assert "libbpf-missing" in found[LIBRARY].text
    assert "Install libbpf" in found[LIBRARY].hint
    assert found["object of the programs"].answer == "absent"
