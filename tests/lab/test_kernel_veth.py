"""Both ends of a veth on the real kernel: created, read, repaired and removed."""

import os

import pytest

from doubles.planning import pass_operations, with_losses
from pyflannel.kernel.network.linux import LinuxTarget
from pyflannel.model.link import Link, Veth
from pyflannel.model.state import State


def end(name: str, peer: str) -> Link:
    return Link(name=name, kind="veth", mtu=1500, queue_length=1000, veth=Veth(peer=peer, has_gro=True))


NEAR, FAR = end("flannel0-gro", "flannel0-rx"), end("flannel0-rx", "flannel0-gro")
BOTH = State.of(NEAR, FAR)
DAMAGE = [
    "link delete flannel0-gro",
    "link delete flannel0-rx",
    "link set flannel0-rx down",
    "link set flannel0-gro mtu 1400",
    "link set flannel0-gro alias mine",
    "link set flannel0-rx name other",
    "link set flannel0-gro name other",
]


def test_both_ends_are_created_and_read_back(namespace, target):
    assert target.heal(BOTH) == []

    assert target.snapshot(BOTH) == BOTH
    assert "inet6" not in namespace.ip("address show dev flannel0-rx")
    features = namespace.command("ethtool", "-k", "flannel0-rx")
    assert "generic-receive-offload: on" in features
    assert "tx-tcp-segmentation: off" in features


def test_each_end_has_a_queue_for_each_processor(namespace, target):
    """With one queue, one processor handles all packets, regardless of their distribution by the network
    card.
    """
    target.heal(BOTH)

    for name in ("flannel0-gro", "flannel0-rx"):
        queues = namespace.command("ls", f"/sys/class/net/{name}/queues").split()
        assert {"rx", "tx"} == {queue[:2] for queue in queues}
        assert len(queues) == 2 * os.cpu_count()


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_repaired(namespace, target, damage):
    target.heal(BOTH)
    namespace.ip(damage)

    assert target.heal(BOTH) == []

    assert target.snapshot(BOTH) == BOTH


@pytest.mark.parametrize("feature", ["gro off", "tso on"])
def test_a_changed_feature_is_announced_and_repaired(namespace, target, listen, feature):
    target.heal(BOTH)

    async def wait_change() -> None:
        async with LinuxTarget() as adapter:
            await adapter.snapshot(BOTH)
            async with listen(adapter.changes()) as wakes:
                namespace.command("ethtool", "-K", "flannel0-rx", *feature.split())
                await wakes.next()

    namespace.run(wait_change)
    assert target.snapshot(BOTH) != BOTH
    target.heal(BOTH)
    assert target.snapshot(BOTH) == BOTH


def test_a_veth_end_that_was_moved_to_another_namespace_is_created_again(namespace, target, make_namespace):
    target.heal(BOTH)
    elsewhere = make_namespace()
    namespace.ip(f"link set flannel0-rx netns {elsewhere.name}")

    target.heal(BOTH)

    assert target.snapshot(BOTH) == BOTH
    assert "flannel0-rx" not in elsewhere.ip("link show")


def test_a_foreign_veth_remains(namespace, target):
    namespace.ip("link add foreign type veth peer name others")
    target.heal(BOTH)
    target.heal(State.EMPTY)

    assert "foreign@others" in namespace.ip("link show")
    assert "flannel0" not in namespace.ip("link show")


def test_a_link_with_the_name_of_an_end_is_replaced(namespace, target):
    """The adapter replaces the link, because the link is at a key of the plan."""
    namespace.ip("link add flannel0-rx type bridge")

    assert target.heal(BOTH) == []

    assert target.snapshot(BOTH) == BOTH


def test_links_with_the_names_of_both_ends_are_replaced(namespace, target):
    """The kernel refuses the first end while the second name is in use. The retry creates both ends again."""
    namespace.ip("link add flannel0-gro type bridge")
    namespace.ip("link add flannel0-rx type bridge")
    operations = pass_operations(BOTH, target.snapshot(BOTH))

    refused = [refusal.operation for refusal in target.apply(*operations)]
    assert refused == operations[:1]
    assert target.apply(*with_losses(refused, BOTH)) == []

    assert target.snapshot(BOTH) == BOTH
