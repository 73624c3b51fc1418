"""The CNI plugin is installed and removed completely and in order. Foreign files remain unchanged."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from pyflannel.commands.cni_plugin import CniPlaces, install, uninstall
from pyflannel.errors import UsageError

SUBNET_FILE = Path("/run/flannel/subnet.env")


@pytest.fixture
def places(tmp_path: Path) -> CniPlaces:
    return CniPlaces(bin_dir=tmp_path / "opt/cni/bin", conf_dir=tmp_path / "etc/cni/net.d")


def program_of(places: CniPlaces) -> Path:
    return places.bin_dir / "flannel"


def conflist_of(places: CniPlaces) -> Path:
    return places.conf_dir / "10-flannel.conflist"


def test_the_installed_program_runs_without_the_virtual_environment(places: CniPlaces) -> None:
    install(places, SUBNET_FILE)
    environment = {"CNI_COMMAND": "VERSION", "PATH": ""}
    done = subprocess.run([program_of(places)], env=environment, capture_output=True, check=True)
    assert json.loads(done.stdout)["cniVersion"] == "1.1.0"
    assert done.stderr == b""


def test_the_program_names_the_remedy_if_the_package_was_removed(places: CniPlaces, tmp_path: Path) -> None:
    install(places, SUBNET_FILE)
    text = program_of(places).read_text()
    package = next(line for line in text.splitlines() if "sys.path" in line).split("'")[1]
    program_of(places).write_text(text.replace(package, str(tmp_path)))
    done = subprocess.run([program_of(places)], capture_output=True, check=False)
    assert done.returncode == 1
    error = json.loads(done.stdout)
    assert str(tmp_path) in error["msg"]
    assert "cni install" in error["details"]


def test_the_configuration_names_another_subnet_file_only_if_it_is_another(places: CniPlaces) -> None:
    install(places, SUBNET_FILE)
    assert "subnetFile" not in json.loads(conflist_of(places).read_text())["plugins"][0]
    conflist_of(places).unlink()
    install(places, Path("/run/flannel/blue.env"))
    assert json.loads(conflist_of(places).read_text())["plugins"][0]["subnetFile"] == "/run/flannel/blue.env"


def test_a_second_installation_changes_nothing(places: CniPlaces) -> None:
    first = install(places, SUBNET_FILE)
    content = program_of(places).read_bytes(), conflist_of(places).read_bytes()
    assert install(places, SUBNET_FILE) == first
    assert content == (program_of(places).read_bytes(), conflist_of(places).read_bytes())


def test_an_original_plugin_is_moved_and_restored(places: CniPlaces) -> None:
    places.bin_dir.mkdir(parents=True)
    places.conf_dir.mkdir(parents=True)
    program_of(places).write_text("original")
    conflist_of(places).write_text('{"name": "cbr0"}')
    report = install(places, SUBNET_FILE)
    assert any("renamed the former" in line for line in report.done)
    assert report.kept
    assert program_of(places).read_text() != "original"
    install(places, SUBNET_FILE)
    uninstall(places)
    assert program_of(places).read_text() == "original"
    assert conflist_of(places).read_text() == '{"name": "cbr0"}'
    assert sorted(os.listdir(places.bin_dir)) == ["flannel"]


def test_removal_leaves_nothing(places: CniPlaces) -> None:
    install(places, SUBNET_FILE)
    uninstall(places)
    assert [*places.bin_dir.iterdir(), *places.conf_dir.iterdir()] == []
    assert uninstall(places).done == []


def test_removal_keeps_a_foreign_program_and_an_edited_configuration(places: CniPlaces) -> None:
    install(places, SUBNET_FILE)
    conflist_of(places).write_text("{}")
    program_of(places).write_text("another")
    report = uninstall(places)
    assert len(report.kept) == 2
    assert program_of(places).exists()
    assert conflist_of(places).exists()


def test_missing_delegates_are_named(places: CniPlaces) -> None:
    [warning] = install(places, SUBNET_FILE).warnings
    assert "bridge, host-local, portmap, loopback" in warning


def test_a_configuration_that_runtimes_prefer_is_named(places: CniPlaces) -> None:
    places.conf_dir.mkdir(parents=True)
    (places.conf_dir / "05-bridge.conflist").write_text("{}")
    assert any("05-bridge.conflist" in line for line in install(places, SUBNET_FILE).warnings)


def test_the_runtimes_that_read_the_directories_are_named(tmp_path: Path, places: CniPlaces) -> None:
    assert any("set both directories" in line for line in install(places, SUBNET_FILE).done)


def test_a_directory_that_cannot_be_written_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    places = CniPlaces(bin_dir=tmp_path / "file/bin", conf_dir=tmp_path)
    with pytest.raises(UsageError, match="file/bin") as caught:
        install(places, SUBNET_FILE)
    assert "--bin-dir" in caught.value.hint
