"""Faults that the status of the daemon shows: its prerequisites, its peers, its data path."""

import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import islice

from msgspec.structs import replace

from pyflannel.model.status import (
    Finding,
    RefusedLease,
    SignatureFault,
    Status,
    StrangerStatus,
)
from pyflannel.plan.doctor.addresses import addresses_of_peers
from pyflannel.plan.doctor.observed import NAMED, DaemonProcess, Observed, OpenFiles, some

RECENT_S = 3600.0
"""Maximum age of a rejected sender's latest packet, or of a replaced lease, for which it is reported as a
finding.

The status also shows older errors.
"""


def _daemon(seen: Observed) -> Iterator[Finding]:
    """Yield the most specific reason why the daemon is not ready."""
    status = seen.status
    waiting = status.waiting_for or "no reason given"
    full = None if seen.daemon is None else _of_daemon(seen, seen.daemon)
    if full is not None:
        consequence = () if status.is_live else (f"consequence: flanneld does not respond: {waiting}",)
        yield replace(full, evidence=(*full.evidence, *consequence))
    elif not status.is_live:
        yield _away(seen, waiting)
    elif status.store is not None and not status.store.is_connected:
        is_cluster = status.store.url == "kube:"
        yield Finding(
            code="store-away",
            severity="error",
            cause="the store does not respond: new peers are unreachable"
            if is_cluster
            else "the store does not respond: leases expire and new peers are unreachable",
            evidence=(f"{status.store.url}: {status.store.last_error or waiting}",),
            fix="kubectl get --raw /readyz  # asks the API server"
            if is_cluster
            else f"flannelctl --store {status.store.url} leases  # prints the cause",
        )
    elif status.reconcile is not None and status.reconcile.held:
        yield Finding(
            code="fight",
            severity="error",
            cause="another program keeps changing objects of flanneld",
            evidence=some(status.reconcile.held),
            fix=f"{_watch(status.reconcile.held)}  # find the program (NetworkManager, dhcpcd, …) and exclude"
            " the object in its configuration",
        )
    elif status.reconcile is not None and status.reconcile.refused:
        yield Finding(
            code="refused",
            severity="error",
            cause="the host refuses a part of the plan",
            evidence=some(status.reconcile.refused),
            fix=f"{'journalctl -u flanneld' if seen.has_unit else 'flannelctl events'}"
            "  # shows each refusal; the log of flanneld also contains the remedies",
        )
    elif status.lease is not None and status.lease.trouble is not None:
        yield Finding(
            code="no-free-subnet",
            severity="error",
            cause=f"flanneld has no lease: {status.lease.trouble.text}",
            fix=status.lease.trouble.hint,
        )
    elif status.lease is not None and status.lease.phase == "taken":
        return  # a finding about the lease names the holder
    elif not status.is_ready and not waits_for_config(status):
        yield Finding(
            code="not-ready",
            severity="error",
            cause=f"flanneld waits for {waiting}",
            fix="flannelctl status",
        )


def _of_daemon(seen: Observed, process: DaemonProcess) -> Finding | None:
    restart = (
        "systemctl restart flanneld" if seen.has_unit else f"kill -KILL {process.pid}  # and start it again"
    )
    return _files_exhausted("flanneld", process.pid, process.files, restart)


def _forwarder(seen: Observed) -> Iterator[Finding]:
    """Yield the finding that the forwarder cannot open further files."""
    forwarder = seen.status.forwarder
    if forwarder is not None and forwarder.pid is not None:
        full = _files_exhausted(
            "the forwarder", forwarder.pid, seen.forwarder_files, f"kill -KILL {forwarder.pid}"
        )
        yield from () if full is None else (full,)


def _files_exhausted(name: str, pid: int, files: OpenFiles | None, restart: str) -> Finding | None:
    """Return the finding that a process has as many open files as its limit permits; None otherwise.

    `restart`: the command that starts the process again. A hard limit can be raised only with
    CAP_SYS_RESOURCE.
    """
    if files is None or files.opened < files.limit:
        return None
    return Finding(
        code="files-exhausted",
        severity="error",
        cause=f"{name} (pid {pid}) has reached its limit of {files.limit} open files, so it accepts no"
        " connection and starts no program",
        evidence=(
            f"/proc/{pid}/limits: Max open files {files.limit}",
            f"ls /proc/{pid}/fd | wc -l: {files.opened}",
        ),
        fix=f"prlimit --pid {pid} --nofile={files.most}"
        if files.most > files.limit
        else f"prlimit --pid {pid} --nofile={_USUAL_FILES} || {restart}",
    )


_USUAL_FILES = 524_288
"""The greatest number of open files that systemd permits a service."""


_OF_FILTERS = re.compile("iptables|nftables|chain|rule|guard")


def _watch(objects: Iterable[str]) -> str:
    """Return the command that shows each change of these objects. For filter rules, nft also prints the name
    and the ID of the process.
    """
    found = {"nft monitor" if _OF_FILTERS.search(one) else "ip monitor" for one in objects}
    return "; ".join(sorted(found))


def _away(seen: Observed, reason: str) -> Finding:
    """Return the finding that flanneld does not respond: it does not run, hangs or is stopped, or this user
    may not ask it.
    """
    effect = "damage is not repaired and new peers are unreachable"
    cause = f"flanneld does not respond: {effect}"
    fix = "systemctl start flanneld" if seen.has_unit else "Start flanneld."
    if not seen.may_ask:
        cause = "this user has no permission to ask flanneld, so most problems of this host are unknown"
        fix = "Run flannelctl as root, or as the user of flanneld."
    elif seen.daemon is not None:
        pid, is_stopped = seen.daemon.pid, seen.daemon.is_stopped
        cause = (
            f"flanneld (pid {pid}) {'is stopped' if is_stopped else 'runs, but does not respond'}: {effect}"
        )
        restart = "systemctl restart flanneld" if seen.has_unit else f"kill -KILL {pid}"
        fix = f"kill -CONT {pid}" if is_stopped else f"{restart}  # read its log first"
        if not seen.has_unit and not is_stopped:
            fix += ", and start flanneld again"
    return Finding(code="daemon-away", severity="error", cause=cause, evidence=(reason,), fix=fix)


_EXPIRES_SOON_S = 30 * 86400.0


def _certificates(seen: Observed) -> Iterator[Finding]:
    """Yield certificates for the store that are invalid now, or expire soon."""
    for one in seen.certificates:
        noun, now = f"the {one.noun} for the store", seen.now
        fix = f"openssl x509 -noout -dates -in {one.path}  # then replace the file; flanneld reads it again"
        if one.not_before <= now <= one.not_after - _EXPIRES_SOON_S:
            continue
        if one.not_before <= now <= one.not_after:
            yield Finding(
                code="certificate-expires",
                severity="warning",
                cause=f"{noun} expires in {(one.not_after - now) / 86400:.0f} days",
                evidence=(f"{one.path}: valid until {_date(one.not_after)}",),
                fix=fix,
            )
            continue
        state = "has expired" if now > one.not_after else "is not valid yet"
        yield Finding(
            code="certificate-invalid",
            severity="error",
            cause=f"{noun} {state}: flanneld cannot reconnect to the store",
            evidence=(
                f"{one.path}: valid from {_date(one.not_before)} until {_date(one.not_after)}",
                f"the clock of this host shows {_date(now)}",
            ),
            fix=fix,
        )


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _config(seen: Observed) -> Iterator[Finding]:
    network = seen.status.network
    if network is not None and network.trouble is not None:
        yield Finding(
            code="bad-config",
            severity="error" if waits_for_config(seen.status) else "warning",
            cause=f"flanneld {network.trouble.text}",
            evidence=(f"in force: {network.text}",) if network.text is not None else (),
            fix=network.trouble.hint,
        )


def waits_for_config(status: Status) -> bool:
    """Return whether there was no valid network config yet, so that the daemon cannot start."""
    network = status.network
    return network is not None and network.text is None and network.trouble is not None


def _refused_peers(seen: Observed) -> Iterator[Finding]:
    held = addresses_of_peers(seen)  # these peers are named with the address
    refused = [one for one in seen.status.refused_peers if one.public_ip not in held]
    if refused:
        yield Finding(
            code="peers-refused",
            severity="warning",
            cause=f"{len(refused)} of {seen.status.peers} peers are refused and unreachable",
            evidence=some([f"{peer.subnet} at {peer.host_text}: {peer.reason}" for peer in refused]),
            fix="flannelctl peers",
        )


def _silent_peers(seen: Observed) -> Iterator[Finding]:
    """Yield the WireGuard peers that have never answered a handshake."""
    peers = seen.status.wireguard.peers if seen.status.wireguard is not None else ()
    silent = [peer for peer in peers if peer.handshake_age_s is None and peer.sent]
    if silent:
        yield Finding(
            code="no-handshake",
            severity="error",
            cause=f"{len(silent)} of {len(peers)} peers have not answered a handshake of WireGuard",
            evidence=some([f"{peer.subnet} at {peer.endpoint or 'an unknown address'}" for peer in silent]),
            fix="wg show  # configure firewalls and NATs to pass the UDP ports of these endpoints, in "
            "both directions",
        )


def _user_space(seen: Observed) -> Iterator[Finding]:
    path = seen.status.fast_path
    if path is not None and path.mode in ("user-space", "uncached"):
        reason = path.reason or ""
        lacking = (one.text for one in path.lacking if one.text not in reason)
        yield Finding(
            code="no-fast-path",
            severity="warning",
            cause="user space carries the packets, which is slower: the kernel cannot carry them"
            if path.mode == "user-space"
            else "no flow bypasses the firewall, which is slower: the kernel cannot load the programs",
            evidence=some([reason, *lacking]),
            fix=f"flanneld --fast-path=off  # to accept this; otherwise: {path.hint}",
        )


def _left_programs(seen: Observed) -> Iterator[Finding]:
    """Yield programs that carry packets although the daemon cannot read or change them."""
    path = seen.status.fast_path
    if path is None:
        return
    restart = "systemctl restart flanneld" if seen.has_unit else "restart flanneld"
    cause = "programs of an earlier flanneld carry packets by tables that flanneld cannot update"
    blind = [notice.text for notice in path.remarks if notice.hint]
    has_looked = seen.status.reconcile is not None and seen.status.reconcile.passes > 0
    if blind or (path.mode not in ("safe", "flow") and seen.programs and has_looked):
        yield Finding(
            code="programs-left",
            severity="error",
            cause=cause,
            evidence=some([*blind, *(program.title for program in seen.programs)]),
            fix=f"flannelctl pins, then {restart}  # to remove the programs instead: flannelctl cleanup",
        )
    for notice in path.remarks:
        if not notice.hint:
            yield Finding(code="fast-path-full", severity="info", cause=notice.text, fix="flannelctl status")


def _uncached(seen: Observed) -> Iterator[Finding]:
    """Yield the reasons why packets pass through the firewall although the mode is flow."""
    path = seen.status.fast_path
    if path is not None and path.uncached:
        yield Finding(
            code="flow-not-cached",
            severity="info",
            cause="in mode flow, packets still pass through the firewall",
            evidence=some(path.uncached),
            fix="nft list ruleset  # then change the rule or the setting that the evidence names",
        )


def _strangers(seen: Observed) -> Iterator[Finding]:
    """Yield the senders of dropped tunnel packets, grouped by cause and remedy."""
    alike: dict[tuple[str, str], list[StrangerStatus]] = {}
    held = addresses_of_peers(seen)
    for one in seen.status.strangers:
        if one.age_s < RECENT_S and one.address not in held and not _is_admitted(one, seen):
            alike.setdefault((one.cause, one.hint), []).append(one)
    for (cause, hint), senders in islice(alike.items(), NAMED):
        is_single = len(senders) == 1
        many = str(senders[0].address) if is_single else f"{len(senders)} addresses"
        yield Finding(
            code="stranger",
            severity="warning",
            cause=f"tunnel packets from {many} are dropped: {cause}",
            evidence=some([f"{'' if is_single else f'{one.address}: '}{_traffic(one)}" for one in senders]),
            fix=hint,
        )


def _is_admitted(one: StrangerStatus, seen: Observed) -> bool:
    """Return whether the sender now has the subnet of the inner source, so that its packets are accepted."""
    return one.reason == "impostor" and any(
        one.inner_source in subnet and one.address == address
        for subnet, address in seen.membership.peers.items()
    )


def _traffic(one: StrangerStatus) -> str:
    return (
        f"{one.packets} packets, the latest {one.age_s:.0f} s ago"
        f" from {one.inner_source} to {one.inner_destination}"
    )


def _refused_leases(seen: Observed) -> Iterator[Finding]:
    """Yield the leases whose signatures are refused, by reason."""
    signing = seen.status.lease_signing
    if signing is None:
        return
    by_fault: dict[SignatureFault, list[RefusedLease]] = {}
    for one in signing.refused:
        if one.is_in_store or one.age_s < RECENT_S:
            by_fault.setdefault(one.fault, []).append(one)
    for alike in by_fault.values():
        many = "a lease is" if len(alike) == 1 else f"{len(alike)} leases are"
        how = "refused" if signing.mode == "require" else "accepted only because of --lease-signing=warn"
        yield Finding(
            code="lease-signature",
            severity="warning",
            cause=f"{many} {how}: {alike[0].cause}",
            evidence=some([_refused_lease(one) for one in alike]),
            fix=alike[0].hint,
        )


def _refused_lease(one: RefusedLease) -> str:
    times = "once" if one.times == 1 else f"{one.times} times"
    place = "in the store" if one.is_in_store else "not in the store any more"
    return f"{one.subnet} at {one.host_text}: written {times}, read {one.age_s:.0f} s ago, {place}"


def _allow_list(seen: Observed) -> Iterator[Finding]:
    """Yield the reason why the latest allow-list is not in use, and a finding if it does not contain the
    key of this host.
    """
    signing = seen.status.lease_signing
    if signing is not None and signing.trouble is not None:
        has_none = signing.allowed == 0 and signing.mode == "require"
        how = "flanneld refuses all other hosts" if has_none else "flanneld keeps the last valid allow-list"
        yield Finding(
            code="allow-list",
            severity="error" if has_none else "warning",
            cause=f"{how}: {signing.trouble.text}",
            evidence=(f"in force: {signing.allowed} keys",),
            fix=signing.trouble.hint,
        )
    if signing is not None and signing.is_own_key_allowed is False:
        yield Finding(
            code="own-key-not-allowed",
            severity="warning",
            cause="the allow-list does not contain the key of this host, so hosts with the same list "
            "refuse its lease",
            evidence=(f"in force: {signing.allowed} keys",),
            fix="jq -r .Public /var/lib/flannel/lease-key.json  # add this key to the list on all hosts",
        )


_SINGLE_WARNINGS = 3
"""Maximum number of warnings that have a separate finding each. If there are more warnings, they share one
finding."""


def _warnings(seen: Observed) -> Iterator[Finding]:
    """Yield the warnings of the status that no other finding contains."""
    status = seen.status
    reported = {peer.reason for peer in status.refused_peers}
    if status.network is not None and status.network.trouble is not None:
        reported.add(status.network.trouble.text)
    texts = [text for text in status.warnings if text not in reported]
    if len(texts) > _SINGLE_WARNINGS:
        yield Finding(
            code="network-warning",
            severity="warning",
            cause=f"flanneld has {len(texts)} warnings about the network",
            evidence=some(texts),
            fix="flannelctl leases",
        )
        return
    for text in texts:
        yield Finding(code="network-warning", severity="warning", cause=text, fix="flannelctl leases")


CHECKS = (
    _daemon,
    _forwarder,
    _certificates,
    _config,
    _refused_peers,
    _silent_peers,
    _user_space,
    _left_programs,
    _uncached,
    _strangers,
    _refused_leases,
    _allow_list,
    _warnings,
)
