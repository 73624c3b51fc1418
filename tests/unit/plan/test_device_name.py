"""Which name a daemon's device gets."""

from itertools import islice

import pytest

from pyflannel.model.interface import Interface, Interfaces
from pyflannel.plan.device_name import device_names

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
