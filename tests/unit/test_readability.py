"""The check of the readability, scripts/readability, on texts of this test."""

from pathlib import Path
from types import ModuleType

import pytest

from testlab.scripts import load_script

LONG = " ".join(["word"] * 27)
SHORT = " ".join(["word"] * 26)


@pytest.fixture(scope="module")
def readability() -> ModuleType:
    return load_script("readability")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"{LONG}.", [f"{LONG}."]),
        (f"{SHORT}.", []),
        (f"{SHORT}. {SHORT}: {SHORT}; {SHORT}", []),
        (f"- {SHORT}\n- {SHORT}", []),
        (f"| {SHORT} | {SHORT} |", []),
        (f"```\n{LONG}\n```", []),
        (f"`{LONG}` is code", []),
    ],
)
def test_a_long_sentence_of_a_document_is_found(
    text: str, found: list[str], readability: ModuleType, tmp_path: Path
) -> None:
    path = tmp_path / "page.md"
    path.write_text(text)

    assert readability.too_long(path) == found


@pytest.mark.parametrize(
    ("program", "is_found"),
    [
        (f'log.info("{LONG}")', True),
        (f'raise StoreError("m", hint="{LONG}")', True),
        (f'raise StoreError(f"{LONG} {{x}}")', True),
        (f'Flag(meaning="{LONG}")', True),
        (f'x = "{LONG}"  # {LONG}', False),
    ],
)
def test_a_long_sentence_of_a_message_is_found(
    program: str, is_found: bool, readability: ModuleType, tmp_path: Path
) -> None:
    path = tmp_path / "module.py"
    path.write_text(program)

    assert bool(readability.too_long(path)) == is_found


def test_a_document_of_long_words_needs_a_higher_grade(readability: ModuleType) -> None:
    plain = "The host gets a lease. It keeps the lease. Then it sends the data to a peer."
    dense = "Administrators instantiate heterogeneous virtualization infrastructures programmatically."

    assert readability.grade(plain) < readability.GRADE < readability.grade(dense)
