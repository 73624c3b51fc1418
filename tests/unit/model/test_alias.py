"""The alias of a link of pyflannel: the mark of its daemon, and the identity of the host."""

import pytest

from pyflannel.model.link import MARK, is_random_identity, join_alias, split_alias

OWNER = "0123456789abcdef" * 2


@pytest.mark.parametrize("mark", [MARK, f"{MARK} /run/blue", f"{MARK} /run/a owner=b"])
@pytest.mark.parametrize("owner", ["", OWNER])
def test_mark_and_owner_are_read_back(mark: str, owner: str) -> None:
    assert split_alias(join_alias(mark, owner)) == (mark, owner)


@pytest.mark.parametrize(
    "text", ["", "mine", f"mine owner={OWNER}", f"{MARK}x owner={OWNER}", f"{MARK} owner=x"]
)
def test_another_alias_has_no_owner(text: str) -> None:
    assert split_alias(text) == (text, "")


def test_an_identity_of_an_operator_is_not_random() -> None:
    """The identity of an operator may be longer than an alias, and is an option at each start."""
    assert is_random_identity(OWNER)
    assert not is_random_identity("node-1")
    assert not is_random_identity(OWNER.upper())
