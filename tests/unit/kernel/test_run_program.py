"""Programs that flanneld runs inherit the variables that they need, and no others."""

import asyncio

import pytest

from pyflannel.kernel.filters.programs import run_program


def test_a_program_inherits_neither_secrets_nor_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """An extension of iptables cannot read a password of the store."""
    for name in (
        "FLANNELD_ETCD_PASSWORD",
        "ETCDCTL_PASSWORD",
        "NOTIFY_SOCKET",
        "LD_PRELOAD",
        "XTABLES_LIBDIR",
    ):
        monkeypatch.setenv(name, "of the daemon")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")

    ran = asyncio.run(run_program("env"))

    assert sorted(ran.output.split("\n")) == [
        "",
        "LC_ALL=C",
        "PATH=/usr/bin:/bin",
        "XTABLES_LIBDIR=of the daemon",
    ]
