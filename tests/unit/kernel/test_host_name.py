"""The host name that the daemon publishes."""

import os
from types import SimpleNamespace

import pytest

from pyflannel.kernel.host.machine import host_name


def name_host(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(nodename=name))


def test_a_valid_host_name_is_published(monkeypatch: pytest.MonkeyPatch) -> None:
    name_host("docker1", monkeypatch)

    assert host_name() == "docker1"


@pytest.mark.parametrize("name", ["(none)", "my_host", ""])
def test_a_name_that_peers_would_refuse_is_logged_and_not_published(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    name_host(name, monkeypatch)

    assert host_name() is None
    assert f"host_name={name!r}" in caplog.text
