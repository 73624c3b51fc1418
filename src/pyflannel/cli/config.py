"""flannelctl config and flannelctl plan: the network config, and the changes that it causes on this host."""

import asyncio
import contextlib
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from pyflannel.cli.answers import (
    answer,
    local_time,
    network_of,
    print_json,
    print_text,
    reach,
    socket_of,
    store_of,
)
from pyflannel.cli.invocation import (
    Invocation,
    Verb,
    VerbGroup,
    confirm,
    is_interactive,
    print_warning,
    run_dir_option,
    say,
    shared_options,
)
from pyflannel.commands.history import (
    ConfigDifference,
    ConfigHistory,
    config_history,
    host_deviations,
    stored_config,
)
from pyflannel.commands.network_client import ControlClient
from pyflannel.errors import (
    ConfigError,
    NoStoreError,
    NotReadyError,
    UnknownBackendError,
    UsageError,
    WireError,
)
from pyflannel.model.lease import LeaseEntry, host_text
from pyflannel.model.network_config import NetworkConfig
from pyflannel.model.status import PlanPreview
from pyflannel.plan.backends import config_warnings, difference_of, effects_of
from pyflannel.wire.control_json import format_document, format_preview
from pyflannel.wire.network_config_json import format_network_config, parse_network_config

_SOURCE = "Name a file, write the JSON itself, or - for standard input."


def _complete_file(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(incomplete, type="file")]


source_argument = click.argument("source", metavar="FILE|JSON|-", shell_complete=_complete_file)
"""The argument for a network config. `read_source` returns the text of the config."""


@click.group(cls=VerbGroup)
def config() -> None:
    """Show, check and write the network config."""


@config.command()
@run_dir_option
@shared_options("store", "socket", "json")
@click.pass_obj
def get(invocation: Invocation, run_dir: Path | None) -> None:
    """Print the network config as it is stored."""
    text = answer(invocation, _get(invocation, run_dir), is_limited=True)
    if text is None:
        raise NotReadyError(
            "there is no network config yet",
            hint="""Write one: flannelctl config set '{"Network": "10.100.0.0/16"}'""",
        )
    if not invocation.wants_json:
        print_text(text)
        return
    print_json(_described(text))


@config.command("set")
@source_argument
@click.option("--dry-run", is_flag=True, help="Check the config and show the difference, but write nothing.")
@click.option(
    "--force", is_flag=True, help="Write the config even if it has unknown keys or an unknown backend."
)
@click.option("--yes", "-y", "is_confirmed", is_flag=True, help="Do not ask for confirmation.")
@run_dir_option
@shared_options("store", "socket", "json")
@click.pass_obj
def set_(
    invocation: Invocation, source: str, dry_run: bool, force: bool, is_confirmed: bool, run_dir: Path
) -> None:
    """Check a network config and write it, for all hosts.

    The config is a FILE, the JSON itself, or - for standard input. flannelctl shows the difference to the
    stored config, and the effects on hosts that use the same config as this host. On a terminal, flannelctl
    asks for confirmation. An invalid config is not written.
    """
    text = read_source(source)
    computed, warnings = checked_config(text, accepts_unknown=force)
    if warnings and not force:
        raise ConfigError("; ".join(warnings), hint="Correct the config, or write it with --force.")
    stored, leases, used = answer(invocation, _stored(invocation, run_dir))
    difference, effects = difference_of(stored, text), _effects(used or stored, computed, leases)
    if not invocation.wants_json:
        print_text("\n".join(difference) or "no difference to the stored network config")
        for effect in effects:
            print_text(f"effect: {effect}")
    if not dry_run:
        if not is_confirmed and is_interactive():
            invocation = confirm(invocation, "Write this network config for all hosts?")
        answer(invocation, _set(invocation, run_dir, text), writes=True)
    if invocation.wants_json:
        _print_computed(computed, warnings, Difference=difference, Effects=effects, Written=not dry_run)
    else:
        verb = "would write" if dry_run else "wrote"
        say(f"{verb} the network config: {computed.network or computed.ipv6_network}")


@config.command()
@source_argument
@shared_options("json")
@click.pass_obj
def validate(invocation: Invocation, source: str) -> None:
    """Check a network config, and print it with all computed values.

    The config is a FILE, the JSON itself, or - for standard input. Nothing is written.
    """
    computed, warnings = checked_config(read_source(source), accepts_unknown=False)
    if invocation.wants_json:
        _print_computed(computed, warnings)
    else:
        print_json(format_network_config(computed).encode())


@config.command()
@click.argument("source", metavar="[FILE|JSON|-]", required=False, shell_complete=_complete_file)
@run_dir_option
@shared_options("store", "socket", "json")
@click.pass_obj
def diff(invocation: Invocation, source: str | None, run_dir: Path | None) -> None:
    """Compare the stored network config with a file, and with the configs of the running hosts.

    For other hosts, flannelctl compares only the values in their leases: the subnet, the type, the port and
    the VNI. If flanneld on this host responds, flannelctl compares the whole config of this host.

    Exit codes:
      0  there is no difference
      1  there is a difference, or the store refused the request
      2  a network config is invalid
      3  there is no stored network config, or no answer in time

    Examples:
      flannelctl config diff
      flannelctl config diff new.json
      flannelctl config diff --json
    """
    given = None if source is None else read_source(source)
    computed = None if given is None else parse_network_config(given)
    found = answer(invocation, _compare(invocation, run_dir, given, computed))
    if invocation.wants_json:
        print_json(format_document(found))
    else:
        _print_difference(found, has_file=given is not None, asks_daemon=invocation.store_url is None)
    if not found.ok:
        click.get_current_context().exit(1)


async def _compare(
    invocation: Invocation, run_dir: Path | None, given: str | None, computed: NetworkConfig | None
) -> ConfigDifference:
    async with store_of(invocation, run_dir) as store:
        (stored, leases), used = await asyncio.gather(stored_config(store), _used(invocation, run_dir))
    difference = () if given is None else tuple(difference_of(stored, given))
    entries = [*map(LeaseEntry.of, leases)]
    effects = () if computed is None else tuple(_effects(used or stored, computed, entries))
    this_host = None if used is None else tuple(difference_of(stored, used, name="used on this host"))
    hosts = host_deviations(stored, leases)
    return ConfigDifference(
        ok=not (difference or this_host or hosts),
        difference=difference,
        effects=effects,
        this_host=this_host,
        leases=len(leases),
        hosts=hosts,
    )


async def _used(invocation: Invocation, run_dir: Path | None) -> str | None:
    """Return the network config that flanneld uses on this host; None if it does not respond in time."""
    if invocation.store_url is None:
        with contextlib.suppress(NotReadyError, WireError):
            return await ControlClient(socket_of(invocation, run_dir), _ASK_S).config_text()
    return None


_ASK_S = 1.0
"""Deadline in seconds for the answer of flanneld, so that the store can still answer within 5 s."""


def _print_difference(found: ConfigDifference, *, has_file: bool, asks_daemon: bool) -> None:
    if has_file:
        print_text("\n".join(found.difference) or "no difference to the stored network config")
        for effect in found.effects:
            print_text(f"effect: {effect}")
    if found.this_host:
        print_text("\n".join(found.this_host))
    elif found.this_host is not None:
        say("this host: uses the stored network config")
    elif asks_daemon:
        say("this host: unknown, because flanneld does not respond")
    for one in found.hosts:
        say(f"{host_text(one.public_ip, one.host_name)}, {one.subnet}: {'; '.join(one.differences)}")
    say(f"{len(found.hosts)} of {found.leases} leases differ from the stored network config")


@config.command()
@run_dir_option
@shared_options("store", "socket", "json")
@click.pass_obj
def history(invocation: Invocation, run_dir: Path | None) -> None:
    """List the earlier network configs that the store still has, with the latest config last.

    Each config is shown as the difference to the previous config. etcd keeps changes until its compaction.
    The SQLite store keeps at least the last 10,000 changes. The last line shows how far back the history
    reaches. A store keeps no times: "not later than" is computed from the age of later leases.

    Exit codes:
      0  the history is shown
      1  the store refused the request
      3  no answer in time

    Examples:
      flannelctl config history
      flannelctl config history --json
    """
    found = answer(invocation, _history(invocation, run_dir))
    if invocation.wants_json:
        print_json(format_document(found))
        return
    before: str | None = None
    for version in found.versions:
        say(f"revision {version.revision}, not later than: {local_time(version.not_after)}")
        if version.text is None:
            say("the network config was deleted")
        else:
            # the lines of the difference, without the file names
            lines = difference_of(before, version.text)[2:]
            print_text("\n".join(lines) or "no difference to the previous config")
        before = version.text
    say(reach(found.begin, found.revision, is_complete=found.is_complete))


async def _history(invocation: Invocation, run_dir: Path | None) -> ConfigHistory:
    async with store_of(invocation, run_dir) as store:
        return await config_history(store)


_PLAN_DEADLINE_S = 3.0
"""Deadline in seconds for the plan, so that the command answers within 5 s."""

_SIGNS = {"add": "+", "change": "~", "remove": "-"}


@click.command(cls=Verb)
@click.option(
    "--config",
    "source",
    metavar="FILE|JSON|-",
    shell_complete=_complete_file,
    help="Plan with this network config instead of the config in force. Nothing is written.",
)
@run_dir_option
@shared_options("socket", "json")
@click.pass_obj
def plan(invocation: Invocation, source: str | None, run_dir: Path | None) -> None:
    """Show the changes that flanneld would make now, or with another network config.

    flanneld reads this host and compares it with the plan. Nothing is changed. A line begins with + for an
    object that would be added, ~ for an object that would be changed, and - for an object that would be
    removed. The command needs a running flanneld. The command takes at most 5 seconds.

    Exit codes:
      0  the changes are shown, even if there are none
      2  the network config is invalid, or this host would refuse it
      3  flanneld does not respond, or has no plan yet

    Examples:
      flannelctl plan
      flannelctl plan --config new.json
      flannelctl plan --config '{"Network": "10.100.0.0/16", "Backend": {"Type": "vxlan"}}'
    """
    text = None if source is None else read_source(source)
    daemon = ControlClient(socket_of(invocation, run_dir), _PLAN_DEADLINE_S)
    found = answer(invocation, daemon.preview(text), is_limited=True)
    if invocation.wants_json:
        print_json(format_preview(found))
    else:
        for one in found.changes:
            say(f"{_SIGNS[one.action]} {one.text}")
        say(_summary(found))
    if found.waits_for is not None:
        click.get_current_context().exit(3)


def _summary(found: PlanPreview) -> str:
    if found.waits_for is not None:
        return f"no plan: this host waits for {found.waits_for}"
    counts = Counter(one.action for one in found.changes)
    if not counts:
        return "no changes: this host is as planned"
    return f"{counts['add']} to add, {counts['change']} to change, {counts['remove']} to remove"


def checked_config(text: str, *, accepts_unknown: bool) -> tuple[NetworkConfig, list[str]]:
    """Return the config and the warnings about it, and print the warnings.

    Raises:
        ConfigError: the config is invalid; an unknown backend is a warning if `accepts_unknown`.
    """
    computed = parse_network_config(text)
    try:
        warnings = list(config_warnings(computed))
    except UnknownBackendError as error:
        if not accepts_unknown:
            raise
        warnings = [str(error)]
    for warning in warnings:
        print_warning(warning)
    return computed, warnings


def _print_computed(computed: NetworkConfig, warnings: Sequence[str], **others: object) -> None:
    document = json.loads(format_network_config(computed))
    print_json(json.dumps({**document, "Warnings": warnings, **others}).encode())


async def _get(invocation: Invocation, run_dir: Path | None) -> str | None:
    async with network_of(invocation, run_dir) as network:
        return await network.config_text()


async def _stored(
    invocation: Invocation, run_dir: Path | None
) -> tuple[str | None, list[LeaseEntry], str | None]:
    """Return the stored config, the leases, and the config that this host uses; None and no leases if the
    store does not exist yet.
    """
    try:
        async with network_of(invocation, run_dir) as network:
            text, leases, used = await asyncio.gather(
                network.config_text(), network.leases(), _used(invocation, run_dir)
            )
            return text, [] if text is None else leases, used
    except NoStoreError:
        return None, [], None


def _effects(old: str | None, new: NetworkConfig, leases: Sequence[LeaseEntry]) -> list[str]:
    """Return the effects of the new config on running hosts; empty if the old config is missing or
    invalid.
    """
    if old is None:
        return []
    try:
        return effects_of(parse_network_config(old), new, leases)
    except ConfigError:
        return []


async def _set(invocation: Invocation, run_dir: Path | None, text: str) -> None:
    async with network_of(invocation, run_dir, creates=True) as network:
        await network.set_config(text)


def read_source(source: str) -> str:
    """Return the text that an argument selects: the content of a file, standard input, or the argument
    itself.

    Raises:
        ConfigError: the text is not UTF-8.
        UsageError: the text is empty or cannot be read.
    """
    if source.lstrip().startswith("{"):
        return source
    if not source:
        raise UsageError("the network config is missing: the argument is empty", hint=_SOURCE)
    try:
        data = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    except OSError as error:
        raise UsageError(
            f"cannot read {source}: {(error.strerror or str(error)).lower()}", hint=_SOURCE
        ) from error
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{source} is not UTF-8: {error.reason}", hint="Write the config as JSON in UTF-8."
        ) from error


def _described(text: str) -> bytes:
    """Return the JSON document of `get`: the stored text, and its computed values or the error in it."""
    computed, fault = None, None
    try:
        computed = json.loads(format_network_config(parse_network_config(text)))
    except ConfigError as error:
        fault = str(error)
    return json.dumps({"text": text, "config": computed, "error": fault}).encode()
