"""Settings of the network namespace that the process is in, under /proc/sys/net."""

import contextlib

_DISABLE_IPV6 = "/proc/sys/net/ipv6/conf/{link}/disable_ipv6"


def set_ipv6(link: str, is_on: bool) -> None:
    """Turn IPv6 on or off on a link; where the kernel has none, it is off already.

    Raises:
        OSError: it could not be written, or IPv6 was wanted and is not there.
    """
    nothing_to_turn_off = contextlib.suppress(FileNotFoundError) if not is_on else contextlib.nullcontext()
    with nothing_to_turn_off, open(_DISABLE_IPV6.format(link=link), "w", encoding="ascii") as setting:
        setting.write("0" if is_on else "1")
