"""systemctl stops a service and gets no secret of the daemon."""

import asyncio
from pathlib import Path

import pytest

from pyflannel.processes.systemd import stop_service


def test_systemctl_inherits_neither_secrets_nor_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    systemctl = tmp_path / "systemctl"
    systemctl.write_text(f'#!/bin/sh\necho "$*" > {tmp_path}/words\nenv > {tmp_path}/variables\n')
    systemctl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("FLANNELD_ETCD_PASSWORD", "secret")

    asyncio.run(stop_service("flanneld.service", 10.0))

    assert (tmp_path / "words").read_text() == "stop flanneld.service\n"
    assert "secret" not in (tmp_path / "variables").read_text()
