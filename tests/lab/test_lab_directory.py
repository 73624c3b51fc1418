"""The directory of a lab, and its protection from programs that remove remains and shared objects."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyflannel.lab import program
from pyflannel.lab.lab_directory import LabDirectory, without_removals

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the labs' directory is root's")

LOOK_S = 0.2


@pytest.fixture
def home() -> Iterator[LabDirectory]:
    home = LabDirectory(f"u{os.getpid()}-dir")
    yield home
    home.remove()


def test_a_new_lab_is_not_treated_as_remains_of_a_killed_run(home: LabDirectory) -> None:
    beginning = threading.Thread(target=home.acquire)

    with without_removals():
        beginning.start()
        beginning.join(LOOK_S)
        is_there = home.path.exists()

    beginning.join()
    assert not is_there
    assert home.path.exists()
    assert not home.take()


def test_shared_objects_stay_while_a_lab_exists(
    home: LabDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program of the lab may be about to create a control group there."""
    monkeypatch.setattr(program, "_HIERARCHIES", tmp_path)
    root = tmp_path / "memory" / program.ROOT
    other = LabDirectory(f"{home.name}-2")
    home.acquire()
    other.acquire()
    (root / other.name).mkdir(parents=True)

    other.remove()

    assert list(root.iterdir()) == []
