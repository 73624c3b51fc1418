"""Measured quantities of several paths, and the comparison of two paths."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles


@dataclass(frozen=True, slots=True)
class Quantity:
    """One figure of every path."""

    name: str
    unit: str
    is_less_better: bool = False

    @property
    def label(self) -> str:
        """The label of a row of a table, or of a chart."""
        return f"{self.name} ({self.unit}){', lower is better' if self.is_less_better else ''}"


Values = Mapping[tuple[str, str], Sequence[float]]
"""The values of all rounds, by the names of quantity and path."""


def spread(values: Sequence[float], form: str = ".3g") -> str:
    """Return the median, the minimum and the maximum as text, each in the format `form`."""
    return f"{median(values):{form}} ({min(values):{form}}-{max(values):{form}})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """The ratio of the values of a path to those of its reference path, from the ratios of the rounds.

    Half of the rounds' ratios are between the quartiles. If 1 is also between these two values, the paths do
    not differ measurably.
    """

    median: float
    first_quartile: float
    third_quartile: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.first_quartile:.2f}-{self.third_quartile:.2f})"


def ratio(values: Sequence[float], reference: Sequence[float]) -> Ratio:
    """Compare two paths that were measured one after the other in each round."""
    ratios = [own / beside for own, beside in zip(values, reference, strict=True)]
    if len(ratios) == 1:
        ratios *= 2  # statistics.quantiles needs two values in Python 3.11
    first, middle, third = quantiles(ratios, n=4, method="inclusive")
    return Ratio(median=middle, first_quartile=first, third_quartile=third)
