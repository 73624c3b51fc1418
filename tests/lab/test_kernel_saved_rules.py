"""Rules of both kinds of iptables in one network namespace are read and removed, regardless of the kind in
use.
"""

import asyncio
import os
from pathlib import Path

import pytest

from pyflannel.kernel.filters.iptables import read_rules, remove_rules
from pyflannel.model.packet_filter import SavedRules
from pyflannel.plan.leftovers import rules_left

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")

RULES = """
*nat
:FLANNEL-POSTRTG -
-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG
-A FLANNEL-POSTRTG -s 10.77.0.0/16 -m comment --comment "flanneld masq" -j RETURN
COMMIT
"""
COMMENTED = '-s 10.77.0.0/16 -d 10.77.0.0/16 -m comment --comment "flanneld masq" -j RETURN'
KINDS = {"nft": "/usr/sbin/xtables-nft-multi", "legacy": "/usr/sbin/xtables-legacy-multi"}


def use(kind: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the plain program names run this kind of iptables."""
    for name in ("iptables", "ip6tables"):
        for part in ("", "-save", "-restore"):
            (directory / f"{name}{part}").symlink_to(KINDS[kind])
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")


@pytest.mark.parametrize("kind", KINDS)
def test_remains_in_the_other_kind_are_found_and_removed(
    namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The rules of the kind in use are also removed, without its chains with owned names."""
    use(kind, tmp_path, monkeypatch)
    other = f"iptables-{'legacy' if kind == 'nft' else 'nft'}"
    for program in ("iptables", other):
        restore = ["env", f"PATH={os.environ['PATH']}", f"{program}-restore", "--noflush"]
        namespace.command(*restore, given=f"{RULES}*nat\n-A POSTROUTING {COMMENTED}\nCOMMIT\n")

    async def clean_up() -> tuple[SavedRules, ...]:
        for left in rules_left(await read_rules(), frozenset()):
            await remove_rules(left)
        return await read_rules()

    found = {saved.program: saved.chains for saved in namespace.run(clean_up)}

    assert found[other].get("nat", {}).get("POSTROUTING", ()) == ()
    assert "FLANNEL-POSTRTG" not in found[other].get("nat", {})
    assert found["iptables"]["nat"]["POSTROUTING"] == (
        '-m comment --comment "flanneld masq" -j FLANNEL-POSTRTG',
    )


def test_reading_creates_no_tables(namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of legacy iptables exists after its first use until the namespace ends."""
    use("nft", tmp_path, monkeypatch)

    assert all(not saved.chains for saved in namespace.run(read_rules))

    assert namespace.command("cat", "/proc/net/ip_tables_names") == ""
    assert namespace.command("nft", "list", "tables") == ""


def test_a_host_without_iptables_has_no_rules(namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")

    async def look() -> tuple[SavedRules, ...]:
        async with asyncio.timeout(100):
            return await read_rules()

    assert namespace.run(look) == ()
