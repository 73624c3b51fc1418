"""Operations in words: what was found, for the log, the journal and the status."""

from dataclasses import fields
from typing import assert_never

from pyflannel.model.address import Address
from pyflannel.model.forwarder import Forwarder, ForwarderPeer
from pyflannel.model.host_file import HostFile
from pyflannel.model.link import Link
from pyflannel.model.operation import Add, Operation, Remove, Replace
from pyflannel.model.route import Route
from pyflannel.model.state import Item


def name(item: Item) -> str:
    """Return what the item is called, as an operator would."""
    match item:
        case Link():
            return f"link {item.name}"
        case Address():
            return f"address {item.address} on {item.link}"
        case Route():
            metric = f" metric {item.metric}" if item.metric else ""
            return f"route {item.destination}{metric}"
        case Forwarder():
            return f"forwarder of {item.link}"
        case ForwarderPeer():
            return f"peer {item.subnet} of {item.link}"
        case HostFile():
            return f"file {item.path}"
        case _:
            assert_never(item)


def found(operation: Operation) -> str:
    """Return what a pass found that made it do `operation`: `link flannel0: mtu 1300, wanted 1472`."""
    match operation:
        case Add(item):
            return f"{name(item)}: missing"
        case Remove(item):
            return f"{name(item)}: not wanted"
        case Replace(old, new):
            return f"{name(new)}: {', '.join(_differences(old, new))}"


def _differences(old: Item, new: Item) -> list[str]:
    if type(old) is not type(new):
        return [f"another thing, {name(old)}"]
    if isinstance(new, HostFile):
        return ["its text differs"]
    texts: list[str] = []
    for field in fields(new):
        was, wanted = getattr(old, field.name), getattr(new, field.name)
        if was != wanted:
            texts.append(_difference(field.name, was, wanted))
    return texts


def _difference(attribute: str, was: object, wanted: object) -> str:
    if isinstance(wanted, bool):
        word = attribute.removeprefix("is_").removeprefix("has_")
        return f"not {word}" if wanted else word
    return f"{attribute.replace('_', ' ')} {was or 'none'}, wanted {wanted or 'none'}"
