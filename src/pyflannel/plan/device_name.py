"""Which name a daemon claims, where several networks share a host."""

from collections.abc import Collection, Iterator

from pyflannel.model.host import Interfaces
from pyflannel.model.link import MARK
from pyflannel.model.packet_filter import FIRST_DEVICE
from pyflannel.model.route import DEVICES, route_protocol


def device_names(
    mark: str, interfaces: Interfaces, *, kept: str | None = None, protocols: Collection[int] = ()
) -> Iterator[str]:
    """Yield `flannel0`, `flannel1`, … as this daemon may claim them, the best first.

    The name of its last life comes first, then that of a device that carries its mark, so that a restart
    finds what is its own. A device that nobody marked is left to whoever made it, but for flannel0: the
    host's only daemon takes it over. A name whose routes are there is that of a daemon that is down.

    Args:
        mark: alias of our links.
        interfaces: the devices that there are.
        kept: the name of the last life.
        protocols: of the routes that there are.
    """
    aliases = {one.name: one.alias for one in interfaces.interfaces}
    if kept in DEVICES and aliases.get(kept, mark) == mark:
        yield kept
    ours = [name for name in DEVICES if aliases.get(name) == mark]
    yield from ours
    if mark == MARK and not ours and not aliases.get(FIRST_DEVICE, "").startswith(MARK):
        yield FIRST_DEVICE
    for name in DEVICES:
        if name not in aliases and route_protocol(name) not in protocols:
            yield name
