"""What iptables-restore --noflush is given: one transaction a chain, so that no packet sees half of it.

`:CHAIN -` makes a chain, or empties the one there is. Source: iptables-restore(8).
"""

from collections.abc import Iterator, Mapping

from pyflannel.model.filter_rule import FilterRule
from pyflannel.model.iptables_chain import IptablesChain, Jump
from pyflannel.wire.iptables_rules import format_rule
from pyflannel.wire.iptables_save import (
    SavedChain,
    SavedTables,
    deciding_index,
    jump_of,
    jump_rule,
    jumps_to,
)


def format_chain(chain: IptablesChain, saved: SavedTables) -> str:
    """Return what makes the chain and its jump as they are planned; a jump that is in place stays there."""
    chains = saved.get(chain.table, {})
    lines = [
        f"-A {chain.name} {format_rule(rule, chain.table)}"
        for rule in chain.rules
        if isinstance(rule, FilterRule)
    ]
    if jump_of(chains, chain.table, chain.name) is not Jump.IN_PLACE:
        lines = [*_without_jumps(chains, chain.name), *lines, _jump(chain, chains)]
    return _transaction(chain, *lines)


def format_removal(chain: IptablesChain, saved: SavedTables) -> str:
    """Return what takes the chain and all jumps to it away."""
    jumps = _without_jumps(saved.get(chain.table, {}), chain.name)
    return _transaction(chain, *jumps, f"-X {chain.name}")


def _transaction(chain: IptablesChain, *lines: str) -> str:
    return "\n".join([f"*{chain.table}", f":{chain.name} - [0:0]", *lines, "COMMIT", ""])


def _without_jumps(chains: Mapping[str, SavedChain], name: str) -> Iterator[str]:
    # What stands in our own chain goes as it is emptied.
    return (f"-D {where} {rule}" for where, rule in jumps_to(chains, name) if where != name)


def _jump(chain: IptablesChain, chains: Mapping[str, SavedChain]) -> str:
    jump = jump_rule(chain.table, chain.name)
    hook = chains.get(chain.hook, SavedChain("ACCEPT"))
    gone = {rule for where, rule in jumps_to(chains, chain.name) if where == chain.hook}
    deciding = deciding_index([rule for rule in hook.rules if rule not in gone])
    return f"-A {chain.hook} {jump}" if deciding is None else f"-I {chain.hook} {deciding + 1} {jump}"
