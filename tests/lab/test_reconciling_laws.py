"""The laws of tests/property on the real kernel, with a sample of cases.

A kernel in memory performs the same operations. After each batch, both kernels must have refused the same
operations and must have the same objects. Equal results show that the double is as strict as the kernel.
"""

from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from doubles.fake_kernel import FakeKernel
from doubles.strategies import HOST, UNDERLAY, damages, plans
from pyflannel.kernel.network.linux import LinuxTarget
from pyflannel.model.item import Item
from pyflannel.model.link import Address, Link
from pyflannel.model.route import FdbEntry, Neighbour, Route
from pyflannel.model.state import Add, Operation, Refusal, Replace, State
from testlab import target_laws

KINDS = (Link, Address, Neighbour, FdbEntry, Route)
Case = tuple[State, list[Operation]]


class Twins:
    """A network namespace, and a kernel in memory that performs the same operations."""

    def __init__(self, namespace) -> None:
        self._namespace = namespace
        self._fake = FakeKernel(HOST)
        self._opened = AsyncExitStack()

    async def __aenter__(self) -> "Twins":
        self._real = await self._opened.enter_async_context(LinuxTarget())
        self._other = await self._opened.enter_async_context(LinuxTarget())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._opened.aclose()

    async def snapshot(self, desired: State) -> State:
        return await self._real.snapshot(desired)

    async def apply(self, operations: Sequence[Operation]) -> Sequence[Refusal]:
        refused = await self._real.apply(operations)
        expected = await self._fake.apply(operations)
        assert _operations(refused) == _operations(expected), (refused, expected)
        await self._compare()
        return refused

    async def damage(self, operations: Sequence[Operation]) -> None:
        for operation in operations:
            act = target_laws.adapted(operation, self._fake.state)
            if act is not None and self._is_possible(act.subject):
                expected = await self._fake.apply([act])
                refused = await self._perform(act)
                assert _operations(refused) == _operations(expected), (refused, expected)
        await self._compare()

    async def found(self, desired: State) -> State:
        return _comparable(await self._real.snapshot(self._fake.state | desired), self._fake.state)

    async def _perform(self, operation: Operation) -> Sequence[Refusal]:
        """Perform an operation of another program. The adapter creates no bridges, so ip(8) creates them."""
        ip = self._namespace.ip
        match operation:
            case Add(Link(kind="bridge", name=name)):
                ip(f"link add {name} type bridge")
            case Replace(Link(kind=kind), Link(kind="bridge", name=name)) if kind != "bridge":
                ip(f"link delete {name}")
                ip(f"link add {name} type bridge")
            case Replace(Link(kind="bridge", name=name), Link(kind=kind) as link) if kind != "bridge":
                ip(f"link delete {name}")
                return await self._other.apply([Add(link)])
            case Replace(Link(kind="bridge"), Link(kind="bridge")):
                pass
            case _:
                return await self._other.apply([operation])
        link = operation.subject
        assert isinstance(link, Link)
        self._namespace.command("ip", "link", "set", link.name, "alias", link.alias)
        ip(f"link set {link.name} mtu {link.mtu} {'up' if link.is_up else 'down'}")
        return ()

    def _is_possible(self, item: Item) -> bool:
        """Return whether the adapter creates and reads this object. The adapter creates no expiring
        entries.
        """
        match item:
            case Neighbour() | FdbEntry():
                link = self._fake.state.by_key.get(("link", item.link))
                is_plain = isinstance(item, Neighbour) or (item.is_plain and not item.others)
                return isinstance(link, Link) and link.kind == "vxlan" and is_plain and item.is_permanent
            case _:
                return isinstance(item, KINDS)

    async def _compare(self) -> None:
        state = self._fake.state
        real = {*_comparable(await self._real.snapshot(state), state)}
        fake = {*_comparable(state, state)}
        assert real == fake, f"only the kernel has {real - fake}, only the double has {fake - real}"


def _operations(refusals: Sequence[Refusal]) -> list[Operation]:
    return [refusal.operation for refusal in refusals]


def _comparable(state: State, fake: State) -> State:
    """Return the objects that both kernels show equally: of a bridge only its name, state and alias."""
    vxlans = {link.name for link in fake.of_type(Link) if link.kind == "vxlan"}

    def shown(item: Item) -> Item | None:
        match item:
            case Link(name="lo" | "eth0r" | "eth1r") | Address(link="lo"):
                return None
            case Link(kind="tun" | "vxlan"):
                return item
            case Link():
                return Link(name=item.name, kind="", mtu=0, is_up=item.is_up, alias=item.alias)
            case Neighbour() | FdbEntry():
                return item if item.link in vxlans else None
            case Address() | Route():
                return item
            case _:
                return None

    return State.collect(one for item in state if (one := shown(item)) is not None)


@st.composite
def kernel_plans(draw: st.DrawFn) -> State:
    # The kernel of the test machine may lack WireGuard. The double does not drop objects of IPv6 as strictly.
    return State.collect(
        replace(item, kind="tun") if isinstance(item, Link) and item.kind == "wireguard" else item
        for item in draw(plans(may_have_ipv6=False))
        if isinstance(item, KINDS)
    )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    plan = draw(kernel_plans())
    return plan, draw(damages(plan, ("link", "address", "neighbour", "entry", "route")))


def sample(count: int) -> settings:
    return settings(
        max_examples=count,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
        derandomize=True,  # the same sample in each run
        database=None,
        phases=[Phase.generate],
    )


def run(make_namespace, law: Callable[[Twins], Coroutine[None, None, None]]) -> None:
    """Check a law in its own namespace."""
    namespace = make_namespace()
    namespace.command("sysctl", "-q", "-w", "net.ipv6.conf.default.disable_ipv6=1")
    for name in ("eth0", "eth1"):
        namespace.ip(f"link add {name} type veth peer name {name}r")
        namespace.ip(f"link set {name}r up")
        namespace.ip(f"link set {name} up")
    namespace.ip(f"address add {UNDERLAY} dev eth0")
    namespace.ip("route add 10.100.0.0/16 dev eth0 proto boot scope global metric 100")

    async def work() -> None:
        async with Twins(namespace) as twins:
            await law(twins)

    namespace.run(work)


@given(case=cases())
@sample(6)
def test_one_pass_repairs_any_damage(make_namespace, case: Case) -> None:
    run(make_namespace, lambda twins: target_laws.check_one_pass_repairs(twins, *case))


@given(case=cases())
@sample(3)
def test_foreign_objects_are_untouched(make_namespace, case: Case) -> None:
    run(make_namespace, lambda twins: target_laws.check_foreign_objects_are_untouched(twins, *case))


@given(desired=kernel_plans())
@sample(3)
def test_the_empty_plan_leaves_no_trace(make_namespace, desired: State) -> None:
    run(make_namespace, lambda twins: target_laws.check_the_empty_plan_leaves_no_trace(twins, desired))


@given(case=cases(), cut=st.floats(0, 1))
@sample(3)
def test_an_interrupted_pass_is_finished_by_the_next(make_namespace, case: Case, cut: float) -> None:
    run(make_namespace, lambda twins: target_laws.check_a_cut_pass_is_finished(twins, *case, cut))
