"""The kernel's part of the fast path, as the engine judges it."""

from typing import Protocol

from pyflannel.model.feature import Feature
from pyflannel.model.remark import Remark


class KernelPath(Protocol):
    """Says what there is, and what nobody can mend. Neither raises, nor takes more than milliseconds."""

    def features(self) -> tuple[Feature, ...]:
        """Return what there is of what the fast path uses, asked anew."""

    def remarks(self, device: str) -> tuple[Remark, ...]:
        """Return what the latest look found of the tunnel of `device` that no repair helps."""


class PlainKernelPath:
    """One of which nothing is known beforehand: whatever is planned is tried."""

    def features(self) -> tuple[Feature, ...]:
        """Return nothing."""
        return ()

    def remarks(self, device: str) -> tuple[Remark, ...]:
        """Return nothing."""
        return ()
