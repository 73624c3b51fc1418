"""last-known.json, written and read."""

import json

import pytest

from pyflannel.errors import WireError
from pyflannel.wire.last_known_json import parse_last_known

OWN = "subnets/10.100.1.0-24"
LEASE = '{"PublicIP":"192.0.2.1"}'
NESTED = "[" * 100_000 + "]" * 100_000


def test_deep_nesting_in_the_file_is_an_error_of_the_file() -> None:
    """The start goes on without the file, as with any other that cannot be read."""
    text = json.dumps({"Config": "{}", "Own": OWN, "Leases": {OWN: LEASE}})
    octets = f'{text.removesuffix("}")},"Other":{NESTED}}}'.encode()

    with pytest.raises(WireError, match=r"last-known\.json cannot be read"):
        parse_last_known(octets)


def test_deep_nesting_in_the_lease_of_a_peer_costs_that_peer_alone() -> None:
    peer = "subnets/10.100.2.0-24"
    deep = f'{{"PublicIP":"192.0.2.2","BackendData":{NESTED}}}'
    octets = json.dumps({"Config": "{}", "Own": OWN, "Leases": {OWN: LEASE, peer: deep}}).encode()

    known = parse_last_known(octets)

    assert [str(lease.subnet) for lease in known.leases] == ["10.100.1.0/24"]
