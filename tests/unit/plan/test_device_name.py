"""Which name a daemon's device gets."""

from itertools import islice

import pytest

from pyflannel.model.host import Interface, Interfaces
from pyflannel.model.route import DEVICES, PROTOCOLS, route_protocol
from pyflannel.plan.ownership import device_names

BLUE = "pyflannel /run/blue"


def host(**aliases: str) -> Interfaces:
    return Interfaces(
        interfaces=tuple(
            Interface(name=name, index=index, mtu=1472, kind="tun", alias=alias)
            for index, (name, alias) in enumerate(aliases.items(), start=1)
        )
    )


@pytest.mark.parametrize(
    ("mark", "interfaces", "names"),
    [
        ("pyflannel", host(), ["flannel0", "flannel0", "flannel1"]),
        ("pyflannel", host(flannel0="pyflannel"), ["flannel0", "flannel1"]),
        ("pyflannel", host(flannel0=""), ["flannel0", "flannel1"]),
        ("pyflannel", host(flannel0=BLUE), ["flannel1", "flannel2"]),
        (BLUE, host(flannel0="pyflannel"), ["flannel1", "flannel2"]),
        (BLUE, host(flannel0="pyflannel", flannel3=BLUE), ["flannel3", "flannel1", "flannel2"]),
        (BLUE, host(flannel0=""), ["flannel1", "flannel2"]),
        (BLUE, host(), ["flannel0", "flannel1"]),
    ],
)
def test_our_device_first_and_then_free_names(mark: str, interfaces: Interfaces, names: list[str]) -> None:
    assert list(islice(device_names(mark, interfaces), len(names))) == names


def test_the_name_of_the_last_life_comes_first() -> None:
    """With vxlan and host-gw no device has that name; one that somebody else made meanwhile is his."""
    assert next(device_names(BLUE, host(), kept="flannel3")) == "flannel3"
    assert next(device_names(BLUE, host(flannel3=BLUE), kept="flannel3")) == "flannel3"
    assert next(device_names(BLUE, host(flannel3="his"), kept="flannel3")) == "flannel0"
    assert next(device_names("pyflannel", host(), kept="../etc")) == "flannel0"


def test_the_name_of_a_daemon_that_is_down_is_left_to_it() -> None:
    """Its routes are there; but flannel0's are taken over by the host's only daemon."""
    assert next(device_names(BLUE, host(), protocols={2, 3, 80, 101})) == "flannel2"
    assert next(device_names("pyflannel", host(), protocols={2, 3, 80, 101})) == "flannel0"


def test_each_name_has_a_protocol_of_its_own() -> None:
    """None of them is another program's, as far as is known."""
    protocols = [route_protocol(name) for name in DEVICES]
    others = {*range(19), 42, 84, 99, *range(186, 199), 248, 253}

    assert protocols[:3] == [80, 101, 102]
    assert len(set(protocols)) == len(protocols)
    assert set(protocols) == PROTOCOLS
    assert not PROTOCOLS & others
    assert max(PROTOCOLS) < 256
