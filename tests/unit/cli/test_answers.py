"""flannelctl prints readable texts."""

import json
from pathlib import Path

import click
import pytest

from pyflannel.assembly.directories import Places
from pyflannel.cli.answers import duration, label_of, places_of, print_facts, print_json, print_table
from pyflannel.cli.invocation import say


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
def test_a_duration_is_shown_in_its_two_largest_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_row_stays_one_line_in_a_file_or_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    """A long owner is found by grep in a file or a pipe."""
    print_table(("SUBNET", "OWNER"), [("10.100.15.0/24", "x" * 200)])

    assert f"10.100.15.0/24  {'x' * 200}" in capsys.readouterr().out


def test_no_line_ends_with_spaces(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("LAB", "DIRECTORY"), [("r", "/a/long/path"), ("s", "/b")])

    assert capsys.readouterr().out == "LAB  DIRECTORY\nr    /a/long/path\ns    /b\n"


def test_texts_of_the_store_are_not_interpreted_as_markup(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("OWNER",), [("[red]x[/red] :smile:",)])

    assert "[red]x[/red] :smile:" in capsys.readouterr().out


def test_facts_are_aligned_in_one_column(capsys: pytest.CaptureFixture[str]) -> None:
    print_facts([("lease", "10.100.15.0/24"), ("forwarder", "pid 1")])

    assert capsys.readouterr().out == "lease      10.100.15.0/24\nforwarder  pid 1\n"


HOSTILE = "vxlan\nready\x1b[2J\x9b31m\x7f\u2028\u202e"


def test_a_text_of_the_store_cannot_control_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Line feeds and escape sequences are escaped in every form of output."""
    print_table(("BACKEND", "OWNER"), [(HOSTILE, HOSTILE)])
    print_facts([("waiting", HOSTILE)])
    say(HOSTILE)
    say(HOSTILE, err=True)
    print_json(json.dumps({"owner": HOSTILE}, ensure_ascii=False).encode())

    printed = capsys.readouterr()
    lines = (printed.out + printed.err).split("\n")
    assert all(line.isprintable() for line in lines)
    assert len(lines) == 2 + 1 + 2 + 3 + 1
    assert json.loads(printed.out[printed.out.index("{") :]) == {"owner": HOSTILE}


def test_long_texts_are_shortened_and_keep_both_ends(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(("BACKEND", "OWNER"), [("x" * 1_000_000, "o")] + [("udp", "o")] * 4)
    say("first " + "\x1b" * 1_000_000 + " last")

    printed = capsys.readouterr().out
    assert len(printed) < 40_000
    assert "first " in printed
    assert printed.endswith(" last\n")


def test_styles_of_flannelctl_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    say("a cause\x1b[0m", label=click.style("error", fg="red"))

    assert "a cause\\u001b[0m\n" in capsys.readouterr().out


def test_every_text_is_printed_by_the_functions_that_escape() -> None:
    """Commands use only these functions to print texts that may be from the store."""
    package = Path(__file__).parents[3] / "src/pyflannel"
    sources = [*(package / "cli").glob("*.py"), package / "programs/flannelctl.py"]

    printing = {path.name for path in sources if "click.echo(" in path.read_text()}

    assert printing <= {"answers.py", "lab.py", "invocation.py"}


def test_the_variable_of_a_prefix_selects_its_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A given directory takes precedence; an invalid variable selects the usual places."""
    monkeypatch.setattr(Places, "_belong_to", lambda *_: False)
    monkeypatch.setenv("FLANNELD_ETCD_PREFIX", "/blue")

    assert places_of(None).run_dir == Path("/run/flannel/@blue")
    assert places_of(None, store_url="etcd://a/red").run_dir == Path("/run/flannel/@red")
    assert places_of(Path("/r")).run_dir == Path("/r")

    monkeypatch.setenv("FLANNELD_ETCD_PREFIX", "blue")
    assert places_of(None) == Places()


@pytest.mark.parametrize(
    ("fix", "label"), [("ip link set eth0 up  # Then wait.", "type"), ("Start flanneld.", "do"), ("", "type")]
)
def test_a_remedy_is_a_command_to_type_or_a_sentence(fix: str, label: str) -> None:
    assert label_of(fix) == label


@pytest.mark.parametrize(("columns", "is_table"), [(66, True), (60, False)])
def test_a_table_that_does_not_fit_the_terminal_does_not_split_words(
    columns: int, is_table: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last column may be short."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)

    headings = ("SUBNET", "HOST", "PUBLIC IP", "BACKEND", "EXPIRES")
    row = ("10.100.178.0/24", "docker3", "192.168.50.101", "udp", "in 23 h 56 min")
    print_table(headings, [row], can_stack=True)

    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == (2 if is_table else len(headings))
    assert all(any(word in line for line in lines) for word in row)
