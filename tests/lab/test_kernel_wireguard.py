"""The key file of WireGuard, and the messages if it or a program is unusable."""

import asyncio
import os
import stat
from pathlib import Path

import pytest

from pyflannel.errors import TargetError
from pyflannel.kernel.wireguard.keys import WireguardKeys
from pyflannel.model.wireguard import WireguardFacts

PRIVATE = "uMECOej34HzTVXtNGC3C8j9AQnDlqRa1VigTQK8D01w="
PUBLIC = "fej0p5JlH6L0ABusrvEqJ+O4vku0IDeriGT19bmxSEU="

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="devices are probed, which needs root")


def keys_at(path: Path, original: Path | None = None, objection: str = "") -> WireguardKeys:
    return WireguardKeys(path, original, lambda: objection)


def observed(keys: WireguardKeys) -> WireguardFacts:
    return asyncio.run(keys.observe())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state/wgkey"


def write(path: Path, text: str, mode: int = 0o600) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def test_the_first_start_creates_a_permanent_key(path: Path) -> None:
    before = os.umask(0)
    try:
        first = observed(keys_at(path))
    finally:
        os.umask(before)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(path.read_text()) == 44
    assert observed(keys_at(path)) == first
    assert first.key == first.published != ""


def test_the_file_has_mode_0600_before_it_has_a_key(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []
    really_open = os.open

    def spy(file: str, flags: int, mode: int = 0o777, **more: int) -> int:
        if flags & os.O_CREAT:
            opened.append(mode)
        return really_open(file, flags, mode, **more)

    monkeypatch.setattr(os, "open", spy)
    observed(keys_at(path))

    assert opened == [0o600]


def test_the_key_of_the_original_is_taken_over_once(path: Path, tmp_path: Path) -> None:
    original = tmp_path / "wgkey"
    write(original, PRIVATE, 0o400)

    assert observed(keys_at(path, original)).key == PUBLIC
    original.unlink()
    assert observed(keys_at(path, original)).key == PUBLIC


def test_a_key_file_with_a_line_feed_is_read(path: Path) -> None:
    write(path, f"{PRIVATE}\n", 0o400)

    keys = keys_at(path)

    assert observed(keys).key == PUBLIC
    private = keys.private(PUBLIC)
    assert private is not None
    assert private.reveal() == PRIVATE


@pytest.mark.parametrize(
    ("text", "mode", "why"),
    [
        (PRIVATE, 0o644, "its mode is 0644, so other users may know the key"),
        (PRIVATE, 0o640, "its mode is 0640, so other users may know the key"),
        ("rubbish", 0o600, "it contains no key of 32 bytes in base64"),
        (PRIVATE[:-4], 0o600, "it contains no key of 32 bytes in base64"),
        ("", 0o600, "it contains no key of 32 bytes in base64"),
        ("\x00" * 10000, 0o600, "it contains no key of 32 bytes in base64"),
    ],
)
def test_an_unusable_key_file_is_reported_and_not_changed(path: Path, text: str, mode: int, why: str) -> None:
    write(path, text, mode)

    with pytest.raises(TargetError) as error:
        observed(keys_at(path))

    assert str(error.value) == f"the WireGuard key file {path} is unusable: {why}"
    assert "\n" not in error.value.in_full
    assert path.read_text() == text


def test_a_directory_or_a_symbolic_link_is_refused_as_key_file(path: Path) -> None:
    path.mkdir(parents=True)
    with pytest.raises(TargetError, match="not a regular file"):
        observed(keys_at(path))
    path.rmdir()
    path.symlink_to("/etc/hostname")
    with pytest.raises(TargetError, match="ELOOP"):
        observed(keys_at(path))


def test_a_missing_wg_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(path.parent))

    with pytest.raises(TargetError) as error:
        observed(keys_at(path))

    assert error.value.in_full == "wg is not installed. Install wireguard-tools."


def test_wireguard_go_is_required_only_without_wireguard_in_the_kernel(path: Path) -> None:
    facts = observed(keys_at(path, objection="wireguard-go, which is not installed"))

    assert facts.problem == ("" if facts.is_in_kernel else "wireguard-go, which is not installed")


def test_a_prepared_key_replaces_the_current_one_only_when_it_is_promoted(path: Path) -> None:
    async def rotate() -> tuple[str, str, str]:
        keys = keys_at(path)
        first = await keys.observe()
        discarded = await keys.prepare()
        assert stat.S_IMODE(path.with_name("wgkey.next").stat().st_mode) == 0o600
        await keys.discard()
        assert (await keys.observe()) == first
        promoted = await keys.prepare()
        await keys.promote()
        assert (await keys.observe()).key == promoted
        return first.key, discarded, promoted

    assert len(set(asyncio.run(rotate()))) == 3
    assert [file.name for file in path.parent.iterdir()] == ["wgkey"]


def test_a_prepared_key_left_by_a_crash_is_discarded(path: Path) -> None:
    write(path, PRIVATE)
    write(path.with_name("wgkey.next"), PRIVATE)

    observed(keys_at(path))

    assert [file.name for file in path.parent.iterdir()] == ["wgkey"]
