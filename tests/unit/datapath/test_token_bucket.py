"""The limit of a token bucket holds over every span of time."""

from hypothesis import given
from hypothesis import strategies as st

from pyflannel.datapath.counters import TokenBucket


@given(st.lists(st.floats(0, 0.5), min_size=1, max_size=300))
def test_no_span_grants_more_than_burst_and_rate(gaps):
    """Between any two grants, at most the burst and the tokens of that time are granted."""
    bucket, now, granted = TokenBucket(rate=10, burst=5), 1000.0, []
    for gap in gaps:
        now += gap
        if bucket.take(now):
            granted.append(now)

    for first in range(len(granted)):
        for last in range(first, len(granted)):
            count = last - first + 1
            assert count <= 5 + (granted[last] - granted[first]) * 10 + 1e-6


def test_a_burst_is_granted_immediately_and_again_after_a_pause():
    bucket = TokenBucket(rate=10, burst=5)

    first = [bucket.take(1.0) for _ in range(6)]
    after_rest = [bucket.take(9.0) for _ in range(6)]

    assert first == after_rest == [True] * 5 + [False]
