"""Kernels and drivers with wrong checksums in tunnels are recognized, and no others."""

import pytest

from pyflannel.plan.backend.vxlan import checksum_trap


@pytest.mark.parametrize(
    "kernel",
    [
        "5.6.12",
        "5.6",
        "5.4.40",
        "4.19.122",
        "4.14.180",
        "5.5.19",
        "5.0.0-31-generic",
        "4.15.18",
        "3.10.0-1160",
    ],
)
def test_kernels_before_the_fix_corrupt_checksums(kernel: str) -> None:
    assert kernel in (checksum_trap(kernel, "veth") or "")


@pytest.mark.parametrize(
    "kernel",
    ["5.6.13", "5.4.41", "4.19.123", "4.14.181", "5.7", "5.7.0-rc1", "5.10.0-8-amd64", "6.18.0", "", "hurd"],
)
def test_kernels_with_the_fix_do_not_corrupt_checksums(kernel: str) -> None:
    """An unknown kernel counts as correct, because throughput must not be reduced without evidence."""
    assert checksum_trap(kernel, "e1000") is None


def test_the_cards_of_vmware_corrupt_checksums_with_any_kernel() -> None:
    assert "vmxnet3" in (checksum_trap("6.18.0", "vmxnet3") or "")
