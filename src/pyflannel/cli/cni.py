"""flannelctl cni: install and remove the CNI plugin."""

from pathlib import Path

import click
from msgspec.structs import asdict

from pyflannel.cli.invocation import (
    Invocation,
    VerbGroup,
    print_object,
    print_warning,
    say,
    shared_options,
    subnet_file_option,
)
from pyflannel.commands.cni_plugin import CniPlaces, CniReport, install, uninstall
from pyflannel.wire.cni import DEFAULT_SUBNET_FILE


@click.group(cls=VerbGroup)
def cni() -> None:
    """Attach containers of Kubernetes, containerd and Podman to the network."""


_bin_dir = click.option(
    "--bin-dir",
    type=click.Path(path_type=Path),
    default=CniPlaces().bin_dir,
    show_default=True,
    help="Directory of the runtime's plugins.",
)
_conf_dir = click.option(
    "--conf-dir",
    type=click.Path(path_type=Path),
    default=CniPlaces().conf_dir,
    show_default=True,
    help="Directory of the runtime's network configurations.",
)


@cni.command("install")
@_bin_dir
@_conf_dir
@subnet_file_option
@shared_options("json")
@click.pass_obj
def install_(invocation: Invocation, bin_dir: Path, conf_dir: Path, subnet_file: Path | None) -> None:
    """Install the plugin "flannel" and its network configuration.

    An original plugin is renamed, and its network configuration is not changed.
    """
    places = CniPlaces(bin_dir=bin_dir, conf_dir=conf_dir)
    _report(invocation, install(places, subnet_file or Path(DEFAULT_SUBNET_FILE)))


@cni.command("uninstall")
@_bin_dir
@_conf_dir
@shared_options("json")
@click.pass_obj
def uninstall_(invocation: Invocation, bin_dir: Path, conf_dir: Path) -> None:
    """Remove the files that "cni install" wrote, and restore a plugin that it renamed.

    Stop the containers first: without the plugin, the runtime cannot remove their interfaces.
    """
    _report(invocation, uninstall(CniPlaces(bin_dir=bin_dir, conf_dir=conf_dir)))


def _report(invocation: Invocation, report: CniReport) -> None:
    for line in report.warnings:
        print_warning(line)
    if invocation.wants_json:
        print_object(asdict(report))
        return
    for line in report.done:
        say(line)
    for line in report.kept:
        say(f"kept {line}")
    if not report.done and not report.kept:
        say("found no plugin of pyflannel in this directory")
