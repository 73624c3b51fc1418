"""The screen of flannelctl top. Only this module imports textual."""

import asyncio
import logging
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from textual import events
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.widgets import Input, Static

from pyflannel.assembly.directories import Places
from pyflannel.cli.top_texts import (
    BOLD,
    DIM,
    GAP,
    Order,
    cells,
    detail,
    event_line,
    fitting,
    headings,
    listed,
    summary,
    title,
)
from pyflannel.commands.live_view import LivePeer, Moment, live_view

_SELECTED = Style(reverse=True)

_KEYS = "q quit  / filter  s sort  r reverse  e events  ↑↓ select"
_FILTER_KEYS = "Enter keep the filter  Esc remove the filter"


class PeerList(ScrollView, can_focus=True):
    """The list of the peers. The list draws only the visible lines, so the drawing time does not depend on
    the number of peers.
    """

    DEFAULT_CSS = """
    PeerList { height: 1fr; overflow-x: hidden; background: ansi_default; scrollbar-size-vertical: 1;
        scrollbar-color: ansi_bright_black; scrollbar-color-hover: ansi_bright_black;
        scrollbar-color-active: ansi_bright_black; scrollbar-background: ansi_default;
        scrollbar-background-hover: ansi_default; scrollbar-background-active: ansi_default; }
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)"),
        Binding("down,j", "move(1)"),
        Binding("pageup", "page(-1)"),
        Binding("pagedown,space", "page(1)"),
        Binding("home,g", "move(-1000000)"),
        Binding("end,G", "move(1000000)"),
    ]

    def __init__(self, selected: Callable[[], object]) -> None:
        """Call `selected` when the selection changes."""
        super().__init__()
        self.order = Order()
        self.words = ""
        self.selection: LivePeer | None = None
        self._selected = selected
        self._moment: Moment | None = None
        self._rows: list[LivePeer] = []
        self._columns: dict[str, int] = {}

    @property
    def rows(self) -> Sequence[LivePeer]:
        """The peers in the list."""
        return self._rows

    @property
    def columns(self) -> Sequence[str]:
        """The names of the columns that fit on the screen, from left to right."""
        return [*self._columns]

    def show(self, moment: Moment) -> None:
        """Show the peers of a `Moment`. The selected peer stays selected while it exists."""
        self._moment = moment
        self.rearrange()

    def rearrange(self) -> None:
        """Filter, sort and draw the peers again."""
        if self._moment is None:
            return
        self._rows = listed(self._moment, self.order, self.words)
        self._columns = fitting(self._moment, self.size.width)
        if self.selection is not None:
            subnet = self.selection.entry.subnet
            self.selection = next((one for one in self._rows if one.entry.subnet == subnet), None)
        self.virtual_size = Size(self.size.width, len(self._rows) + 1)
        self.refresh()
        self._selected()

    def render_line(self, y: int) -> Strip:
        """Draw one line: the headings, or a peer."""
        width = self.scrollable_content_region.width
        row = y - 1 + self.scroll_offset.y
        if y == 0:
            drawn = headings(self._columns, self.order)
        elif self._moment is not None and 0 <= row < len(self._rows):
            peer = self._rows[row]
            drawn = cells(self._moment, peer, self._columns)
            if self.selection is not None and peer.entry.subnet == self.selection.entry.subnet:
                drawn = ((text, _SELECTED) for text, _ in drawn)
        else:
            drawn = iter(())
        return Strip(Segment(text, style) for text, style in drawn).adjust_cell_length(width)

    def action_move(self, rows: int) -> None:
        """Select another peer; the first peer if no peer is selected."""
        if not self._rows:
            return
        if self.selection is None:
            place = 0 if rows < 1000 else len(self._rows) - 1
        else:
            place = min(max(self._rows.index(self.selection) + rows, 0), len(self._rows) - 1)
        self._select(place)

    def action_page(self, pages: int) -> None:
        """Move the selection by this number of screens."""
        self.action_move(pages * max(1, self.size.height - 2))

    def action_clear(self) -> None:
        """Select no peer."""
        self.selection = None
        self.rearrange()

    def _select(self, place: int) -> None:
        self.selection = self._rows[place]
        first, lines = self.scroll_offset.y, max(1, self.size.height - 1)
        if place < first:
            self.scroll_to(y=place, animate=False)
        elif place >= first + lines:
            self.scroll_to(y=place - lines + 1, animate=False)
        self.refresh()
        self._selected()

    def on_click(self, event: events.Click) -> None:
        """Select a peer, or sort by the column of a heading."""
        row = event.y - 1 + self.scroll_offset.y
        if event.y == 0:
            left = 0
            for name, width in self._columns.items():
                if left <= event.x < left + width:
                    self.sort(Order(name, self.order.column == name and not self.order.is_reversed))
                left += width + GAP
        elif row < len(self._rows):
            self._select(row)

    def on_resize(self) -> None:
        """Choose the columns again."""
        self.rearrange()

    def sort(self, order: Order) -> None:
        """Sort in another order."""
        self.order = order
        self.rearrange()


class Top(App[None]):
    """The screen. `show` displays a `Moment`.

    Attributes:
        failure: the unexpected error that ended the screen.
    """

    CSS = """
    Screen { background: ansi_default; color: ansi_default; }
    Static { background: ansi_default; color: ansi_default; }
    #summary { height: auto; max-height: 50%; padding: 0 1; }
    #title { height: 1; padding: 0 1; margin: 1 0 0 0; text-wrap: nowrap; text-overflow: ellipsis; }
    PeerList { margin: 0 0 0 1; }
    #detail { height: auto; max-height: 3; padding: 0 1; display: none; }
    #events { height: auto; padding: 0 1; margin: 1 0 0 0; text-wrap: nowrap; text-overflow: ellipsis; }
    Input { display: none; height: 1; border: none; padding: 0 1; margin: 1 0 0 0; }
    Input:focus { border: none; }
    #keys { height: 1; padding: 0 1; margin: 1 0 0 0; text-wrap: nowrap; text-overflow: ellipsis; }
    .small #title, .small #events, .small #keys, .small Input { margin: 0; }
    """
    TITLE = "flannelctl top"
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit"),
        Binding("ctrl+c", "quit", priority=True),
        Binding("ctrl+q", "quit", priority=True),
        Binding("slash", "filter", priority=True),  # priority: also works while another key binding waits
        Binding("s", "sort"),
        Binding("r", "reverse"),
        Binding("e", "events"),
        Binding("escape", "clear"),
        Binding("ctrl+z", "suspend_process"),
    ]

    def __init__(self) -> None:
        super().__init__(ansi_color=True)
        self._moment: Moment | None = None
        self._has_events = True
        self._window = Size(0, 0)
        self._list = PeerList(self._show_peers)
        self.failure: Exception | None = None

    def compose(self) -> ComposeResult:
        """Create the parts of the screen, from top to bottom."""
        yield Static("waiting for flanneld …", id="summary")
        yield Static(id="title")
        yield self._list
        yield Static(id="detail")
        yield Static(id="events")
        yield Input(placeholder="words of a host name, a subnet, an address or a state", compact=True)
        yield Static(id="keys")

    def on_mount(self) -> None:
        """Send the keys to the list, so that the arrow keys select a peer."""
        self._window = self.size
        self.screen.set_focus(self._list)

    def show(self, moment: Moment) -> None:
        """Show another `Moment`."""
        self._moment = moment
        if self.is_running:
            self._draw()

    def on_resize(self, event: events.Resize) -> None:
        """Draw all parts for the new size. `self.size` is still the old size during this call."""
        self._window = event.size
        self._draw()

    def _draw(self) -> None:
        self.screen.set_class(self._window.height < 20, "small")
        keys = _FILTER_KEYS if self.query_one(Input).display else _KEYS
        self.query_one("#keys", Static).update(Text(keys, DIM))
        if self._moment is None:
            return
        self.query_one("#summary", Static).update(
            summary(self._moment, self._window.width - 2, self._window.height)
        )
        self._show_events(self._moment)
        self._list.show(self._moment)

    def _show_events(self, moment: Moment) -> None:
        lines = min(8, (self._window.height - 16) // 3) if self._has_events else 0
        shown = moment.events[-lines:] if lines > 0 else ()
        place = self.query_one("#events", Static)
        place.display = bool(shown)
        place.update(Text("\n").join([Text("EVENTS", BOLD), *map(event_line, shown)]))

    def _show_peers(self) -> None:
        """Show the number of peers, and the selected peer."""
        if self._moment is None:
            return
        text = title(self._moment, self._list.rows, self._list.words)
        self.query_one("#title", Static).update(text)
        chosen, place = self._list.selection, self.query_one("#detail", Static)
        place.display = chosen is not None
        if chosen is not None:
            place.update(detail(self._moment, chosen))

    def _handle_exception(self, error: Exception) -> None:
        self.failure = error
        super()._handle_exception(error)

    def _fatal_error(self) -> None:
        """End without a traceback: flannelctl reports the error."""
        self.exit(return_code=1)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Return whether a key triggers its action. While the user edits the filter, a slash is text."""
        return not (action == "filter" and isinstance(self.focused, Input))

    def action_filter(self) -> None:
        """Let the user edit the filter."""
        asked = self.query_one(Input)
        asked.display = True
        self.screen.set_focus(asked)
        self._draw()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Apply the filter while the user edits it."""
        self._list.words = event.value
        self._list.scroll_to(y=0, animate=False)
        self._list.rearrange()

    def on_input_submitted(self) -> None:
        """Keep the filter, and return to the list."""
        self.query_one(Input).display = False
        self.screen.set_focus(self._list)
        self._draw()

    def action_clear(self) -> None:
        """Remove the filter, or the selection if there is no filter."""
        asked = self.query_one(Input)
        if asked.value or asked.display:
            asked.value = ""
            self.on_input_submitted()
        else:
            self._list.action_clear()

    def action_sort(self) -> None:
        """Sort by the next column."""
        self._list.sort(self._list.order.next(self._list.columns))

    def action_reverse(self) -> None:
        """Reverse the order."""
        self._list.sort(Order(self._list.order.column, not self._list.order.is_reversed))

    def action_events(self) -> None:
        """Show or hide the events."""
        self._has_events = not self._has_events
        self._draw()


async def run_screen(socket: Path, places: Places) -> None:
    """Show the daemon at a control socket until the user quits. The terminal is restored in any case."""
    screen = Top()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, screen.exit)
    logging.disable()  # a line on standard error would spoil the screen
    try:
        async with asyncio.TaskGroup() as tasks:
            following = tasks.create_task(live_view(socket, places, screen.show).run(), name="live view")
            await screen.run_async()
            following.cancel()
    finally:
        logging.disable(logging.NOTSET)
        loop.remove_signal_handler(signal.SIGTERM)
    if screen.failure is not None:
        raise screen.failure
