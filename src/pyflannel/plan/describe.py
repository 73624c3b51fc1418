"""Operations in words: what was found, for the log, the journal and the status."""

from collections.abc import Iterator
from dataclasses import fields, replace

from pyflannel.model.fast_path import Tunnel
from pyflannel.model.host import HostFile
from pyflannel.model.item import Item
from pyflannel.model.link import Veth, Vxlan
from pyflannel.model.packet_filter import (
    FilterRule,
    ForeignRule,
    IptablesChain,
    Jump,
    NftTable,
    Rules,
)
from pyflannel.model.state import Add, Operation, Remove, Replace
from pyflannel.model.tunnel_guard import GuardTable

_Part = Vxlan | Veth | Tunnel


def found(operation: Operation) -> str:
    """Return what a pass found that made it do `operation`: `link flannel0: mtu 1300, wanted 1472`."""
    match operation:
        case Add(item):
            return f"{item.title}: missing"
        case Remove(item):
            return f"{item.title}: not wanted"
        case Replace(old, new):
            return f"{new.title}: {', '.join(_differences(old, new))}"


def _differences(old: Item, new: Item) -> list[str]:
    if type(old) is not type(new):
        return [f"another thing, {old.title}"]
    if isinstance(new, HostFile):
        return ["its text differs"]
    if isinstance(old, IptablesChain) and isinstance(new, IptablesChain):
        return _chain_differences(old, new)
    if isinstance(old, GuardTable) and old.differences:
        return list(old.differences)
    if isinstance(old, NftTable) and isinstance(new, NftTable):
        return _table_differences(old, new)
    return list(_attribute_differences(old, new))


def _attribute_differences(old: Item | _Part, new: Item | _Part) -> Iterator[str]:
    for field in fields(new):
        was, wanted = getattr(old, field.name), getattr(new, field.name)
        if isinstance(was, _Part) and isinstance(wanted, _Part):
            yield from _attribute_differences(was, wanted)
        elif isinstance(was, _Part) or isinstance(wanted, _Part):
            yield f"no {field.name}" if was is None else f"is {field.name}"
        elif was != wanted:
            yield _difference(field.name, was, wanted)


def _chain_differences(old: IptablesChain, new: IptablesChain) -> list[str]:
    texts = _rule_differences(old.rules, new.rules)
    if old.is_for_dropping != new.is_for_dropping:
        texts.append(f"not needed while {old.hook} drops nothing")
    if old.jump is not Jump.IN_PLACE:
        texts.append(f"the jump from {old.hook} is {old.jump.value}")
    return texts


def _table_differences(old: NftTable, new: NftTable) -> list[str]:
    wanted = {chain.name: chain for chain in new.chains}
    present = {chain.name: chain for chain in old.chains}
    texts = [f"foreign {other}" for other in old.others]
    texts += [f"chain {name} not wanted" for name in present if name not in wanted]
    for name, chain in wanted.items():
        there = present.get(name)
        if there is None:
            texts.append(f"chain {name} missing")
        elif replace(there, rules=()) != replace(chain, rules=()):
            texts.append(f"chain {name} at another hook")
        else:
            texts += [f"{text} in {name}" for text in _rule_differences(there.rules, chain.rules)]
    return texts or ["chains in another order"]


def _rule_differences(old: Rules, new: Rules) -> list[str]:
    texts = [f"foreign rule {rule.text!r}" for rule in old if isinstance(rule, ForeignRule)]
    if missing := sum(rule not in old for rule in new):
        texts.append(f"{missing} of {len(new)} rules missing")
    if strange := sum(isinstance(rule, FilterRule) and rule not in new for rule in old):
        texts.append(f"{strange} other rules")
    return texts if texts or old == new else ["rules in another order"]


def _difference(attribute: str, was: object, wanted: object) -> str:
    if isinstance(wanted, bool):
        word = attribute.removeprefix("is_").removeprefix("has_")
        return f"not {word}" if wanted else word
    return f"{attribute.replace('_', ' ')} {_text(was)}, wanted {_text(wanted)}"


def _text(value: object) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value or "none")
