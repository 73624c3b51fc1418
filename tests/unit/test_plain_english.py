"""The check of the wording, scripts/plain-english, on texts of this test."""

from pathlib import Path
from types import ModuleType

import pytest

from testlab.scripts import load_script


@pytest.fixture(scope="module")
def plain_english() -> ModuleType:
    return load_script("plain-english")


@pytest.mark.parametrize(
    "sentence",
    [
        "The daemon mends the route.",
        "Whoever reads the file finds it.",
        "A warning is said once.",
        "The store is\naway.",
        "It is the peer that goes.",
        "[Who decides](page.md) the order",
    ],
)
def test_a_forbidden_phrase_is_found(plain_english: ModuleType, sentence: str) -> None:
    assert len(list(plain_english.findings(sentence))) == 1


@pytest.mark.parametrize(
    "sentence",
    [
        "flanneld repairs the route.",
        "An operator who reads the log finds it.",
        "The counter `sent_octets` counts bytes.",
        "```\nStore is away, trying again\n```\n",
        "See [the firewall](what-goes.md).",
    ],
)
def test_plain_sentences_and_code_pass(plain_english: ModuleType, sentence: str) -> None:
    assert list(plain_english.findings(sentence)) == []


def test_a_finding_names_the_line_and_the_replacement(plain_english: ModuleType) -> None:
    assert list(plain_english.findings("One.\n\nTwo\noctets.\n")) == [(4, "octets", "byte")]


def test_only_comments_and_strings_of_a_program_are_checked(
    plain_english: ModuleType, tmp_path: Path
) -> None:
    path = tmp_path / "one.py"
    path.write_text('"""Mend it."""\nwhat = "no octets"  # by hand\nkin = f"{ours}"\n')

    assert [(line, found) for line, found, _ in plain_english.findings_in(path)] == [
        (1, "Mend"),
        (2, "octets"),
        (2, "by hand"),
    ]


def test_only_comments_of_a_c_source_are_checked(plain_english: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "one.c"
    path.write_text(
        "int what; /* one */ int ours;\n/* Two\n * octets. */\nint kin; /* by hand */\nint theirs;\n"
    )

    assert [(line, found) for line, found, _ in plain_english.findings_in(path)] == [
        (3, "octets"),
        (4, "by hand"),
    ]


def test_names_in_a_program_are_not_checked(plain_english: ModuleType, tmp_path: Path) -> None:
    """Names are attributes in a docstring, and strings that consist of one word."""
    path = tmp_path / "one.py"
    path.write_text('"""A run.\n\n    Attributes:\n        octets: in bytes.\n"""\nfield = "octets"\n')

    assert list(plain_english.findings_in(path)) == []


def test_names_of_functions_and_classes_are_checked_in_tests(
    plain_english: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(plain_english, "WITH_NAMES", (tmp_path,))
    path = tmp_path / "one.py"
    path.write_text("class WhoeverReads:\n    def mend_it(self, ours): ...\n")

    assert [(line, found) for line, found, _ in plain_english.findings_in(path)] == [
        (1, "Whoever"),
        (2, "mend"),
    ]


def test_a_script_without_a_suffix_is_checked(plain_english: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "one"
    path.write_text("#!/usr/bin/env bash\n# mends the host\n")

    assert [(line, found) for line, found, _ in plain_english.findings_in(path)] == [(2, "mends")]
