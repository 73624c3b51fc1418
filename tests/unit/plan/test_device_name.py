"""The choice of the device name of a daemon."""

from itertools import islice

import pytest
from msgspec.structs import replace

from pyflannel.model.host import Interface, Interfaces
from pyflannel.model.route import DEVICES, PROTOCOLS, route_protocol
from pyflannel.plan.ownership import device_names, identity_on_device

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
def test_the_own_device_is_first_and_then_free_names(
    mark: str, interfaces: Interfaces, names: list[str]
) -> None:
    assert list(islice(device_names(mark, interfaces), len(names))) == names


def test_the_name_of_the_previous_run_is_first() -> None:
    """With vxlan and host-gw, no device has that name.

    A device of another program with that name is not used.
    """
    assert next(device_names(BLUE, host(), kept="flannel3")) == "flannel3"
    assert next(device_names(BLUE, host(flannel3=BLUE), kept="flannel3")) == "flannel3"
    assert next(device_names(BLUE, host(flannel3="his"), kept="flannel3")) == "flannel0"
    assert next(device_names("pyflannel", host(), kept="../etc")) == "flannel0"


def test_the_name_of_a_daemon_that_is_not_running_is_not_used() -> None:
    """The routes of that daemon still exist. If a host has only one daemon, this daemon adopts the routes of
    flannel0.
    """
    assert next(device_names(BLUE, host(), protocols={2, 3, 80, 101})) == "flannel2"
    assert next(device_names("pyflannel", host(), protocols={2, 3, 80, 101})) == "flannel0"


def test_each_name_has_its_own_protocol() -> None:
    """No known program uses one of these protocols."""
    protocols = [route_protocol(name) for name in DEVICES]
    others = {*range(19), 42, 84, 99, *range(186, 199), 248, 253}

    assert protocols[:3] == [80, 101, 102]
    assert len(set(protocols)) == len(protocols)
    assert set(protocols) == PROTOCOLS
    assert not PROTOCOLS & others
    assert max(PROTOCOLS) < 256


OWNER, OTHER = "a" * 32, "b" * 32


def owned(interfaces: Interfaces, *owners: str) -> Interfaces:
    """Return the interfaces with these identities."""
    named = zip(interfaces.interfaces, owners, strict=True)
    return Interfaces(interfaces=tuple(replace(one, owner=owner) for one, owner in named))


@pytest.mark.parametrize(
    ("mark", "claimed", "interfaces", "found"),
    [
        ("pyflannel", "flannel0", owned(host(flannel0="pyflannel"), OWNER), OWNER),
        ("pyflannel", "flannel0", owned(host(flannel_1="pyflannel"), OWNER), OWNER),
        (BLUE, "flannel1", owned(host(flannel0="pyflannel", flannel1=BLUE), OTHER, OWNER), OWNER),
        ("pyflannel", "flannel0", host(flannel0="pyflannel"), None),
        ("pyflannel", "flannel0", host(), None),
    ],
    ids=["udp", "vxlan", "second daemon", "older version", "no device"],
)
def test_the_device_of_an_ended_daemon_has_its_identity(
    mark: str, claimed: str, interfaces: Interfaces, found: str | None
) -> None:
    assert identity_on_device(mark, claimed, interfaces) == found


@pytest.mark.parametrize(
    ("mark", "claimed", "interfaces"),
    [
        ("pyflannel", "flannel1", owned(host(flannel0="pyflannel"), OWNER)),
        ("pyflannel", "flannel1", owned(host(flannel_1="pyflannel"), OWNER)),
        (BLUE, "flannel1", owned(host(flannel_1=BLUE), OWNER)),
        (BLUE, "flannel1", owned(host(flannel1="pyflannel"), OWNER)),
        ("pyflannel", "flannel0", owned(host(flannel0="pyflannel", flannel_1="pyflannel"), OWNER, OTHER)),
    ],
    ids=["udp", "vxlan", "vxlan of a second daemon", "another daemon's device", "two identities"],
)
def test_the_identity_of_a_daemon_that_may_still_run_is_not_taken(
    mark: str, claimed: str, interfaces: Interfaces
) -> None:
    """That daemon would hold the name flannel0, or the name of the device."""
    assert identity_on_device(mark, claimed, interfaces) is None
