"""What flannelctl prints can be read by people."""

import pytest

from pyflannel.cli.answers import duration, print_facts, print_table


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-3.0, "0 s"),
        (0.9, "0 s"),
        (59.9, "59 s"),
        (60.0, "1 min"),
        (3599.0, "59 min 59 s"),
        (86399.0, "23 h 59 min"),
        (86400.0, "1 d"),
        (93600.0, "1 d 2 h"),
    ],
)
def test_a_length_of_time_is_its_two_largest_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_row_stays_one_line_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    """A long owner is found whole by grep, in a file or a pipe."""
    print_table(("SUBNET", "OWNER"), [("10.100.15.0/24", "x" * 200)])

    assert f"10.100.15.0/24  {'x' * 200}" in capsys.readouterr().out


def test_no_line_ends_in_blanks(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("LAB", "DIRECTORY"), [("r", "/a/long/path"), ("s", "/b")])

    assert capsys.readouterr().out == "LAB  DIRECTORY\nr    /a/long/path\ns    /b\n"


def test_texts_of_others_are_not_markup(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("OWNER",), [("[red]x[/red] :smile:",)])

    assert "[red]x[/red] :smile:" in capsys.readouterr().out


def test_facts_stand_in_one_column(capsys: pytest.CaptureFixture[str]) -> None:
    print_facts([("lease", "10.100.15.0/24"), ("forwarder", "pid 1")])

    assert capsys.readouterr().out == "lease      10.100.15.0/24\nforwarder  pid 1\n"
