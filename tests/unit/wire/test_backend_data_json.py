"""The VTEPs in leases are read in each spelling that the original reads, and in no other."""

import pytest

from pyflannel.model.lease import Vtep
from pyflannel.wire.lease_json import (
    format_backend_data,
    format_lease_attributes,
    parse_lease_attributes,
    parse_vtep,
)

MAC = "1a:71:ad:7e:3b:3f"


def test_a_value_is_written_as_by_the_original() -> None:
    assert format_backend_data(Vtep(mac=MAC, vni=70000)) == f'{{"VNI":70000,"VtepMAC":"{MAC}"}}'
    assert format_backend_data(Vtep(mac=MAC)) == f'{{"VtepMAC":"{MAC}"}}'


@pytest.mark.parametrize(
    ("text", "vni"),
    [
        (f'{{"VNI":1,"VtepMAC":"{MAC}"}}', 1),
        (f'{{"VtepMAC":"{MAC}"}}', None),
        (f'{{"VNI":null,"VtepMAC":"{MAC}"}}', None),
        (f'{{"vtepmac":"{MAC}","vni":4294967295}}', 4294967295),
        ('{"VNI":1,"VtepMAC":"1A-71-AD-7E-3B-3F"}', 1),
        ('{"VNI":1,"VtepMAC":"1a71.ad7e.3b3f"}', 1),
        (f'{{"VNI":1,"VtepMAC":"{MAC}","Later":{{"a":1}}}}', 1),
        (f'{{"vni":1,"VNI":2,"vni":3,"VtepMAC":"{MAC}"}}', 3),
        (f'{{"VNI":1,"vni":2,"VNI":3,"VtepMAC":"{MAC}"}}', 3),
        (f'{{"VNI":1,"vni":null,"VtepMAC":"{MAC}"}}', 1),
        (f'{{"VNI":1,"vtepmac":"02:00:00:00:00:01","VtepMAC":"02:00:00:00:00:02","vtepmac":"{MAC}"}}', 1),
    ],
)
def test_every_spelling_is_read(text: str, vni: int | None) -> None:
    assert parse_vtep(text) == Vtep(mac=MAC, vni=vni)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        '"text"',
        "{}",
        '{"VNI":1}',
        '{"VNI":1,"VtepMAC":null}',
        '{"VNI":1,"VtepMAC":7}',
        '{"VNI":1,"VtepMAC":""}',
        '{"VNI":1,"VtepMAC":"1a:71:ad:7e:3b"}',
        '{"VNI":1,"VtepMAC":"1a:71:ad:7e:3b:3f:00:00"}',
        '{"VNI":1,"VtepMAC":"1a:71-ad:7e:3b:3f"}',
        '{"VNI":1,"VtepMAC":"1a:71:ad:7e:3b:3g"}',
        f'{{"VNI":"1","VtepMAC":"{MAC}"}}',
        f'{{"VNI":-1,"VtepMAC":"{MAC}"}}',
        f'{{"VNI":true,"VtepMAC":"{MAC}"}}',
        f'{{"VNI":1.5,"VtepMAC":"{MAC}"}}',
        f'{{"VNI":4294967296,"VtepMAC":"{MAC}"}}',
        "[" * 100_000,
    ],
)
def test_backend_data_without_a_vtep_is_read_as_none(text: str) -> None:
    assert parse_vtep(text) is None


def test_a_lease_with_invalid_backend_data_is_a_lease() -> None:
    value = b'{"PublicIP":"1.2.3.4","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VtepMAC":7}}'

    attributes = parse_lease_attributes(value)

    assert attributes.vtep is None
    assert format_lease_attributes(attributes) == value


def test_data_of_other_backends_is_not_read() -> None:
    value = f'{{"PublicIP":"1.2.3.4","BackendType":"ipip","BackendData":{{"VtepMAC":"{MAC}"}}}}'

    assert parse_lease_attributes(value.encode()).vtep is None
