"""Each system call of each adapter fails in turn. The adapter raises only declared errors and recovers.

A first run counts the system calls of an action. Then the action is repeated, and the kernel refuses one call
after the other (tests/doubles/system_calls.py): in the short form one call of each name with one errno, in
the long form every call with every errno.
"""

import asyncio
import errno
import gc
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from doubles.planning import pass_operations
from doubles.system_calls import ERRNOS, Call, SystemCalls, why_not
from pyflannel.errors import FlannelError, TargetError, target_errors
from pyflannel.kernel.bpf.fast_path import FastPath
from pyflannel.kernel.bpf.target import BpfTarget
from pyflannel.kernel.filters import programs
from pyflannel.kernel.filters.iptables import IptablesTarget
from pyflannel.kernel.filters.nftables import NftTarget
from pyflannel.kernel.filters.tunnel_guard import TunnelGuardTarget
from pyflannel.kernel.host.files import FileMemory, FileTarget
from pyflannel.kernel.host.inotify import InotifyFileWatch
from pyflannel.kernel.host.lease_key import lease_key
from pyflannel.kernel.host.locks import DeviceClaim, RunLock
from pyflannel.kernel.host.machine import new_identity, read_identity
from pyflannel.kernel.network.interfaces import KernelBridges, KernelInterfaces
from pyflannel.kernel.network.linux import LinuxTarget
from pyflannel.kernel.network.snapshot import route_protocols, survey
from pyflannel.kernel.wireguard import target as wireguard
from pyflannel.kernel.wireguard.keys import WireguardKeys
from pyflannel.kernel.wireguard.target import WireguardTarget
from pyflannel.model.fast_path import BpfPeer, BpfProgram, Role, Tunnel
from pyflannel.model.forwarder import Forwarder, ForwarderPeer
from pyflannel.model.host import HostFile
from pyflannel.model.item import Item
from pyflannel.model.link import Address, Link, Veth, Vxlan
from pyflannel.model.packet_filter import Accept, FilterRule, IptablesChain, NftTable
from pyflannel.model.route import FdbEntry, Neighbour, Route
from pyflannel.model.state import Operation, Remove, State
from pyflannel.model.store_record import Secret
from pyflannel.model.tunnel_guard import GuardedPath, GuardedTunnel, GuardPeer, GuardTable
from pyflannel.model.wireguard import DEVICE, WireguardDevice, WireguardPeer
from pyflannel.plan.diff import order
from pyflannel.plan.ownership import ours
from pyflannel.ports import Target
from pyflannel.processes import forwarder, forwarder_client
from pyflannel.processes.forwarder import ForwarderTarget
from pyflannel.processes.wireguard_go import WireguardGo
from testlab.inside import hide_directory

pytestmark = [
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
    pytest.mark.usefixtures("no_forwarder_remains", "underlay"),
    pytest.mark.timeout(3600),  # each action of the long form takes minutes
]

Failure = tuple[int, int, str]
"""The number of the failing system call, its errno, and a text with call and errno."""

SOON_S, HEARD_S = 30.0, 3.0


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A Target, and a plan that uses all of its operations.

    Attributes:
        make: function that creates the target in a directory.
        prepare: commands that create the objects that the plan requires.
        hidden: a directory of the machine, which is empty for the adapter.
    """

    make: Callable[[Path], Any]
    plan: Callable[[Path], State]
    prepare: tuple[str, ...] = ()
    hidden: str = ""


_PEER = IPv4Network("10.100.2.0/24")
_MAC = "0e:00:00:00:00:02"
_TUNNEL = Tunnel(
    device="flannel0",
    underlay="eth0",
    address=IPv4Address("10.7.0.1"),
    subnet=IPv4Network("10.100.15.0/24"),
    port=8285,
    mtu=1472,
)


def _links(_: Path) -> State:
    vxlan = Vxlan(vni=1, port=8472, parent="eth0", local=IPv4Address("10.7.0.1"), offloads_checksums=False)
    ends = ("flannel0-gro", "flannel0-rx")
    return State.of(
        Link(name="flannel0", kind="tun", mtu=1472),
        *(
            Link(name=end, kind="veth", mtu=1472, veth=Veth(peer=other, has_gro=True))
            for end, other in (ends, ends[::-1])
        ),
        Link(name="flannel.1", kind="vxlan", mtu=1450, queue_length=0, mac="0e:11:22:33:44:55", vxlan=vxlan),
        Address(link="flannel.1", address=IPv4Interface("10.100.15.0/32")),
        Neighbour(link="flannel.1", address=_PEER.network_address, mac=_MAC),
        FdbEntry(link="flannel.1", mac=_MAC, destination=IPv4Address("10.7.0.2")),
        Route(destination=_PEER, link="flannel.1", gateway=_PEER.network_address, is_onlink=True),
    )


def _forwarder(_: Path) -> State:
    return State.of(
        Forwarder(
            link="flannel0",
            tunnel_address=IPv4Address("10.100.15.0"),
            subnet=IPv4Network("10.100.15.0/24"),
            listen_address=IPv4Address("10.7.0.1"),
            port=8285,
            mtu=1472,
        ),
        ForwarderPeer(link="flannel0", subnet=_PEER, address=IPv4Address("10.7.0.2"), port=8285),
    )


def _programs(_: Path) -> State:
    peer = BpfPeer(
        device="flannel0", subnet=_PEER, address=IPv4Address("10.7.0.2"), port=8285, is_direct=True
    )
    return State.of(
        peer,
        BpfProgram(link="flannel0", role=Role.ENCAPSULATE, tunnel=_TUNNEL),
        BpfProgram(link="eth0", role=Role.DECAPSULATE, tunnel=_TUNNEL),
    )


def _chains(_: Path) -> State:
    accept = FilterRule(verdict=Accept())
    return State.of(IptablesChain(family=4, hook="FORWARD", device="flannel0", rules=(accept,)))


def _guard(_: Path) -> State:
    tunnel = GuardedTunnel(link="flannel.1", port=8472, vni=1)
    table = GuardTable(
        device="flannel0",
        underlay="eth0",
        source_length=24,
        network=IPv4Network("10.100.0.0/16"),
        subnet=IPv4Network("10.100.15.0/24"),
        path=GuardedPath(links=("flannel.1",), tunnel=tunnel),
    )
    address = IPv4Address("10.7.0.2")
    return State.of(
        table, GuardPeer(device="flannel0", subnet=_PEER, address=address, port=8472, sources=_PEER)
    )


_KEY = Secret("uMECOej34HzTVXtNGC3C8j9AQnDlqRa1VigTQK8D01w=")
_PUBLIC_KEY, _KEY_OF_PEER = (
    "fej0p5JlH6L0ABusrvEqJ+O4vku0IDeriGT19bmxSEU=",
    "hKkG9PwcW0gnS0sZ1cQzJNgXkZ2f3r6m5a4b3c2d1e0=",
)


@asynccontextmanager
async def _wireguard_target(directory: Path) -> AsyncIterator[WireguardTarget]:
    """Yield the target. The processes of the target end together with the target."""
    async with WireguardGo(directory) as processes:
        try:
            yield WireguardTarget(lambda _: _KEY, processes)
        finally:
            await processes.stop(DEVICE)


def _wireguard(_: Path) -> State:
    peer = WireguardPeer(
        link=DEVICE,
        public_key=_KEY_OF_PEER,
        allowed=(_PEER,),
        endpoint="10.7.0.2:51820",
    )
    return State.of(
        WireguardDevice(link=DEVICE, public_key=_PUBLIC_KEY, port=51820, is_in_kernel=False), peer
    )


_TUN = ("tuntap add flannel0 mode tun", "link set flannel0 mtu 1472 up")

ADAPTERS = {
    "links": Adapter(make=lambda _: LinuxTarget(), plan=_links),
    "files": Adapter(
        make=lambda _: FileTarget(),
        plan=lambda directory: State.of(HostFile(path=str(directory / "run/subnet.env"), text="x\n")),
    ),
    "iptables": Adapter(make=lambda _: IptablesTarget(60.0), plan=_chains),
    "nftables": Adapter(
        make=lambda _: NftTarget(60.0),
        plan=lambda _: State.of(NftTable(family=4, device="flannel0", chains=())),
    ),
    "tunnel guard": Adapter(make=lambda _: TunnelGuardTarget(), plan=_guard),
    "forwarder": Adapter(make=ForwarderTarget, plan=_forwarder, prepare=_TUN),
    "WireGuard": Adapter(
        make=_wireguard_target,
        plan=_wireguard,
        prepare=(f"tuntap add {DEVICE} mode tun", f"link set {DEVICE} mtu 1420 up"),
        hidden="/run",
    ),
    "programs": Adapter(make=lambda _: BpfTarget(FastPath(), look_s=0.02), plan=_programs, prepare=_TUN),
}


@pytest.fixture
def underlay(namespace) -> None:
    """Give the namespace an interface with an address."""
    namespace.ip("link add eth0 type veth peer name eth0r")
    namespace.ip("address add 10.7.0.1/24 dev eth0")
    namespace.ip("link set eth0r up")
    namespace.ip("link set eth0 up")


@pytest.fixture(params=ADAPTERS, name="adapter")
def give_adapter(request: pytest.FixtureRequest, namespace, underlay, monkeypatch) -> Adapter:
    """Yield each adapter in turn, in a namespace with the objects that its plan requires."""
    monkeypatch.setattr(programs, "_DEADLINE_S", 5.0)
    monkeypatch.setattr(forwarder_client, "ANSWER_S", 2.0)
    monkeypatch.setattr(forwarder, "_LOOK_AGAIN_S", 0.05)
    monkeypatch.setattr(wireguard, "_LOOK_S", 0.05)
    adapter = ADAPTERS[request.param]
    for words in adapter.prepare:
        namespace.ip(words)
    if adapter.hidden:
        enter = namespace._enter
        monkeypatch.setattr(namespace, "_enter", lambda: (enter(), hide_directory(adapter.hidden)))
    return adapter


@pytest.fixture
def failures(long_run: bool) -> Callable[[list[Call]], Iterator[Failure]]:
    """Return the function that pairs calls with errnos."""
    turns = cycle(ERRNOS)

    def pairs(calls: list[Call]) -> Iterator[Failure]:
        for call in calls if long_run else one_call_of_each_name(calls):
            for code in ERRNOS if long_run else (next(turns),):
                where = f"{call.name} ({call.place} of {len(calls)}) fails with {errno.errorcode[code]}"
                yield call.place, code, where

    return pairs


def one_call_of_each_name(calls: list[Call]) -> list[Call]:
    """Return one system call of each name, if possible neither the first nor the last call of its name."""
    by_name: dict[str, list[Call]] = {}
    for call in calls:
        by_name.setdefault(call.name, []).append(call)
    return [same[turn % len(same)] for turn, same in enumerate(by_name.values())]


async def steps(target: Target, desired: State) -> list[Operation]:
    """Return the operations of a pass."""
    return pass_operations(desired, ours(await target.snapshot(desired), desired))


async def heal(target: Target, plan: State) -> None:
    """Make passes until one pass has no refusal, and the next pass has nothing to do."""
    async with asyncio.timeout(SOON_S):
        # An action that began when its call failed, such as a program, may end a moment later.
        while await target.apply(await steps(target, plan)) or await steps(target, plan):
            await asyncio.sleep(0.02)


async def remove(target: Target, plan: State) -> None:
    """Make passes that remove everything, until one pass has no refusal, and nothing remains."""
    async with asyncio.timeout(SOON_S):
        while await target.apply(removals(plan)) or await remaining(target, plan):
            await asyncio.sleep(0.02)


def removals(plan: State) -> list[Operation]:
    return order((Remove(item) for item in plan), State.EMPTY)


async def remaining(target: Target, plan: State) -> list[Item]:
    """Return the objects at the keys of the plan."""
    found = await target.snapshot(plan)
    return [found.by_key[item.key] for item in plan if item.key in found.by_key]


def descriptors() -> int:
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


async def lost(opened: int) -> int:
    """Return the number of additional open descriptors. The kernel soon closes the descriptors of an ended
    process.
    """
    if (more := len(os.listdir("/proc/self/fd")) - opened) <= 0:
        return more  # a garbage collection before would take most of the time of these tests
    with suppress(TimeoutError):
        async with asyncio.timeout(SOON_S):
            while descriptors() > opened:
                await asyncio.sleep(0.01)
    return descriptors() - opened


@pytest.mark.parametrize("is_removal", [False, True], ids=["made", "removed"])
def test_an_operation_with_a_failing_call_is_refused_and_later_repaired(
    namespace, adapter: Adapter, tmp_path: Path, failures, is_removal: bool
) -> None:
    """The error names the failed system call, or the call had no effect. No descriptor is lost."""
    plan = adapter.plan(tmp_path)
    before, after = (heal, remove) if is_removal else (remove, heal)

    async def work() -> list[str]:
        calls, wrong = SystemCalls(), []
        async with adapter.make(tmp_path) as target:
            for make in (after, before, after, before):  # without actions that are done only once
                await make(target, plan)
            opened = descriptors()
            operations = removals(plan) if is_removal else await steps(target, plan)
            with calls.counted() as made:
                assert await target.apply(operations) == []
            for place, code, where in failures(made):
                await before(target, plan)
                if (more := await lost(opened)) > 0:
                    wrong.append(f"before {where}: {more} descriptors are lost")
                    opened += more
                try:
                    async with asyncio.timeout(SOON_S):
                        with calls.failing(place, code):
                            refused = await target.apply(operations)
                except Exception as error:  # noqa: BLE001 - the test searches for errors
                    wrong.append(f"{where}: {error!r} was raised")
                else:
                    left = await (remaining if is_removal else steps)(target, plan)
                    if left and not refused:
                        wrong.append(f"{where}: nothing is refused, and this is left: {left}")
                    if not all(each.cause and each.hint for each in refused):
                        wrong.append(f"{where}: it is not named: {refused}")
                await after(target, plan)
            await remove(target, plan)
        return wrong

    assert namespace.run(work, 3000) == []


def test_a_failing_call_of_a_scan_is_a_target_error_and_the_next_scan_is_complete(
    namespace, adapter: Adapter, tmp_path: Path, failures
) -> None:
    """The object is read unchanged, or reading fails. No existing object is considered damaged."""
    plan = adapter.plan(tmp_path)

    async def work() -> list[str]:
        calls, wrong = SystemCalls(), []
        async with adapter.make(tmp_path) as target:
            await heal(target, plan)
            await target.snapshot(plan)
            opened = descriptors()
            with calls.counted() as made:
                await target.snapshot(plan)
            for place, code, where in failures(made):
                try:
                    async with asyncio.timeout(SOON_S):
                        with calls.failing(place, code):
                            left = await steps(target, plan)
                except TargetError as error:
                    if errno.errorcode[code] not in str(error) and "forwarder" not in str(error):
                        wrong.append(f"{where}: {error} does not name it")
                except Exception as error:  # noqa: BLE001 - the test searches for errors
                    wrong.append(f"{where}: {error!r} was raised")
                else:
                    if left and code not in (errno.EACCES, errno.EISDIR):  # `apply` reports remains
                        wrong.append(f"{where}: {left}")
                await heal(target, plan)
                if (more := await lost(opened)) > 0:
                    wrong.append(f"{where}: {more} descriptors are lost")
                    opened += more
            await remove(target, plan)
        return wrong

    assert namespace.run(work, 3000) == []


def test_a_failing_call_of_a_channel_is_reported_and_the_next_channel_works(
    namespace, adapter: Adapter, tmp_path: Path, failures, caplog
) -> None:
    """No task waits forever for an ended reader."""
    plan = adapter.plan(tmp_path)

    async def work() -> list[str]:
        calls, wrong = SystemCalls(), []
        async with adapter.make(tmp_path) as target, adapter.make(tmp_path) as other:

            async def wait_change() -> None:
                """Return when a change by another program was announced."""
                async with asyncio.timeout(SOON_S), target.changes() as changes:
                    await target.snapshot(plan)
                    await remove(other, plan)
                    async with asyncio.timeout(HEARD_S):
                        await changes.next()

            await heal(target, plan)
            with calls.counted() as made:
                await wait_change()
            for place, code, where in failures(made):
                await heal(target, plan)
                caplog.clear()
                try:
                    with calls.failing(place, code):
                        await wait_change()
                except (TargetError, AssertionError, TimeoutError) as error:
                    # The channel or the log reports the failure, or the change itself was refused.
                    if isinstance(error, TimeoutError) and not caplog.messages:
                        wrong.append(f"{where}: no change is announced, and no error")
                    await heal(target, plan)
                    try:
                        await wait_change()
                    except Exception as error:  # noqa: BLE001 - the test searches for errors
                        wrong.append(f"after {where}: {error!r} was raised")
                except Exception as error:  # noqa: BLE001 - the test searches for errors
                    wrong.append(f"{where}: {error!r} was raised")
            await remove(target, plan)
        return wrong

    assert namespace.run(work, 3000) == []


def test_a_failing_call_while_a_target_opens_is_a_target_error(
    namespace, adapter: Adapter, tmp_path: Path, failures
) -> None:
    """The target opens with fewer functions, or not at all. All descriptors are closed again."""

    async def work() -> list[str]:
        async def open_it() -> None:
            async with adapter.make(tmp_path) as target:
                await target.snapshot(State.EMPTY)

        return await undeclared_errors(open_it, failures)

    assert namespace.run(work, 3000) == []


async def _observe_interfaces(_: Path) -> object:
    async with KernelInterfaces() as interfaces:
        return await interfaces.observe(), await interfaces.route_to(IPv4Address("10.7.0.2"))


async def _observe_bridges(_: Path) -> object:
    async with KernelBridges() as bridges:
        return await bridges.observe()


async def _watch_file(directory: Path) -> object:
    async with asyncio.timeout(SOON_S), InotifyFileWatch().changes(directory / "leases.db-wal") as changes:
        with target_errors("the test cannot write", hint=""):
            (directory / "leases.db-wal").write_text("x")
        await changes.next()


async def _remember(directory: Path) -> object:
    memory = FileMemory(directory / "last-known.json")
    await memory.save([b"a", b"b"])
    return await memory.load()


async def _identify(directory: Path) -> object:
    places = [str(directory / name) for name in ("state", "run", "machine-id")]
    return new_identity(*places), read_identity(*places)


async def _read_wireguard_key(directory: Path) -> object:
    return await WireguardKeys(directory / "wgkey", None, lambda: "").observe()


async def _make_wireguard_key(directory: Path) -> object:
    with target_errors("the test cannot delete it", hint=""):
        (directory / "wgkey").unlink(missing_ok=True)
    return await _read_wireguard_key(directory)


async def _read_lease_key(directory: Path) -> object:
    return lease_key(directory / "lease-key", "a")


async def _lock(directory: Path) -> object:
    with RunLock(str(directory / "run/flanneld.lock")):
        return None


async def _claim(_: Path) -> object:
    DeviceClaim(["flannel0", "flannel1"]).close()


async def _survey(_: Path) -> object:
    return await survey(), await route_protocols()


async def _ask_features(_: Path) -> object:
    return FastPath().features()


OTHERS: dict[str, Callable[[Path], Awaitable[object]]] = {
    "interfaces": _observe_interfaces,
    "bridges": _observe_bridges,
    "file watch": _watch_file,
    "memory": _remember,
    "identity": _identify,
    "WireGuard key": _read_wireguard_key,
    "new WireGuard key": _make_wireguard_key,
    "lease key": _read_lease_key,
    "lock": _lock,
    "claim": _claim,
    "survey": _survey,
    "features": _ask_features,
}


@pytest.mark.parametrize("act", OTHERS.values(), ids=OTHERS.keys())
def test_a_failing_call_of_another_adapter_is_an_error_of_pyflannel(
    namespace, tmp_path: Path, failures, act: Callable[[Path], Awaitable[object]]
) -> None:
    """The action succeeds nevertheless, or the error names the failed part."""

    async def work() -> list[str]:
        return await undeclared_errors(lambda: act(tmp_path), failures)

    assert namespace.run(work, 600) == []


async def undeclared_errors(
    act: Callable[[], Awaitable[object]], failures: Callable[[list[Call]], Iterator[Failure]]
) -> list[str]:
    """Return the errors of an action with failing system calls that are not errors of pyflannel."""
    calls, wrong = SystemCalls(), []
    for _ in range(2):  # without actions that are done only once
        await act()
    opened = descriptors()
    with calls.counted() as made:
        await act()
    for place, code, where in failures(made):
        try:
            with calls.failing(place, code), suppress(FlannelError):
                await act()
        except Exception as error:  # noqa: BLE001 - the test searches for errors
            wrong.append(f"{where}: {error!r} was raised")
        await act()
        if (more := await lost(opened)) > 0:
            wrong.append(f"{where}: {more} descriptors are lost")
            opened += more
    return wrong
