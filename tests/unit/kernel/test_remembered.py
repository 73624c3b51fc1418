"""An item is created once per message, and again only for a changed message."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from pyflannel.kernel.network.items import Remembered

LINKS = {1: "flannel.1"}


@dataclass(frozen=True)
class Thing:
    link: str
    text: bytes


class Look:
    """A reader of dumps, and the items that it created."""

    def __init__(self) -> None:
        self.remembered = Remembered[Thing]()
        self.made: list[bytes] = []

    def make(self, body: bytes) -> Thing | None:
        self.made.append(body)
        return None if body.startswith(b"x") else Thing(link=LINKS[1], text=body)

    def __call__(self, *bodies: bytes, links: dict[int, str] = LINKS) -> list[Thing | None]:
        self.made = []
        self.remembered.begin(links)
        found = [*map(self.remembered.reader(self.make), bodies)]
        self.remembered.end()
        return found


bodies = st.lists(st.sampled_from([b"a", b"b", b"c", b"d", b"x", b"xx"]), unique=True)


@given(st.lists(bodies, max_size=5))
def test_messages_in_any_order_are_read_correctly_and_made_once(looks: list[list[bytes]]) -> None:
    look, before = Look(), dict[bytes, Thing]()
    for messages in looks:
        found = look(*messages)

        assert [None if one is None else one.text for one in found] == [
            None if body.startswith(b"x") else body for body in messages
        ]
        assert all(one is before[one.text] for one in found if one is not None and one.text in before)
        assert not set(look.made) & before.keys()
        before = {one.text: one for one in found if one is not None}


def test_entries_missing_in_a_scan_are_forgotten() -> None:
    look = Look()
    look(b"a", b"b")
    look(b"b")

    look(b"a", b"b")

    assert look.made == [b"a"]


def test_only_entries_on_known_links_are_remembered() -> None:
    """An unknown link may have another name in the next scan. A rename gives any link another name."""
    look = Look()
    look(b"a", links={1: "another"})
    look(b"a", links={1: "another"})
    assert look.made == [b"a"]
    look(b"a")
    look(b"a")
    assert look.made == []

    look(b"a", links={1: "flannel.1", 2: "eth0"})

    assert look.made == [b"a"]


def test_two_messages_that_differ_only_in_ages_are_one_item() -> None:
    """The times since the last use of an entry differ each time."""
    look = Look()
    for body in (b"a1", b"a2"):
        look.made = []
        look.remembered.begin(LINKS)
        look.remembered.reader(look.make, lambda body: body[:1])(body)
        look.remembered.end()

    assert look.made == []
