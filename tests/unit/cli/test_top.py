"""The screen of flannelctl top: order, filter, width, colours and keys; and the terminal after its end."""

import asyncio
import re
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
from msgspec.structs import replace

from pyflannel import VERSION
from pyflannel.cli.answers import size
from pyflannel.cli.top_texts import Order, fitting, listed, verdict
from pyflannel.commands.live_view import LivePeer, Moment, Rates
from pyflannel.model.lease import PeerEntry
from pyflannel.model.status import BackendStatus, JournalEntry, Notice, Status, StoreStatus
from pyflannel.programs.flannelctl import run
from testlab.control_socket import serving
from testlab.shown_network import ShownHosts

if TYPE_CHECKING:
    from textual.pilot import Pilot

    from testlab.terminal import Terminal

STATUS = Status(
    version=VERSION,
    host_name="docker1",
    is_ready=True,
    backend=BackendStatus(type="vxlan", link="flannel.1", mtu=1450),
    store=StoreStatus(url="etcd://10.10.10.1:2379/coreos.com/network", is_connected=True),
)


def peer(
    number: int,
    *,
    name: str | None = None,
    answers: bool | None = True,
    rtt_ms: float | None = 0.4,
    refused: str | None = None,
    received: float | None = None,
    sent: float | None = None,
) -> LivePeer:
    entry = PeerEntry(
        subnet=IPv4Network((int(IPv4Address("10.100.0.0")) + 256 * number, 24)),
        public_ip=IPv4Address("192.0.2.0") + number,
        backend_type="vxlan",
        host_name=name or f"docker{number}",
        refused=refused,
        is_reached=None if refused else answers,
        rtt_ms=rtt_ms if answers and not refused else None,
    )
    loss = None if entry.is_reached is None else float(not answers)
    return LivePeer(entry=entry, loss=loss, received=received, sent=sent)


def moment(*peers: LivePeer, **more: Any) -> Moment:
    return replace(Moment(status=STATUS, peers=peers), **more)


FIVE = moment(
    peer(2, rtt_ms=3.0),
    peer(3, answers=False),
    peer(4, refused="it is not on the link of this host"),
    peer(5, answers=None),
    peer(6, rtt_ms=0.2),
    events=(JournalEntry(at=1.0, event="repaired", found="route 10.100.7.0/24: missing"),),
    rates=(Rates(1_200_000.0, 3_000.0),),
)


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (moment(peer(2), peer(3)), "● all is well: 2 peers answer"),
        (moment(peer(2)), "● all is well: the peer answers"),
        (moment(), "● ready, without peers"),
        (moment(peer(2, answers=None)), "○ ready, 1 peer"),
        (moment(peer(2), peer(3, answers=None)), "● 1 of 2 peers answer so far"),
        (moment(peer(2), peer(3, answers=False)), "✕ docker3 does not answer"),
        (moment(peer(2, answers=False), peer(3, answers=False)), "✕ 2 of 2 peers do not answer"),
        (moment(peer(2), peer(3, refused="it is far")), "! this host does not send to 1 peer"),
        (moment(status=replace(STATUS, warnings=("a clone",))), "! ready, with a warning"),
        (moment(status=replace(STATUS, store=StoreStatus(url=""))), "! ready, but the store is unreachable"),
        (
            moment(status=replace(STATUS, is_ready=False, waiting_for="a lease")),
            "✕ not ready: waiting for a lease",
        ),
        (moment(trouble=Notice("no answer within 2.5 s")), "✕ no answer within 2.5 s"),
    ],
)
def test_the_first_line_states_whether_the_host_is_ready(shown: Moment, expected: str) -> None:
    symbol, _, text = verdict(shown)

    assert f"{symbol} {text}" == expected


def numbers(shown: Moment, order: Order, words: str = "") -> list[int]:
    return [int(one.entry.subnet.network_address) >> 8 & 255 for one in listed(shown, order, words)]


def test_peers_with_a_problem_are_listed_first() -> None:
    assert numbers(FIVE, Order()) == [3, 4, 5, 2, 6]
    assert numbers(FIVE, Order(is_reversed=True)) == [2, 6, 5, 4, 3]


def test_numbers_are_sorted_with_the_greatest_first_and_unknown_ones_last() -> None:
    assert numbers(FIVE, Order("rtt")) == [2, 6, 3, 4, 5]
    assert numbers(FIVE, Order("rtt", is_reversed=True)) == [6, 2, 3, 4, 5]


def test_subnets_and_addresses_are_sorted_as_numbers() -> None:
    shown = moment(peer(100), peer(9))

    assert numbers(shown, Order("subnet")) == numbers(shown, Order("address")) == [9, 100]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("docker3", [3]),
        ("NO answer", [3]),
        ("10.100.6", [6]),
        ("192.0.2.2", [2]),
        ("link", [4]),
        ("elsewhere", []),
    ],
)
def test_the_filter_finds_words_in_each_text(words: str, expected: list[int]) -> None:
    assert numbers(FIVE, Order(), words) == expected


def test_sizes_have_three_digits_and_a_unit() -> None:
    assert [size(one) for one in (0, 999, 1000, 99_600, 1_250_000, 3e9, 7e15)] == [
        "0 B", "999 B", "1.0 kB", "100 kB", "1.2 MB", "3.0 GB", "7000 TB",
    ]  # fmt: skip


Life = Callable[["Pilot[None]", Callable[..., Awaitable[str]]], Awaitable[None]]


_HOPS = 4
"""Number of rounds of messages after a key: the screen, the focused widget, the list, the other parts."""


def on_screen(shown: Moment, life: Life, columns: int = 80, lines: int = 24) -> None:
    """Run the screen without a terminal. `life` gets a function that presses keys and returns the text."""
    from pyflannel.cli.top_screen import Top

    async def main() -> None:
        screen = Top()

        async def settled(*_: float) -> None:
            """Return when all messages are processed. textual would wait until the process uses no
            processor, which takes long on a busy machine.
            """
            for _round in range(_HOPS):
                await pilot._wait_for_screen()

        async with screen.run_test(size=(columns, lines)) as pilot:
            stack.enter_context(mock.patch("textual.app.wait_for_idle", settled))
            stack.enter_context(mock.patch("textual.pilot.wait_for_idle", settled))

            async def press(*keys: str) -> str:
                await pilot.press(*keys)
                await pilot.pause()
                return "\n".join(strip.text.rstrip() for strip in screen.screen._compositor.render_strips())

            screen.show(shown)
            await life(pilot, press)

    with ExitStack() as stack:
        asyncio.run(main())


def words_of(text: str) -> str:
    """Return the text without line breaks and the spaces between columns."""
    return " ".join(text.split())


def rows_of(text: str) -> list[str]:
    """Return the first words of the lines below the headings of the list."""
    words = [line.split() for line in text.splitlines()]
    start = next(place for place, line in enumerate(words) if line[:1] == ["HOST"]) + 1
    return [line[0] for line in words[start : start + 5] if line]


def test_the_keys_sort_reverse_and_filter() -> None:
    async def life(pilot: "Pilot[None]", press: Callable[..., Awaitable[str]]) -> None:
        assert rows_of(await press())[:2] == ["docker3", "docker4"]
        assert rows_of(await press("s", "r"))[:2] == ["docker6", "docker5"]
        assert "5  2 with 'DOCKER5'" not in (text := await press("slash", *"ocker5"))
        assert rows_of(text)[:1] == ["docker5"]
        assert "1 with 'ocker5'" in text
        assert rows_of(await press("enter"))[:1] == ["docker5"]
        assert rows_of(await press("escape"))[:2] == ["docker6", "docker5"]
        assert "EVENTS" not in await press("e")

    on_screen(FIVE, life)


def test_a_selected_peer_shows_the_reason_and_stays_selected_when_the_order_changes() -> None:
    async def life(pilot: "Pilot[None]", press: Callable[..., Awaitable[str]]) -> None:
        reason = "docker4 refused: it is not on the link of this host"
        assert reason in words_of(await press("down", "down"))
        pilot.app.show(replace(FIVE, peers=(*FIVE.peers[:2], replace(FIVE.peers[2], loss=0.0), peer(7))))
        assert reason in words_of(await press("s", "s", "r"))
        pilot.app.show(moment(peer(7)))
        assert "refused" not in await press()

    on_screen(FIVE, life)


def test_a_thousand_peers_can_be_reached_by_keys() -> None:
    thousand = moment(*(peer(number, name=f"host{number}") for number in range(2, 1002)))

    async def life(pilot: "Pilot[None]", press: Callable[..., Awaitable[str]]) -> None:
        assert "PEERS  1,000" in await press()
        assert "host1001 " in await press("end")
        assert rows_of(await press("home"))[0] == "host2"
        started = time.process_time()
        for _ in range(5):
            pilot.app.show(thousand)
            await press()
        assert (time.process_time() - started) / 5 < 0.5  # half of the time between two updates

    on_screen(thousand, life)


def test_each_width_shows_the_columns_that_fit() -> None:
    shown = moment(*(replace(one, received=1e6, sent=2e6) for one in FIVE.peers))

    for columns, headings in (
        (60, "HOST SUBNET STATE ▴ RTT LOSS"),
        (80, "HOST SUBNET ADDRESS STATE ▴ RTT LOSS IN"),
        (120, "HOST SUBNET ADDRESS PATH STATE ▴ RTT LOSS IN OUT"),
    ):

        async def life(
            pilot: "Pilot[None]",
            press: Callable[..., Awaitable[str]],
            headings: str = headings,
            most: int = columns,
        ) -> None:
            text = await press("down")
            assert headings in [" ".join(line.split()) for line in text.splitlines()]
            assert all(len(line) <= most for line in text.splitlines())

        on_screen(shown, life, columns)


def test_a_peer_that_stops_answering_moves_no_column() -> None:
    before, after = moment(peer(2), peer(3)), moment(peer(2, answers=False), peer(3, answers=False))

    assert fitting(before, 100) == fitting(after, 100)


def test_another_size_of_the_window_is_used_immediately() -> None:
    """The next data may arrive only after several seconds."""

    async def life(pilot: "Pilot[None]", press: Callable[..., Awaitable[str]]) -> None:
        wide = (await press()).splitlines()
        await pilot.resize_terminal(60, 14)
        low = (await press()).splitlines()
        assert (len(wide), len(low)) == (24, 14)
        assert words_of(wide[-1]) == words_of(low[-1])
        assert len(facts_of(wide)) > len(facts_of(low)) > 0

    on_screen(FIVE, life)


def facts_of(lines: Sequence[str]) -> list[str]:
    return [line for line in lines if line.split()[:1] in (["backend"], ["store"], ["traffic"])]


def test_the_picture_in_the_guide_shows_the_present_screen() -> None:
    picture = (Path(__file__).parents[3] / "docs/top.svg").read_text()
    shown = words_of(re.sub(r"<[^>]*>", " ", picture).replace("&#160;", " "))

    async def life(pilot: "Pilot[None]", press: Callable[..., Awaitable[str]]) -> None:
        lines = (await press()).splitlines()
        keys = words_of(lines[-1])
        (headings,) = (words_of(line) for line in lines if line.split()[:2] == ["HOST", "SUBNET"])
        assert headings in shown
        assert keys in shown

    on_screen(FIVE, life)


def test_text_of_other_hosts_controls_neither_the_terminal_nor_the_layout() -> None:
    hostile = moment(
        peer(2, name="\x1b]0;x\x07[bold]\n" + "a" * 300), peer(3, name="[/red]"), peer(4, name="日本" * 30)
    )

    async def life(pilot: "Pilot[None]", press: Callable[..., Awaitable[str]]) -> None:
        text = await press("down")
        assert "\x1b" not in text
        assert "[/red]" in text
        assert re.search("[日本] ?… +10.100.4.0", text)
        assert sum("● answers" in line for line in text.splitlines()) == 3

    on_screen(hostile, life)


# The real program, on a new terminal.


class Daemon:
    """A control socket that a test starts and stops."""

    def __init__(self, socket: Path, peers: int = 3) -> None:
        self.socket = socket
        self.hosts = ShownHosts(peers)

    async def status(self) -> Status:
        return replace(await self.hosts.status(), version=VERSION)

    def __getattr__(self, name: str) -> object:
        return getattr(self.hosts, name)

    def running(self) -> AbstractContextManager[None]:
        return serving(self.socket, self)


@pytest.fixture
def daemon(tmp_path: Path) -> Daemon:
    return Daemon(tmp_path / "flanneld.sock")


_QUICK = """
from pyflannel.commands import live_view
from pyflannel.programs.flannelctl import main

live_view.LOOK_S = 0.1
main()
"""


def top(daemon: Daemon, *more: str, **environment: str) -> "Terminal":
    from testlab.terminal import Terminal

    places = [f"--{name}={daemon.socket.parent / name}" for name in ("run-dir", "state-dir", "subnet-file")]
    return Terminal(
        [sys.executable, "-c", _QUICK, "top", f"--socket={daemon.socket}", *places, *more],
        environment=environment,
    )


def test_the_screen_follows_the_daemon_through_joins_and_a_restart(daemon: Daemon) -> None:
    with top(daemon) as terminal:
        with daemon.running():
            terminal.wait("docker4")
            terminal.resize(60, 20)
            terminal.wait(lambda text: "ADDRESS" not in text and "docker4" in text)
            daemon.hosts.add()
            terminal.wait("docker5")
            terminal.type("/10.100.5.0/24\r")  # all at once, as if pasted
            terminal.wait(lambda text: "1 with '10.100.5.0/24'" in text and "docker4" not in text)
        terminal.wait(lambda text: "flanneld does not respond" in text and "docker5" in text)
        with daemon.running():
            terminal.wait(lambda text: "does not respond" not in text and "docker5" in text)
            terminal.type("q")
            assert terminal.wait_ended() == 0
        assert terminal.is_restored
        assert colours_in(terminal.received)


def test_ctrl_c_restores_the_terminal_and_the_variable_no_color_disables_colors(daemon: Daemon) -> None:
    with daemon.running(), top(daemon, NO_COLOR="1") as terminal:
        terminal.wait("docker4")
        terminal.type("\x03")

        assert terminal.wait_ended() == 0
        assert terminal.is_restored
        assert colours_in(terminal.received) == set()


def colours_in(text: str) -> set[int]:
    """Return the codes that set a colour of the foreground or the background (ECMA-48, SGR)."""
    codes = {
        int(code) for codes in re.findall(r"\x1b\[([0-9;]+)m", text) for code in codes.split(";") if code
    }
    return codes & {*range(30, 39), *range(40, 49), *range(90, 98), *range(100, 108)}


def test_without_a_terminal_the_error_names_other_commands(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["top"]) == 2

    error = capfd.readouterr().err
    assert "flannelctl top needs a terminal" in error
    assert "flannelctl status" in error
    assert "flannelctl peers" in error


def test_without_textual_the_error_names_the_directory_to_install_textual(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delitem(sys.modules, "pyflannel.cli.top_screen", raising=False)
    monkeypatch.setitem(sys.modules, "textual", None)

    assert run(["top"]) == 1

    error = capfd.readouterr().err
    assert "needs the Python package textual" in error
    assert f"Install textual into {sys.prefix}" in error
