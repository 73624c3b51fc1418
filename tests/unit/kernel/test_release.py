"""The release of a kernel is the release that its distribution names."""

import pytest

from pyflannel.kernel.host.machine import exact_release, kernel_release


@pytest.mark.parametrize(
    ("release", "version", "signature", "exact"),
    [
        ("5.4.0-150-generic", "#167-Ubuntu SMP", "Ubuntu 5.4.0-150.167-generic 5.4.233\n", "5.4.233"),
        ("4.19.0-9-amd64", "#1 SMP Debian 4.19.118-2 (2020-04-26)", "", "4.19.118"),
        ("6.1.0-18-amd64", "#1 SMP PREEMPT_DYNAMIC Debian 6.1.76-1 (2024-02-01)", "", "6.1.76"),
        ("5.14.0-362.el9.x86_64", "#1 SMP PREEMPT_DYNAMIC Thu", "", "5.14.0-362.el9.x86_64"),
        ("6.18.0", "#1 SMP", "something else", "6.18.0"),
    ],
)
def test_the_release_after_the_number_of_uname_is_found(
    release: str, version: str, signature: str, exact: str
) -> None:
    assert exact_release(release, version, signature) == exact


def test_the_running_kernel_has_a_release() -> None:
    assert kernel_release()[0].isdigit()
