"""What a tunnel device is called, where several networks share a host."""

import re
from collections.abc import Iterator

from pyflannel.model.interface import Interfaces
from pyflannel.model.link import MARK

_NUMBERED = re.compile(r"flannel\d+")


def device_names(mark: str, interfaces: Interfaces) -> Iterator[str]:
    """Yield `flannel0`, `flannel1`, … as this daemon may take them, the best first; never ends.

    The device that carries our mark already comes first, so that a restart finds it. A device that nobody
    marked is left to whoever made it, but for flannel0: the host's only daemon takes it over.
    """
    aliases = {one.name: one.alias for one in interfaces.interfaces}
    ours = sorted(name for name, alias in aliases.items() if alias == mark and _NUMBERED.fullmatch(name))
    yield from ours
    if mark == MARK and not ours and not aliases.get("flannel0", "").startswith(MARK):
        yield "flannel0"
    number = 0
    while True:
        if (name := f"flannel{number}") not in aliases:
            yield name
        number += 1
