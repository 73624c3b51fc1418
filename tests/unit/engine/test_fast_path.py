"""The decision whether the kernel carries the packets, and the effect of a refusal."""

import asyncio
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv4Network

import pytest
from msgspec.structs import replace

from doubles.fake_clock import FakeClock
from pyflannel.engine.fast_path import Choice, FastPath
from pyflannel.model.fast_path import BpfContainer, BpfPeer, BpfProgram, Feature, Role, Tunnel
from pyflannel.model.lease import PARTIAL_CHECKSUM
from pyflannel.model.link import Link, Veth
from pyflannel.model.network_config import NetworkConfig
from pyflannel.model.route import Route
from pyflannel.model.state import Add, Refusal
from pyflannel.model.status import FastPathStatus, Notice
from pyflannel.ports import KernelPath

CONFIG = NetworkConfig()
TUNNEL = Tunnel(
    device="flannel0",
    underlay="eth0",
    address=IPv4Address("10.10.10.101"),
    subnet=IPv4Network("10.100.15.0/24"),
    port=8285,
    mtu=1472,
)
BESIDE = FastPathStatus(mode="user-space", reason="the verifier refuses it", hint="Use another kernel.")


def refused(role: Role) -> Refusal:
    program = BpfProgram(link="eth0", role=role, tunnel=TUNNEL)
    return Refusal(operation=Add(program), cause="the verifier refuses it", hint="Use another kernel.")


class Bench:
    def __init__(self, choice: Choice = "auto", kernel: KernelPath | None = None) -> None:
        self.clock = FakeClock()
        self.changes = 0
        self.fast_path = FastPath(choice, self.clock, self._changed, kernel)

    def _changed(self) -> None:
        self.changes += 1


@asynccontextmanager
async def running(bench: Bench):
    async with bench.clock.running(bench.fast_path.run()):
        yield bench


@pytest.mark.parametrize(
    ("choice", "mode", "reason"),
    [
        ("auto", "safe", None),
        ("auto", "off", "FastPath of the network config"),
        ("safe", "off", None),
        ("off", "safe", "--fast-path=off"),
    ],
)
def test_the_flag_of_the_host_overrides_the_network_config(
    choice: Choice, mode: str, reason: str | None
) -> None:
    is_on = reason is None
    fast_path, config = Bench(choice).fast_path, replace(CONFIG, fast_path=mode)

    assert fast_path.is_on(config) is is_on
    assert fast_path.reads(config) == ((PARTIAL_CHECKSUM,) if is_on else ())
    assert fast_path.status(config) == FastPathStatus(mode="safe" if is_on else "off", reason=reason)


@pytest.mark.parametrize("backend", ["vxlan", "host-gw"])
def test_other_backends_have_no_fast_path(backend: str) -> None:
    fast_path, config = Bench().fast_path, replace(CONFIG, backend_type=backend)

    assert not fast_path.is_on(config)
    assert fast_path.status(config) is None
    assert not fast_path.is_on(None)


@pytest.mark.parametrize(
    ("choice", "mode", "is_on"),
    [("auto", "flow", True), ("flow", "off", True), ("safe", "flow", False), ("off", "flow", False)],
)
def test_vxlan_has_programs_only_in_mode_flow(choice: Choice, mode: str, is_on: bool) -> None:
    fast_path = Bench(choice).fast_path
    config = replace(CONFIG, backend_type="vxlan", fast_path=mode)

    assert fast_path.is_on(config) is is_on
    assert fast_path.status(config) == (FastPathStatus(mode="flow") if is_on else None)
    assert fast_path.reads(config) == ()  # the kernel reads all packets
    assert not fast_path.is_on(replace(config, enable_ipv4=False))
    assert not fast_path.is_on(replace(config, backend_type="host-gw"))


def test_vxlan_without_programs_caches_no_flow() -> None:
    fast_path, config = Bench().fast_path, replace(CONFIG, backend_type="vxlan", fast_path="flow")

    assert fast_path.judge((refused(Role.DECAPSULATE),), (BpfProgram,), config) == ()

    assert not fast_path.is_on(config)
    assert fast_path.status(config) == replace(BESIDE, mode="uncached")


def test_refused_programs_leave_the_packets_to_user_space_and_are_retried(caplog) -> None:
    """The pauses between retries grow. The lease contains the feature again only after it worked."""
    caplog.set_level("INFO")

    async def check() -> None:
        async with running(Bench()) as bench:
            fast_path = bench.fast_path
            fast_path.judge((refused(Role.DECAPSULATE),), (BpfProgram, BpfPeer), CONFIG)
            assert not fast_path.is_on(CONFIG)
            assert fast_path.reads(CONFIG) == ()
            assert fast_path.status(CONFIG) == BESIDE
            assert bench.changes == 1

            await bench.clock.advance(1)
            assert fast_path.is_on(CONFIG)
            assert fast_path.reads(CONFIG) == ()
            assert fast_path.status(CONFIG) == BESIDE  # until a refusal is known
            fast_path.judge((refused(Role.DECAPSULATE),), (BpfProgram, BpfPeer), CONFIG)
            await bench.clock.advance(1)
            assert not fast_path.is_on(CONFIG)
            await bench.clock.advance(1)
            assert fast_path.is_on(CONFIG)

            fast_path.judge((), (BpfProgram, BpfPeer), CONFIG)
            assert fast_path.reads(CONFIG) == (PARTIAL_CHECKSUM,)
            assert fast_path.status(CONFIG) == FastPathStatus(mode="safe")

    asyncio.run(check())
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "the verifier refuses it. Use another kernel." in caplog.records[0].getMessage()


def test_refusals_because_of_a_missing_object_remain() -> None:
    """The fast path reports that user space carries the packets. Readiness does not wait for the fast
    path.
    """
    route = Refusal(operation=Add(Route(destination=TUNNEL.subnet, link="eth0")), cause="ENETDOWN")
    container = BpfContainer(
        device="flannel0", address=IPv4Address("10.100.15.2"), mac="02:42:0a:64:0f:02", link="veth1"
    )
    every = (route, Refusal(operation=Add(container), cause="EPERM"), *map(refused, Role))

    assert Bench().fast_path.judge(every, (BpfProgram, BpfPeer), CONFIG) == (route,)


def test_a_bridge_or_container_that_was_just_removed_is_not_a_reason() -> None:
    fast_path = Bench().fast_path
    container = BpfContainer(
        device="flannel0", address=IPv4Address("10.100.15.2"), mac="02:42:0a:64:0f:02", link="veth1"
    )

    gone = (refused(Role.LAST_HOP), Refusal(operation=Add(container), cause="no such link"))

    assert fast_path.judge(gone, (BpfProgram, BpfPeer), CONFIG) == gone

    assert fast_path.is_on(CONFIG)


def test_a_device_that_cannot_be_created_does_not_disable_the_programs(caplog) -> None:
    """The programs are refused because the device is missing, and only the device is reported."""
    device = Link(name="flannel0", kind="tun", mtu=1472)
    fast_path = Bench().fast_path

    without = (Refusal(operation=Add(device), cause="EPERM"), refused(Role.DECAPSULATE))

    assert fast_path.judge(without, (BpfProgram, BpfPeer), CONFIG) == without

    assert fast_path.is_on(CONFIG)
    assert caplog.records == []


def test_a_gro_veth_that_cannot_be_created_is_named_as_the_reason() -> None:
    """The programs that send into the missing veth are refused. Without GRO, the programs would work."""
    gro_link = Link(name="flannel0-gro", kind="veth", mtu=1500, veth=Veth(peer="flannel0-rx", has_gro=True))
    fast_path = Bench().fast_path

    without = (Refusal(operation=Add(gro_link), cause="EOPNOTSUPP"), refused(Role.DECAPSULATE))

    assert fast_path.judge(without, (BpfProgram, BpfPeer), CONFIG) == ()

    assert not fast_path.is_on(CONFIG)
    status = fast_path.status(CONFIG)
    assert status is not None
    assert status.reason == "flannel0-gro cannot be created: EOPNOTSUPP"
    assert "--fast-path-gro=off" in (status.hint or "")


def test_a_gro_veth_that_coalesces_nothing_is_not_a_reason() -> None:
    gro_link = Link(name="flannel0-gro", kind="veth", mtu=1500, veth=Veth(peer="flannel0-rx", has_gro=True))
    fast_path = Bench().fast_path

    fast_path.judge((Refusal(operation=Add(gro_link), cause="EOPNOTSUPP"),), (BpfProgram, BpfPeer), CONFIG)

    assert fast_path.is_on(CONFIG)


class Kernel:
    """A KernelPath with the features of a test."""

    def __init__(self, *features: Feature) -> None:
        self.said = features
        self.shown: tuple[Notice, ...] = ()
        self.objections: tuple[str, ...] = ()
        self.asked = 0

    def features(self) -> tuple[Feature, ...]:
        self.asked += 1
        return self.said

    def uncached(self) -> tuple[str, ...]:
        return self.objections

    def notices(self, device: str) -> tuple[Notice, ...]:
        return self.shown if device == "flannel0" else ()


PRESENT = Feature(name="CAP_BPF", answer="present")
ABSENT = Feature(name="CAP_BPF", answer="absent", hint="Give it.")
PINLESS = Feature(name="pins", answer="absent", hint="Create them.")
HIDDEN = Feature(name="bpf(2)", answer="unknown", detail="EPERM", hint="Let it pass the filter.")


def test_a_feature_that_is_certainly_missing_is_not_tried(caplog) -> None:
    """Features are probed before the first programs and after each pause, and logged once."""

    async def check() -> None:
        kernel = Kernel(ABSENT)
        async with running(Bench(kernel=kernel)) as bench:
            fast_path = bench.fast_path
            fast_path.examine(replace(CONFIG, backend_type="vxlan"))
            assert kernel.asked == 0

            fast_path.examine(CONFIG)
            fast_path.examine(CONFIG)
            assert kernel.asked == 1
            assert not fast_path.is_on(CONFIG)
            assert fast_path.reads(CONFIG) == ()
            assert fast_path.status(CONFIG) == FastPathStatus(
                mode="user-space", reason="CAP_BPF: absent", hint="Give it.", lacking=(ABSENT,)
            )

            await bench.clock.advance(1)
            fast_path.examine(CONFIG)
            assert kernel.asked == 2
            assert not fast_path.is_on(CONFIG)

            kernel.said = (PRESENT,)
            await bench.clock.advance(2)
            fast_path.examine(CONFIG)
            assert fast_path.is_on(CONFIG)
            assert fast_path.reads(CONFIG) == ()  # until the feature has worked
            fast_path.judge((), (BpfProgram, BpfPeer), CONFIG)
            assert fast_path.reads(CONFIG) == (PARTIAL_CHECKSUM,)
            assert fast_path.status(CONFIG) == FastPathStatus(mode="safe")

    asyncio.run(check())
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_all_missing_features_are_logged_together() -> None:
    fast_path = Bench(kernel=Kernel(PRESENT, ABSENT, HIDDEN, PINLESS, replace(ABSENT, name="CAP"))).fast_path
    fast_path.examine(CONFIG)

    status = fast_path.status(CONFIG)
    assert status is not None
    assert status.reason == "CAP_BPF: absent; pins: absent; CAP: absent"
    assert status.hint == "Give it. Create them."


def test_an_unknown_feature_is_tried_and_its_hint_replaces_that_of_the_kernel() -> None:
    fast_path = Bench(kernel=Kernel(HIDDEN)).fast_path
    fast_path.examine(CONFIG)

    assert fast_path.is_on(CONFIG)
    assert fast_path.status(CONFIG) == FastPathStatus(mode="safe", lacking=(HIDDEN,))
    fast_path.judge((refused(Role.DECAPSULATE),), (BpfProgram, BpfPeer), CONFIG)

    assert not fast_path.is_on(CONFIG)
    assert fast_path.status(CONFIG) == replace(BESIDE, hint="Let it pass the filter.", lacking=(HIDDEN,))


def test_a_feature_with_a_replacement_may_be_missing() -> None:
    fast_path = Bench(kernel=Kernel(replace(ABSENT, is_needed=False))).fast_path
    fast_path.examine(CONFIG)

    assert fast_path.is_on(CONFIG)


def test_reasons_against_caching_are_logged_and_shown_in_mode_flow(caplog) -> None:
    kernel = Kernel()
    fast_path = Bench("flow", kernel=kernel).fast_path
    kernel.objections = ("a rule of ip filter FORWARD decides by limit",)
    for _ in range(2):
        fast_path.judge((), (BpfProgram, BpfPeer), CONFIG)

    assert fast_path.status(CONFIG) == FastPathStatus(mode="flow", uncached=kernel.objections)
    assert fast_path.caches_flows(CONFIG)
    assert "decides by limit" in "".join(record.getMessage() for record in caplog.records)
    assert len(caplog.records) == 1


@pytest.mark.parametrize("choice", ["auto", "off"])
def test_an_unrepairable_problem_is_logged_once_whether_programs_are_wanted_or_not(
    choice: Choice, caplog
) -> None:
    caplog.set_level("INFO")
    kernel = Kernel()
    fast_path = Bench(choice, kernel=kernel).fast_path
    for notices in ((Notice("programs stand", "Remove them."),), ()):
        kernel.shown = notices
        fast_path.judge((), (BpfProgram, BpfPeer), CONFIG)
        fast_path.judge((), (BpfProgram, BpfPeer), CONFIG)
        status = fast_path.status(CONFIG)
        assert status is not None
        assert status.remarks == notices

    assert [record.levelname for record in caplog.records] == ["ERROR", "INFO"]
    assert caplog.records[0].getMessage() == "programs stand. Remove them."
