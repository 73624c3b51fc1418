"""The log has klog's form or JSON's, one event a line."""

import errno
import io
import json
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from jsonschema import Draft202012Validator

from pyflannel.assembly.logs import LibraryLimit, configure_logging

log = logging.getLogger("pyflannel.test")


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("pyflannel")
    handlers, level, our_level = root.handlers[:], root.level, ours.level
    root.handlers.clear()
    yield
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)
    ours.setLevel(our_level)


def test_klog_lines_carry_letter_time_process_and_source() -> None:
    stream = io.StringIO()
    configure_logging("klog", 1, stream)

    log.debug("d")
    log.info("Lease acquired: %s", "10.100.15.0/24")
    log.warning("w")
    log.error("e")
    log.critical("f")

    lines = stream.getvalue().splitlines()
    form = re.compile(r"([IWEF])\d{4} \d\d:\d\d:\d\d\.\d{6} +(\d+) test_logs\.py:\d+\] (.*)")
    found = [form.fullmatch(line) for line in lines]
    assert [match and match.group(1, 3) for match in found] == [
        ("I", "d"),
        ("I", "Lease acquired: 10.100.15.0/24"),
        ("W", "w"),
        ("E", "e"),
        ("F", "f"),
    ]
    assert {match and match[2] for match in found} == {str(os.getpid())}


def test_debug_lines_wait_for_verbosity_and_libraries_for_warnings() -> None:
    stream = io.StringIO()
    configure_logging("klog", 0, stream)

    log.debug("own, debug")
    log.info("own, info")
    logging.getLogger("library").info("library, info")
    logging.getLogger("library").warning("library, warning")

    assert [line.partition("] ")[2] for line in stream.getvalue().splitlines()] == [
        "own, info",
        "library, warning",
    ]


def test_a_library_cannot_fill_the_log() -> None:
    """Asyncio logs each refused accept(). The lines of pyflannel are never omitted."""
    seconds = [0.0]
    limit = LibraryLimit(lambda: seconds[0])

    def passed(name: str, count: int) -> list[str]:
        records = [logging.LogRecord(name, logging.ERROR, "", 0, "%s", ("full",), None) for _ in range(count)]
        return [record.getMessage() for record in records if limit.filter(record)]

    assert passed("asyncio", 500) == ["full"] * 10
    assert passed("pyflannel.engine", 500) == ["full"] * 500
    seconds[0] = 60.0
    assert passed("asyncio", 2) == ["full (omitted 490 earlier lines of libraries)", "full"]
    seconds[0] = 120.0
    assert passed("asyncio", 1) == ["full"]


def test_configured_logging_limits_libraries() -> None:
    stream = io.StringIO()
    configure_logging("klog", 0, stream)

    for _ in range(100):
        logging.getLogger("asyncio").error("socket.accept() out of system resource")

    assert len(stream.getvalue().splitlines()) == 10


def test_a_line_that_cannot_be_written_is_dropped(capsys: pytest.CaptureFixture[str]) -> None:
    """The library would otherwise print a traceback to the same stream."""

    class Full(io.StringIO):
        def write(self, _: str) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    configure_logging("klog", 0, Full())

    logging.getLogger("pyflannel").warning("lost")

    assert capsys.readouterr().err == ""


def test_json_lines_are_one_object_each() -> None:
    stream = io.StringIO()
    configure_logging("json", 0, stream)

    log.warning("two\nlines, ü")
    try:
        raise ValueError("cause")
    except ValueError:
        log.exception("failed")

    warning, error = (json.loads(line) for line in stream.getvalue().splitlines())
    assert list(warning) == ["time", "level", "file", "line", "message"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", warning["time"])
    assert (warning["level"], warning["file"], warning["message"]) == (
        "warning",
        "test_logs.py",
        "two\nlines, ü",
    )
    assert error["level"] == "error"
    assert error["message"].startswith("failed\nTraceback ")


def test_a_second_call_replaces_the_first() -> None:
    first, second = io.StringIO(), io.StringIO()
    configure_logging("klog", 0, first)
    configure_logging("klog", 0, second)

    log.info("once")

    assert first.getvalue() == ""
    assert second.getvalue().count("once") == 1


HOSTILE = "vxlan\nF1012 08:50:54.409928       1 daemon.py:1] forged\r\x1b[2J\x9b31m\u202e"
SHOWN = "vxlan\\nF1012 08:50:54.409928       1 daemon.py:1] forged\\r\\u001b[2J\\u009b31m\\u202e"


def test_a_text_of_the_store_cannot_forge_a_line_or_control_a_terminal() -> None:
    stream = io.StringIO()
    configure_logging("klog", 0, stream)

    log.warning("Ignoring non-vxlan subnet: type=%s", HOSTILE)

    (line,) = stream.getvalue().splitlines()
    assert line.endswith(f"] Ignoring non-vxlan subnet: type={SHOWN}")


def test_each_line_of_a_traceback_is_indented_and_escaped() -> None:
    """The text of an exception may come from the store: no line of it looks like a line of the log."""
    stream = io.StringIO()
    configure_logging("klog", 0, stream)

    try:
        raise ValueError(HOSTILE)
    except ValueError:
        log.exception("failed")

    first, *rest = stream.getvalue().removesuffix("\n").split("\n")
    assert first.endswith("] failed")
    assert rest[0] == "    Traceback (most recent call last):"
    assert all(line.startswith("    ") and line.isprintable() for line in rest)


@pytest.mark.parametrize("form", ["klog", "json"])
def test_a_field_of_a_megabyte_makes_a_short_line_that_keeps_both_ends(form: Literal["klog", "json"]) -> None:
    stream = io.StringIO()
    configure_logging(form, 0, stream)

    log.warning("Skipped %s: it has another form", "\x1b" * 1_000_000)
    try:
        raise ValueError("x" * 1_000_000)
    except ValueError:
        log.exception("failed")

    assert len(stream.getvalue()) < 60_000
    assert "Skipped" in stream.getvalue()
    assert ": it has another form" in stream.getvalue()


def test_each_line_of_json_follows_its_schema() -> None:
    """The lines have each level, a traceback, and characters that JSON must escape."""
    schema = Path(__file__).parents[3] / "docs/reference/log-line.schema.json"
    validator = Draft202012Validator(json.loads(schema.read_text()))
    stream = io.StringIO()
    configure_logging("json", 1, stream)
    log = logging.getLogger("pyflannel.test")

    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
        log.log(level, 'Repaired an object found="%s"', "\n\x1b\u2028\udcff")
    try:
        raise ValueError("no\nreason")
    except ValueError:
        log.exception("Failed")

    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    for line in lines:
        validator.validate(line)
    assert [line["level"] for line in lines] == ["debug", "info", "warning", "error", "fatal", "error"]
