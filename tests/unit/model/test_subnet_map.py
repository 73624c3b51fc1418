"""A map with changed copies behaves like a dictionary that is copied completely."""

from ipaddress import IPv4Network

from hypothesis import given
from hypothesis import strategies as st

from pyflannel.model.lease_set import SubnetMap

subnets = st.builds(
    lambda number, length: IPv4Network((number << 12 & 0xFFFFFFFF << 32 - length & 0xFFFFFFFF, length)),
    st.integers(0, 400),
    st.sampled_from([16, 20, 24]),
)
changes = st.lists(st.tuples(subnets, st.none() | st.integers()), max_size=300)


def after(entries: dict[IPv4Network, int], changed: list[tuple[IPv4Network, int | None]]) -> dict:
    result = dict(entries)
    for subnet, value in changed:
        if value is None:
            result.pop(subnet, None)
        else:
            result[subnet] = value
    return result


@given(changes, changes)
def test_changes_and_differences_equal_those_of_a_dictionary(
    first: list[tuple[IPv4Network, int | None]], second: list[tuple[IPv4Network, int | None]]
) -> None:
    entries = after({}, first)
    old = SubnetMap(entries.items())

    new = old.with_changes(second)

    expected = after(entries, second)
    assert dict(old) == entries
    assert dict(new) == expected
    assert len(new) == len(expected)
    assert new == SubnetMap(expected.items())
    differing = {subnet: (was, now) for subnet, was, now in old.differences(new) if was != now}
    assert differing == {
        subnet: (entries.get(subnet), expected.get(subnet))
        for subnet in entries.keys() | expected.keys()
        if entries.get(subnet) != expected.get(subnet)
    }


def test_a_change_needs_time_for_one_shard() -> None:
    """The copy shares all shards except the changed shard, and only the changed shard is compared."""
    many = SubnetMap((IPv4Network((0x0A000000 + (number << 8), 24)), object()) for number in range(10_000))
    subnet = IPv4Network("10.0.5.0/24")

    changed = many.with_changes([(subnet, object())])

    assert [each for each, _, _ in many.differences(changed)] == [subnet]
    shared = {id(shard) for shard in many._shards} & {id(shard) for shard in changed._shards}
    assert len(shared) == len(many._shards) - 1
    assert max(map(len, many._shards)) < 100
