"""The documents of flannelctl are JSON, also with names of the kernel that are not UTF-8."""

import json
from ipaddress import IPv4Address

from pyflannel.commands.cleanup import CleanupReport
from pyflannel.commands.trace import AddressReport
from pyflannel.errors import TargetError
from pyflannel.model.probe import TraceReport, TraceStep
from pyflannel.wire.control_json import format_document, format_error, format_trace, parse_error
from pyflannel.wire.netlink.message import text

NAME = text(b"br-\xff\xc3\xa9\0")
"""A name that a container may give its link."""


def test_a_trace_names_a_link_of_a_container() -> None:
    address = IPv4Address("10.3.1.2")
    step = TraceStep(name="container", state="passes", found=f"{address} on {NAME}")
    report = TraceReport(source=address, destination=address, ok=True, steps=(step,))

    document = json.loads(format_trace(report))

    assert document["steps"][0]["found"] == "10.3.1.2 on br-?é"
    assert document["source"] == "10.3.1.2"


def test_the_link_of_an_address_is_named() -> None:
    found = AddressReport(address=IPv4Address("10.3.1.2"), kind="container", link=NAME, expires_in_s=1.5)

    document = json.loads(format_document(found))

    assert (document["link"], document["expires_in_s"], document["mac"]) == ("br-?é", 1.5, None)


def test_a_cleanup_names_a_removed_link() -> None:
    assert json.loads(format_document(CleanupReport(removed=[f"link {NAME}"])))["removed"] == ["link br-?é"]


def test_an_error_names_a_link() -> None:
    error = parse_error(format_error(TargetError(f"no route through {NAME}", hint=f"See {NAME}.")))

    assert (str(error), error.hint) == ("no route through br-?é", "See br-?é.")
