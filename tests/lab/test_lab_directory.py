"""The directory of a lab, where others remove what killed runs left."""

import os
import threading
from collections.abc import Iterator

import pytest

from pyflannel.lab.lab_directory import LabDirectory, nobody_removes

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the labs' directory is root's")

LOOK_S = 0.2


@pytest.fixture
def home() -> Iterator[LabDirectory]:
    home = LabDirectory(f"u{os.getpid()}-dir")
    yield home
    home.remove()


def test_a_lab_is_not_begun_where_somebody_may_take_it_for_remains(home: LabDirectory) -> None:
    beginning = threading.Thread(target=home.acquire)

    with nobody_removes():
        beginning.start()
        beginning.join(LOOK_S)
        is_there = home.path.exists()

    beginning.join()
    assert not is_there
    assert home.path.exists()
    assert not home.take()
