"""A token bucket: so many a second, and a burst on top."""


class TokenBucket:
    """Grants at most `burst` at once and `rate` a second for long."""

    def __init__(self, rate: float, burst: int) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = float(burst)
        self._filled_at: float | None = None

    def take(self, now: float) -> bool:
        """Return whether one more is granted at `now`, in seconds of a clock that never steps."""
        if self._filled_at is not None:
            self._tokens = min(self._burst, self._tokens + (now - self._filled_at) * self._rate)
        self._filled_at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
