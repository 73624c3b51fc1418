"""flannelctl top: the texts on its screen, from top to bottom. `cli.top_screen` draws the texts.

The terminal defines the colours. Each state also has a symbol and a word, so the screen is readable without
colours.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime

from msgspec import Struct
from rich.cells import cell_len, set_cell_size
from rich.style import Style
from rich.text import Text

from pyflannel import VERSION
from pyflannel.cli.answers import both, duration, handshake, size
from pyflannel.cli.status import facts
from pyflannel.commands.live_view import LivePeer, Moment, Rates
from pyflannel.errors import one_line
from pyflannel.model.status import JournalEntry

# The states of peers.

BAD, WARN, GOOD, DIM, BOLD = (Style.parse(text) for text in ("bold red", "yellow", "green", "dim", "bold"))

_STATES = ("no answer", "refused", "not probed", "answers")
"""The states of a peer in the order in which they are listed."""

SYMBOLS = {
    "no answer": ("✕", BAD),
    "refused": ("!", WARN),
    "not probed": ("○", DIM),
    "answers": ("●", GOOD),
}

_LONGEST_NAME = 28
"""Maximum width of a host name in the list; the line of the selected peer shows it in full."""

_NOTICES = 3
"""Maximum number of notices below the first line."""


def state_of(peer: LivePeer) -> str:
    """Return the state of a peer in words."""
    if peer.entry.refused is not None:
        return "refused"
    if peer.entry.is_reached is None:
        return "not probed"
    return "answers" if peer.entry.is_reached else "no answer"


def counts(moment: Moment) -> Counter[str]:
    """Return the number of peers in each state that occurs, in the order of the states."""
    found = Counter(map(state_of, moment.peers))
    return Counter({state: found[state] for state in _STATES if found[state]})


def name_of(peer: LivePeer) -> str:
    """Return the host name of a peer, or its address."""
    return one_line(peer.entry.host_name or str(peer.entry.public_ip), 256)


def _rtt(peer: LivePeer) -> str:
    rtt = peer.entry.rtt_ms
    return "" if rtt is None else f"{rtt:.2f} ms" if rtt < 10 else f"{rtt:.0f} ms"


def _rate(bytes_s: float | None) -> str:
    return "" if bytes_s is None else f"{size(bytes_s)}/s"


def _path(moment: Moment, peer: LivePeer) -> str:
    """Return the path of packets to a peer."""
    backend = peer.entry.backend_type or (moment.status.backend.type if moment.status.backend else "udp")
    if backend == "udp" and (fast_path := moment.status.fast_path) is not None:
        return "udp, kernel" if fast_path.mode in ("safe", "flow") else "udp, user space"
    return one_line(backend, 64)


# The first lines: whether all is well, and the facts of the host.


def verdict(moment: Moment) -> tuple[str, Style, str]:
    """Return the symbol, the style and the text of the first line: whether all is well."""
    kind, text = _verdict(moment)
    symbol, style = SYMBOLS[kind]
    return symbol, style, one_line(text)


def _verdict(moment: Moment) -> tuple[str, str]:
    if moment.trouble is not None:
        return "no answer", moment.trouble.text
    status, peers = moment.status, moment.peers
    if not status.is_ready:
        reason = f": waiting for {status.waiting_for}" if status.waiting_for else ""
        return "no answer", f"not ready{reason}"
    number = counts(moment)
    if number["no answer"]:
        silent = next(peer for peer in peers if state_of(peer) == "no answer")
        if number["no answer"] == 1:
            return "no answer", f"{name_of(silent)} does not answer"
        return "no answer", f"{number['no answer']:,} of {len(peers):,} peers do not answer"
    if number["refused"]:
        return "refused", f"this host does not send to {_peers(number['refused'])}"
    if status.store is not None and not status.store.is_connected:
        return "refused", "ready, but the store is unreachable"
    if status.warnings:
        return "refused", "ready, with a warning"
    if not peers:
        return "answers", "ready, without peers"
    if number["not probed"] == len(peers):
        return "not probed", f"ready, {_peers(len(peers))}"
    if number["not probed"]:
        return "answers", f"{number['answers']:,} of {_peers(len(peers))} answer so far"
    return "answers", "all is well: " + (
        "the peer answers" if len(peers) == 1 else f"{len(peers):,} peers answer"
    )


def _peers(number: int) -> str:
    return "1 peer" if number == 1 else f"{number:,} peers"


def notices(moment: Moment) -> list[str]:
    """Return the remedies and warnings, one line each."""
    status = moment.status
    found = []
    if moment.trouble is not None:
        found.append(moment.trouble.hint)
        if moment.silent_s is not None:
            found.append(
                f"The last answer was {duration(moment.silent_s)} ago. The peers are those of that answer;"
                " flannelctl still probes them."
            )
        elif moment.peers:
            found.append("The peers are those of the last run of flanneld; flannelctl probes them.")
    elif status.version != VERSION:
        found.append(f"flanneld has version {status.version}, and this flannelctl {VERSION}.")
    if moment.probe_trouble is not None:
        found.append(f"Peers are not probed: {moment.probe_trouble}")
    found += status.warnings
    if len(found) > _NOTICES:
        found = [*found[: _NOTICES - 1], f"{len(found) - _NOTICES + 1} more: see flannelctl status"]
    return [one_line(text) for text in found if text]


_FACTS = ("network", "lease", "backend", "fast path", "store", "repairs")
_VITAL_FACTS = ("store", "repairs", "lease", "backend", "network", "fast path")
"""The facts from top to bottom, and by importance. A low screen shows only the most important facts."""


def summary(moment: Moment, width: int, height: int) -> Text:
    """Return the first lines, for a screen of this size. A low screen shows only the important facts."""
    symbol, style, text = verdict(moment)
    host = one_line(moment.status.host_name or "", 64)
    lines = [Text.assemble((f"{host}  " if host else "", BOLD), (f"{symbol} {text}", style))]
    lines += [Text(one, WARN) for one in notices(moment)]
    known = dict(facts(moment.status))
    places = [name for name in _VITAL_FACTS if name in known][: max(0, (height - 12) // 2)]
    lines += [_fact(name, Text(one_line(known[name])), width) for name in _FACTS if name in places]
    if moment.rates:
        lines.append(_fact("traffic", _traffic(moment.rates, width), width))
    return Text("\n").join(lines)


def _fact(name: str, value: Text, width: int) -> Text:
    line = Text.assemble((f"{name:<10}", DIM), value, no_wrap=True)
    line.truncate(max(width, 1), overflow="ellipsis")
    return line


_BARS = "▁▂▃▄▅▆▇█"


def _traffic(rates: Sequence[Rates], width: int) -> Text:
    """Return the latest rates in both directions, and the earlier rates as bars with the same scale."""
    most = max(1.0, *(max(one.received, one.sent) for one in rates))
    bars = max(0, min(30, (width - 46) // 2))
    line = Text()
    for label, values in (("in", [one.received for one in rates]), ("out", [one.sent for one in rates])):
        drawn = "".join(_BARS[min(7, int(8 * value / most))] for value in values[-bars:]) if bars else ""
        line.append(f"{label} ", DIM)
        line.append(f"{size(values[-1])}/s".rjust(9), BOLD)
        line.append(f" {drawn:<{bars}}  ", "cyan")
    return line


# The list of the peers.


class _Column(Struct, frozen=True, kw_only=True):
    """A column of the list.

    Attributes:
        text: the text of a peer.
        order: the value by which peers are sorted. Peers without a value follow the others.
        is_number: aligned to the right, and sorted with the greatest value first.
        width: minimum width, so that usual changes of a value do not move the other columns.
    """

    heading: str
    text: Callable[[Moment, LivePeer], str]
    order: Callable[[Moment, LivePeer], "str | float | None"]
    is_number: bool = False
    width: int = 0


def _text_column(heading: str, text: Callable[[Moment, LivePeer], str]) -> _Column:
    return _Column(heading=heading, text=text, order=lambda moment, peer: text(moment, peer).casefold())


COLUMNS = {
    "state": _Column(
        heading="STATE",
        text=lambda _, peer: f"{SYMBOLS[state_of(peer)][0]} {state_of(peer)}",
        order=lambda _, peer: _STATES.index(state_of(peer)),
        width=12,
    ),
    "host": _text_column("HOST", lambda _, peer: name_of(peer)),
    "subnet": _Column(
        heading="SUBNET",
        text=lambda _, peer: str(peer.entry.subnet),
        order=lambda _, peer: int(peer.entry.subnet.network_address),
    ),
    "address": _Column(
        heading="ADDRESS",
        text=lambda _, peer: str(peer.entry.public_ip),
        order=lambda _, peer: int(peer.entry.public_ip),
    ),
    "path": _text_column("PATH", _path),
    "rtt": _Column(
        heading="RTT",
        text=lambda _, peer: _rtt(peer),
        order=lambda _, peer: peer.entry.rtt_ms,
        is_number=True,
        width=7,
    ),
    "loss": _Column(
        heading="LOSS",
        text=lambda _, peer: "" if peer.loss is None else f"{100 * peer.loss:.0f} %",
        order=lambda _, peer: peer.loss,
        is_number=True,
    ),
    "in": _Column(
        heading="IN",
        text=lambda _, peer: _rate(peer.received),
        order=lambda _, peer: peer.received,
        is_number=True,
        width=9,
    ),
    "out": _Column(
        heading="OUT",
        text=lambda _, peer: _rate(peer.sent),
        order=lambda _, peer: peer.sent,
        is_number=True,
        width=9,
    ),
}
"""The columns by their names, in the order of the sort keys."""

_SHOWN = ("host", "subnet", "address", "path", "state", "rtt", "loss", "in", "out")
_IMPORTANCE = ("state", "host", "subnet", "rtt", "loss", "address", "in", "out", "path")
"""The columns from left to right, and by importance. A narrow screen shows only the most important
columns."""

GAP = 2


class Order(Struct, frozen=True):
    """The order of the peers: a column, and whether it is reversed."""

    column: str = "state"
    is_reversed: bool = False

    def next(self, shown: Sequence[str]) -> "Order":
        """Return the order by the next column that is shown."""
        names = [name for name in COLUMNS if name in shown]
        place = names.index(self.column) + 1 if self.column in names else 0
        return Order(names[place % len(names)])


def listed(moment: Moment, order: Order, words: str) -> list[LivePeer]:
    """Return the peers in this order whose texts contain each of the words."""
    wanted = words.casefold().split()
    column = COLUMNS[order.column]
    found = [peer for peer in moment.peers if not wanted or _matches(moment, peer, wanted)]
    known = [(value, peer) for peer in found if (value := column.order(moment, peer)) is not None]
    known.sort(key=lambda one: one[0], reverse=column.is_number != order.is_reversed)
    return [
        *(peer for _, peer in known),
        *(peer for peer in found if column.order(moment, peer) is None),
    ]


def _matches(moment: Moment, peer: LivePeer, words: Sequence[str]) -> bool:
    entry = peer.entry
    texts = (name_of(peer), both(entry.subnet, entry.ipv6_subnet), both(entry.public_ip, entry.public_ipv6))
    text = " ".join((*texts, _path(moment, peer), state_of(peer), entry.refused or "")).casefold()
    return all(word in text for word in words)


def fitting(moment: Moment, width: int) -> dict[str, int]:
    """Return the columns that fit into this width, from left to right, with their own widths."""
    found: dict[str, int] = {}
    for name in _IMPORTANCE:
        column = COLUMNS[name]
        texts = [column.text(moment, peer) for peer in moment.peers]
        if name in ("in", "out") and not any(texts):
            continue
        needed = max([column.width, len(column.heading) + 2, *map(cell_len, texts)])
        needed = min(needed, _LONGEST_NAME) if name == "host" else needed
        if needed <= width or not found:
            found[name] = needed
            width -= needed + GAP
    return {name: found[name] for name in _SHOWN if name in found}


def headings(columns: Mapping[str, int], order: Order) -> Iterator[tuple[str, Style]]:
    """Yield the headings of these columns; an arrow marks the column by which the peers are sorted."""
    for name, width in columns.items():
        column = COLUMNS[name]
        arrow = " ▾" if column.is_number != order.is_reversed else " ▴"
        text = column.heading + (arrow if name == order.column else "")
        yield _aligned(text, width, column), BOLD


def cells(moment: Moment, peer: LivePeer, columns: Mapping[str, int]) -> Iterator[tuple[str, Style]]:
    """Yield the cells of a peer in these columns."""
    for name, width in columns.items():
        column, style = COLUMNS[name], Style.null()
        if name == "state":
            style = SYMBOLS[state_of(peer)][1]
        elif name == "loss" and peer.loss is not None:
            style = WARN if peer.loss >= 0.005 else DIM
        elif name in ("address", "path"):
            style = DIM
        yield _aligned(column.text(moment, peer), width, column), style


def _aligned(text: str, width: int, column: _Column) -> str:
    short = set_cell_size(text, width - 1) + "…" if cell_len(text) > width else text
    space = " " * (width - cell_len(short))
    return (space + short if column.is_number else short + space) + " " * GAP


def title(moment: Moment, rows: Sequence[LivePeer], words: str) -> Text:
    """Return the line above the list: the number of peers in each state, and the filter."""
    text = Text.assemble(("PEERS", BOLD), f"  {len(moment.peers):,}")
    if words:
        text.append(f"  {len(rows):,} with {one_line(words, 40)!r}", WARN)
    for state, number in counts(moment).items():
        symbol, style = SYMBOLS[state]
        word = "answer" if state == "answers" and number > 1 else state
        text.append(f"  {symbol} {number:,}", style).append(f" {word}", DIM)
    return text


def detail(moment: Moment, peer: LivePeer) -> Text:
    """Return the details of one peer, and the command to run next if the peer does not answer."""
    entry, state = peer.entry, state_of(peer)
    texts = {
        "no answer": f"no answer: run flannelctl ping {entry.public_ip}",
        "refused": f"refused: {entry.refused}",
    }
    addresses = both(entry.subnet, entry.ipv6_subnet), both(entry.public_ip, entry.public_ipv6)
    parts = [*addresses, _path(moment, peer)]
    if entry.is_encrypted:
        parts.append(f"encrypted, {handshake(entry.handshake_age_s)}")
    if peer.loss is not None:
        parts.append(f"{100 * peer.loss:.1f} % of the latest probes lost")
    return Text.assemble(
        (f"{name_of(peer)}  ", BOLD),
        (one_line(texts.get(state, state)), SYMBOLS[state][1]),
        one_line(f"; {', '.join(parts)}"),
    )


def event_line(entry: JournalEntry) -> Text:
    """Return an event in one line."""
    at = datetime.fromtimestamp(entry.at, UTC).astimezone().strftime("%H:%M:%S")
    style = {"repaired": GOOD, "refused": BAD, "fought over": WARN}.get(entry.event, Style.null())
    return Text.assemble((f"{at}  ", DIM), (f"{entry.event:<11}  ", style), one_line(entry.found))
