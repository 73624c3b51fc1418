"""A store with too many or too large keys costs a host a limited amount of memory."""

import asyncio

import pytest

from pyflannel.errors import ConfigError, StoreError, WireError
from pyflannel.stores.etcd.endpoint import Endpoint
from pyflannel.stores.etcd.keys import KeySpace
from pyflannel.stores.etcd.rpc_pb2 import KeyValue, RangeRequest, RangeResponse
from pyflannel.stores.etcd.store import EtcdStore
from pyflannel.wire.lease_json import LONGEST_LEASE
from pyflannel.wire.lease_record import lease_of
from pyflannel.wire.network_config_json import parse_network_config

KEYS = KeySpace("/net")


def test_a_value_that_is_too_long_is_cut_just_above_the_limit() -> None:
    lease = KEYS.record(KeyValue(key=b"/net/subnets/10.5.1.0-24", value=b"{" + b" " * 1_500_000))
    config = KEYS.record(KeyValue(key=b"/net/blue/config", value=b"{" + "\U0001f600".encode() * 300_000))

    assert len(lease.value) == LONGEST_LEASE + 1
    assert len(config.value) == 4 * 65_536 + 1
    with pytest.raises(WireError, match="longer than"):
        lease_of(lease)
    with pytest.raises(ConfigError, match="longer than"):
        parse_network_config(config.value)


@pytest.mark.parametrize(("records", "is_listed"), [(40, True), (41, False)])
def test_a_listing_of_too_many_keys_is_an_error_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch, records: int, is_listed: bool
) -> None:
    store = EtcdStore([Endpoint("127.0.0.1", 1)], "/net", page_records=10, most_records=40)
    keys = [b"/net/subnets/%05d" % number for number in range(records)]

    async def page(request: RangeRequest, key: str) -> RangeResponse:
        later = [key for key in keys if key >= request.key]
        return RangeResponse(kvs=[KeyValue(key=key) for key in later[:10]], more=len(later) > 10)

    monkeypatch.setattr(store, "_range", page)

    async def test() -> None:
        if is_listed:
            assert len((await store.list("")).records) == records
        else:
            with pytest.raises(StoreError, match="more than 40 keys below /net/"):
                await store.list("")

    asyncio.run(test())
