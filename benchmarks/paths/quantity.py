"""What is measured of several paths, and how two of them compare."""

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
        """What a row of a table, or a chart, is about."""
        return f"{self.name} ({self.unit}){', lower is better' if self.is_less_better else ''}"


Values = Mapping[tuple[str, str], Sequence[float]]
"""By the names of quantity and path, a value a round."""


def spread(values: Sequence[float], form: str = ".3g") -> str:
    """Return the median and the extremes, each in this form."""
    return f"{median(values):{form}} ({min(values):{form}}-{max(values):{form}})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """How a path compares with its reference, which is 1: what the rounds say, each by itself.

    Half of the rounds' ratios lie between the quartiles. With 1 between them too, no difference is shown.
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
        ratios *= 2  # of one value there are no quantiles in Python 3.11
    first, middle, third = quantiles(ratios, n=4, method="inclusive")
    return Ratio(median=middle, first_quartile=first, third_quartile=third)
