"""Measures paths alternately in rounds, so that disturbances affect all paths."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from command.output import step
from paths.path import Path
from paths.quantity import Quantity, Values


@dataclass(frozen=True, slots=True)
class Measurement:
    """An action on a path, and the resulting figures."""

    measure: Callable[[Path], Sequence[float]]
    quantities: tuple[Quantity, ...]


def measure_in_turn(paths: Sequence[Path], measurements: Sequence[Measurement], rounds: int) -> Values:
    """Measure each quantity on all paths in this number of rounds.

    Every second round has the reverse order.
    """
    values: dict[tuple[str, str], list[float]] = {}
    for measurement in measurements:
        for number in range(rounds):
            step(f"{measurement.quantities[0].name}, round {number + 1} of {rounds}")
            for path in paths if number % 2 else reversed(paths):
                for quantity, value in zip(measurement.quantities, measurement.measure(path), strict=True):
                    values.setdefault((quantity.name, path.name), []).append(value)
    return values
