"""Names of devices are held by one daemon each."""

import os
from itertools import repeat

import pytest

from pyflannel.errors import BusyError
from pyflannel.kernel.host.locks import DeviceClaim


def test_a_name_is_held_until_it_is_let_go() -> None:
    first, second = (f"test{os.getpid()}-{n}" for n in range(2))
    one = DeviceClaim([first, second])
    other = DeviceClaim([first, second])
    assert (one.name, other.name) == (first, second)

    one.close()
    again = DeviceClaim([first, second])

    assert again.name == first
    again.close()
    other.close()


def test_no_name_left_is_said() -> None:
    name = f"test{os.getpid()}-only"
    held = DeviceClaim([name])

    with pytest.raises(BusyError):
        DeviceClaim(repeat(name))

    held.close()
