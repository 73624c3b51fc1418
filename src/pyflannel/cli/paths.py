"""flannelctl ping and bench: the path to another host, part by part."""

from pathlib import Path

import click

from pyflannel.cli.answers import answer, label_of, places_of, print_facts, print_json, print_table
from pyflannel.cli.hosts import complete_host
from pyflannel.cli.invocation import Invocation, Verb, run_dir_option, say, shared_options, state_options
from pyflannel.model.lease import host_text
from pyflannel.model.probe import BenchLine, BenchReport, PingReport, PingStep
from pyflannel.wire.control_json import format_document, format_ping


@click.command(cls=Verb)
@click.argument("host", metavar="HOST|ADDRESS", shell_complete=complete_host)
@run_dir_option
@state_options
@shared_options("socket", "json")
@click.pass_obj
def ping(
    invocation: Invocation,
    host: str,
    run_dir: Path | None,
    state_dir: Path | None,
    subnet_file: Path | None,
) -> None:
    """Probe the path to a host or a container, and show where packets stop.

    HOST is a host name, an address or a subnet of a lease; ADDRESS is the IPv4 or IPv6 address of a
    container. flannelctl probes the underlay, the tunnel and the container with ICMP echo. If both hosts have
    IPv4 and IPv6, flannelctl probes a HOST in both families. If no answer arrives, flannelctl checks this
    host. A host with the original flannel also answers. The command needs root, and takes at most 5 seconds.

    Exit codes:
      0  packets of the largest size arrive
      1  packets stop, or the host is unknown
      3  flanneld does not respond, and its files are not sufficient

    Examples:
      flannelctl ping docker2
      flannelctl ping 10.100.93.7
      flannelctl ping --json 192.168.50.101
    """
    from pyflannel.commands.ping import ping_path

    places = places_of(run_dir, state_dir, subnet_file)
    report = answer(invocation, ping_path(places, invocation.socket, host), is_limited=True)
    if invocation.wants_json:
        print_json(format_ping(report))
    else:
        _print_report(report)
    if not report.ok:
        click.get_current_context().exit(1)


def _print_report(report: PingReport) -> None:
    has_families = len({step.family for step in report.steps}) > 1
    lines: list[tuple[str, str]] = [
        (f"IPv{step.family} {step.name}" if has_families else step.name, _step(step)) for step in report.steps
    ]
    if report.stops is not None:
        lines += [
            ("stops at", f"{report.stops}: {report.cause}"),
            (label_of(report.fix or ""), report.fix or ""),
        ]
    if report.containers is not None:
        lines += [
            (
                "containers",
                f"this host sent the probes itself; packets of its containers: {report.containers}",
            ),
            ("type", "flannelctl doctor"),
        ]
    print_facts([("host", f"{host_text(report.public_ip, report.host_name)}, {report.subnet}"), *lines])


def _step(step: PingStep) -> str:
    rtt = "" if step.rtt_ms is None else f" in {step.rtt_ms:.1f} ms"
    mtu = "" if step.mtu is None else f", up to {step.mtu} bytes"
    text = f", {step.text}" if step.text else ""
    return f"{step.destination} {step.state}{rtt}{mtu}{text}"


@click.command(cls=Verb)
@click.argument("host", metavar="HOST|ADDRESS", shell_complete=complete_host)
@run_dir_option
@state_options
@shared_options("socket", "json")
@click.pass_obj
def bench(
    invocation: Invocation,
    host: str,
    run_dir: Path | None,
    state_dir: Path | None,
    subnet_file: Path | None,
) -> None:
    """Measure round-trip times to a host: underlay, tunnel and container path, and their ratios.

    HOST is a host name, an address or a subnet of a lease; ADDRESS is the address of a container. flannelctl
    sends single ICMP echo packets of 84 bytes and of the MTU of the network, one at a time, for about two
    seconds. The other host needs no running flanneld, and may run the original flannel. flannelctl bench does
    not measure throughput. The command needs root, and takes at most 5 seconds.

    Exit codes:
      0  each path answered
      1  a path did not answer, or the host is unknown
      3  flanneld does not respond, and its files are not sufficient

    Examples:
      flannelctl bench docker2
      flannelctl bench 10.100.93.7 --json
    """
    from pyflannel.commands.ping import bench_host

    places = places_of(run_dir, state_dir, subnet_file)
    report = answer(invocation, bench_host(places, invocation.socket, host), is_limited=True)
    if invocation.wants_json:
        print_json(format_document(report))
    else:
        _print_bench(report)
    if not report.ok:
        click.get_current_context().exit(1)


_BENCH_HEADINGS = ("PATH", "ADDRESS", "BYTES", "ANSWERED", "MIN MS", "MEDIAN MS", "P90 MS", "RATIO")


def _print_bench(report: BenchReport) -> None:
    encrypted = ", encrypted" if report.is_encrypted else ""
    host = host_text(report.public_ip, report.host_name)
    say(f"{host}, {report.subnet}, {report.backend_type}{encrypted}")
    print_table(_BENCH_HEADINGS, map(_bench_row, report.lines), can_stack=True)
    for label, texts in (("measured", report.measured), ("not measured", report.not_measured)):
        for text in texts:
            say(f"{label}: {text}")


def _bench_row(line: BenchLine) -> tuple[str, ...]:
    times = (line.min_ms, line.median_ms, line.p90_ms)
    reason = f" ({line.text})" if line.text and not line.received else ""
    return (
        line.name,
        str(line.destination),
        str(line.size),
        f"{line.received} of {line.sent}{reason}",
        *("-" if one is None else f"{one:.3f}" for one in times),
        "-" if line.ratio is None else f"{line.ratio:.2f}",
    )
