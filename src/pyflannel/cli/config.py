"""flannelctl config: the network config, read, checked and written."""

import asyncio
import json
import sys
from pathlib import Path

import click

from pyflannel.cli.answers import network_of, print_json, print_text
from pyflannel.cli.invocation import Invocation, json_option, run_dir_option, say
from pyflannel.errors import ConfigError, NotReadyError, UsageError
from pyflannel.plan.backends import config_warnings
from pyflannel.wire.network_config_json import format_network_config, parse_network_config


@click.group(no_args_is_help=False)
def config() -> None:
    """Read, check and write the network config."""


@config.command()
@run_dir_option
@json_option
@click.pass_obj
def get(invocation: Invocation, run_dir: Path) -> None:
    """Print the network config as it is written."""
    text = asyncio.run(_get(invocation, run_dir))
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
@click.argument("source", metavar="FILE|JSON|-")
@run_dir_option
@json_option
@click.pass_obj
def set_(invocation: Invocation, source: str, run_dir: Path) -> None:
    """Check a network config and write it, for all hosts.

    It is read from FILE, from standard input for -, or is the JSON itself. A bad one is not written.
    """
    text = _read(source)
    computed = parse_network_config(text)
    for warning in config_warnings(computed):
        say(f"flannelctl: warning: {warning}", err=True)
    asyncio.run(_set(invocation, run_dir, text))
    if invocation.wants_json:
        print_json(format_network_config(computed).encode())
    else:
        say(f"wrote the network config: {computed.network or computed.ipv6_network}")


@config.command()
@click.argument("source", metavar="FILE|JSON|-")
@json_option
def validate(source: str) -> None:
    """Check a network config, and print all that follows from it.

    It is read from FILE, from standard input for -, or is the JSON itself. Nothing is written or asked.
    """
    computed = parse_network_config(_read(source))
    for warning in config_warnings(computed):
        say(f"flannelctl: warning: {warning}", err=True)
    print_json(format_network_config(computed).encode())


async def _get(invocation: Invocation, run_dir: Path) -> str | None:
    async with network_of(invocation, run_dir) as network:
        return await network.config_text()


async def _set(invocation: Invocation, run_dir: Path, text: str) -> None:
    async with network_of(invocation, run_dir) as network:
        await network.set_config(text)


def _read(source: str) -> str:
    """Return the text that an argument stands for: a file's, standard input's, or itself."""
    if source.lstrip().startswith("{"):
        return source
    try:
        octets = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    except OSError as error:
        raise UsageError(
            f"cannot read {source}: {(error.strerror or str(error)).lower()}",
            hint="Name a file, give the JSON itself, or - for standard input.",
        ) from error
    try:
        return octets.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{source} is not UTF-8: {error.reason}", hint="Write the config as JSON."
        ) from error


def _described(text: str) -> bytes:
    """Return the stored text, and what follows from it or why nothing does."""
    computed, fault = None, None
    try:
        computed = json.loads(format_network_config(parse_network_config(text)))
    except ConfigError as error:
        fault = str(error)
    return json.dumps({"text": text, "config": computed, "error": fault}).encode()
