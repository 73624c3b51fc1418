"""A daemon that speaks no TLS does without OpenSSL, and one that does has it."""

import subprocess
import sys

import pytest

SCRIPT = """
import sys
from pyflannel.assembly.optional_libraries import leave_out_optional_libraries
leave_out_optional_libraries(sys.argv[1:], {})
import pyflannel.assembly.stores, pyflannel.assembly.stores, pyflannel.programs.flanneld_run
print(*(name for name in ("ssl", "_ssl", "_hashlib", "typing_extensions") if sys.modules.get(name)))
"""


def loaded(*flags: str) -> list[str]:
    command = [sys.executable, "-c", SCRIPT, *flags]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.parametrize("flags", [(), ("--etcd-endpoints=http://192.0.2.1:2379",), ("--store=sqlite:///x",)])
def test_openssl_is_left_out_where_nobody_speaks_tls(flags: tuple[str, ...]) -> None:
    """Whoever imports ssl at the top of a module that every daemon loads finds out here."""
    assert loaded(*flags) == []


@pytest.mark.parametrize(
    "flags",
    [
        ("--etcd-endpoints=https://192.0.2.1:2379",),
        ("--store=etcds://192.0.2.1/x",),
        ("--http=127.0.0.1:8471",),
        ("--no-such-flag",),
    ],
)
def test_openssl_is_there_where_somebody_may(flags: tuple[str, ...]) -> None:
    assert "ssl" in loaded(*flags)
