"""Runs flanneld, after own_process has decided which libraries to load."""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from pyflannel.api.control import serve_control
from pyflannel.api.monitoring.routes import health_routes, metrics_routes
from pyflannel.assembly.daemon import Daemon, places_of, run_lock
from pyflannel.assembly.directories import Places
from pyflannel.assembly.logs import configure_logging
from pyflannel.assembly.options import FlanneldOptions, RequestedText, parse_flanneld
from pyflannel.errors import FlannelError, UsageError, one_line
from pyflannel.http.server import Routes
from pyflannel.http.sockets import Endpoint, serve_endpoint
from pyflannel.programs.own_process import collect_less, hide_on_command_line, return_free_memory

log = logging.getLogger(__name__)

_HANGUP = "flanneld reads config and certificates when they change, and flags only at its start"
_IGNORED = {
    signal.SIGUSR1: "flanneld does not use this signal",
    signal.SIGUSR2: "flanneld does not use this signal",
}
"""Further signals that would end the process by default, and the reason why flanneld ignores them."""


def run() -> int:
    """Run until a signal; return 0 after a signal, 1 if flanneld cannot run here, 2 for a wrong command
    line.
    """
    try:
        options = parse_flanneld(sys.argv[1:], os.environ)
    except UsageError as error:
        print(f"flanneld: {one_line(error.in_full)}", file=sys.stderr)
        return 2
    if isinstance(options, RequestedText):
        print(options.text, end="", file=getattr(sys, options.stream))
        return 0
    configure_logging(options.log_format, options.verbosity, sys.stderr)
    for warning in options.warnings:
        log.warning("%s", warning)
    if options.etcd_password is not None and not hide_on_command_line(options.etcd_password):
        log.warning("The etcd password is visible in the process list: use --etcd-password-file instead")
    try:
        places = places_of(options)
        collect_less()
        with run_lock(places):
            asyncio.run(_run(options, places))
    except FlannelError as error:
        return _give_up(error)
    except BaseExceptionGroup as group:
        ours, others = group.split(FlannelError)
        if ours is None or others is not None:
            raise
        return _give_up(_first(ours))
    return 0


def _first(group: BaseExceptionGroup[FlannelError]) -> FlannelError:
    """Return the first failure; this failure cancelled the other tasks."""
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


def _give_up(error: FlannelError) -> int:
    """Report the error in one line; return the exit status."""
    if isinstance(error, UsageError):
        print(f"flanneld: {one_line(error.in_full)}", file=sys.stderr)
        return 2
    log.critical("%s", error.in_full)
    return 1


async def _run(options: FlanneldOptions, places: Places) -> None:
    log.info("Installing signal handlers")
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    for number, reason in _IGNORED.items():
        loop.add_signal_handler(number, log.info, "Ignored %s: %s", number.name, reason)
    daemon = Daemon(
        options,
        places,
        door=lambda network: serve_control(network.places.control_socket, network),
        turned=return_free_memory,
    )
    loop.add_signal_handler(signal.SIGHUP, _reload, daemon)
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(daemon.run(), name="daemon")]
        if options.docker_socket is not None and daemon.docker is not None:
            from pyflannel.api.docker_plugin import serve_docker

            serving = serve_docker(Path(options.docker_socket), daemon.docker)
            running.append(tasks.create_task(serving, name="docker"))
        for endpoint, routes in _endpoints(options, daemon):
            running.append(tasks.create_task(serve_endpoint(endpoint, routes), name=endpoint.name))
        await stop.wait()
        log.info("Exiting...")
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)  # a second signal ends the process immediately
        for task in running:
            task.cancel()


def _reload(daemon: Daemon) -> None:
    if daemon.reload():
        log.info("Received SIGHUP: reading the allow-list again; %s", _HANGUP)
    else:
        log.info("Ignored SIGHUP: %s", _HANGUP)


def _endpoints(options: FlanneldOptions, daemon: Daemon) -> Iterator[tuple[Endpoint, Routes]]:
    """Yield each HTTP endpoint and its routes.

    Raises:
        UsageError: the token for the web page is unusable.
    """
    health = health_routes(daemon)
    if options.healthz is not None:
        yield options.healthz, health
    if options.http is not None:
        from pyflannel.api.page.access import Access, read_token  # only --http needs the module of the page
        from pyflannel.api.page.routes import page_routes

        token_file = None if options.http_token_file is None else Path(options.http_token_file)
        if token_file is not None:
            read_token(token_file)
        page = page_routes(daemon, Access(options.http.ip, token_file))
        yield options.http, {**health, **metrics_routes(daemon), **page}
