"""The streams to which flanneld prints the texts that a user requests."""

import sys

import pytest

from pyflannel.programs.flanneld_run import run


def test_help_is_on_standard_output_so_that_it_can_be_paged(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["flanneld", "--help"])

    code = run()

    printed = capfd.readouterr()
    assert (code, printed.err) == (0, "")
    assert printed.out.startswith("Usage: flanneld [OPTION]...\n")


def test_the_version_is_on_standard_error_as_in_the_original(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["flanneld", "--version"])

    code = run()

    printed = capfd.readouterr()
    assert (code, printed.out) == (0, "")
    assert printed.err
