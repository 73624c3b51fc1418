"""flannelctl allow-list: manage the list of hosts' keys, which an operator signs and hosts read from the
store.
"""

import os
from pathlib import Path

import click

from pyflannel.assembly.store_flags import etcd_password_of, store_url_from_environment
from pyflannel.assembly.stores import parse_store_url
from pyflannel.cli.answers import answer, print_json, print_text
from pyflannel.cli.invocation import (
    Invocation,
    VerbGroup,
    confirm,
    is_interactive,
    say,
    shared_options,
)
from pyflannel.commands.allow_list import compare, operator_key, read_signed, sign_file, stored_list
from pyflannel.errors import NotReadyError
from pyflannel.model.lease import LARGEST_COUNTER
from pyflannel.wire.control_json import AllowList, ListChange, SignedFile, format_document
from pyflannel.wire.lease_signature import parse_allowed_keys

_PATH = click.Path(path_type=Path)


@click.group("allow-list", cls=VerbGroup)
def allow_list() -> None:
    """Sign, publish and show the list of the keys whose leases are accepted."""


@allow_list.command("new-key")
@click.argument("file", metavar="FILE", type=_PATH)
@shared_options("json")
@click.pass_obj
def new_key(invocation: Invocation, file: Path) -> None:
    """Create the key of an operator in FILE, and print its public part.

    Write the public part into the file of --lease-operators on each host. If FILE already contains a key,
    this key is not changed. Keep FILE on a machine that is not a host of the network.
    """
    public = operator_key(file).hex()
    if invocation.wants_json:
        print_json(format_document(SignedFile(str(file), operator=public)))
    else:
        say(public)


@allow_list.command()
@click.argument("file", metavar="FILE", type=_PATH)
@click.option(
    "--key",
    "key_file",
    metavar="KEYFILE",
    type=_PATH,
    required=True,
    help="File with the key of the operator.",
)
@click.option("--output", metavar="FILE", type=_PATH, show_default="FILE.signed", help="Signed list.")
@click.option(
    "--counter",
    type=click.IntRange(1, LARGEST_COUNTER),
    show_default="one more than in the output file, if that exists",
    help="Counter of the list. Hosts refuse a new list if its counter is not higher than that of the last "
    "list.",
)
@shared_options("store", "json")
@click.pass_obj
def sign(
    invocation: Invocation, file: Path, key_file: Path, output: Path | None, counter: int | None
) -> None:
    """Sign the allow-list in FILE for the network in the store.

    FILE contains one key per line, with an optional comment after it. The signature covers the prefix of the
    store, so select the store as for the other commands. flannelctl does not connect to the store.
    """
    target = output or file.with_name(f"{file.name}.signed")
    signed = sign_file(file, key_file, target, _prefix(invocation), counter)
    if invocation.wants_json:
        print_json(format_document(SignedFile(str(target), signed.operator.hex(), signed.counter)))
    else:
        say(f"signed {len(parse_allowed_keys(signed.text))} keys with counter {signed.counter}: {target}")


@allow_list.command()
@click.argument("file", metavar="SIGNED", type=_PATH)
@click.option("--dry-run", is_flag=True, help="Check the list and show the difference, but write nothing.")
@click.option("--yes", "-y", "is_confirmed", is_flag=True, help="Do not ask for confirmation.")
@shared_options("store", "json")
@click.pass_obj
def publish(invocation: Invocation, file: Path, dry_run: bool, is_confirmed: bool) -> None:
    """Write a signed allow-list to the store, for all hosts.

    flannelctl checks the signature and the counter, and shows the difference to the stored list. On a
    terminal, flannelctl asks for confirmation.
    """
    url, password = _url(invocation), etcd_password_of(os.environ)
    signed = read_signed(file, _prefix(invocation))
    publication = answer(invocation, compare(signed, file, url, password))
    difference = publication.difference
    if not invocation.wants_json:
        print_text("\n".join(difference) or "no difference to the stored allow-list")
    if not dry_run:
        if not is_confirmed and is_interactive():
            invocation = confirm(invocation, "Write this allow-list for all hosts?")
        answer(invocation, publication.write(url, password), writes=True)
    if invocation.wants_json:
        print_json(format_document(ListChange(signed.counter, difference, written=not dry_run)))
    else:
        verb = "would write" if dry_run else "wrote"
        say(f"{verb} the allow-list with counter {signed.counter}")


@allow_list.command()
@shared_options("store", "json")
@click.pass_obj
def get(invocation: Invocation) -> None:
    """Print the allow-list in the store. A damaged or forged list is an error."""
    url, password = _url(invocation), etcd_password_of(os.environ)
    signed = answer(invocation, stored_list(url, password, _prefix(invocation)))
    if signed is None:
        raise NotReadyError(
            "the store contains no allow-list", hint="Write one with flannelctl allow-list publish."
        )
    if invocation.wants_json:
        print_json(format_document(AllowList(signed.counter, signed.operator.hex(), signed.text)))
    else:
        print_text(f"# counter {signed.counter}, signed by {signed.operator.hex()}\n{signed.text.rstrip()}")


def _url(invocation: Invocation) -> str:
    return invocation.store_url or store_url_from_environment(os.environ)


def _prefix(invocation: Invocation) -> str:
    return parse_store_url(_url(invocation)).prefix or ""
