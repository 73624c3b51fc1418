"""`flannel`, the CNI plugin: attaches containers to the subnet of this host, through a delegate plugin.

The runtime passes the command in CNI_COMMAND and the network configuration on standard input. The plugin
computes the configuration of the delegate (by default `bridge` with `host-local`) from subnet.env, saves it,
and runs the delegate.

A saved configuration belongs to one attachment, which is a container and an interface name. The configuration
of the first attachment of a container is saved under the file name of the original, which is the container
ID. A symbolic link `ID@INTERFACE` leads to this file. The results of further attachments are saved as
`ID@INTERFACE`. Therefore the original can delete attachments that this plugin made, and this plugin can
delete those of the original.
"""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import IPv4Address
from typing import NamedTuple

from pyflannel import VERSION
from pyflannel.errors import CniError, WireError
from pyflannel.wire import cni
from pyflannel.wire.cni import Attachment, NetworkConf

_REQUIRED = {
    "ADD": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"),
    "CHECK": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"),
    "DEL": ("CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"),
    "STATUS": ("CNI_PATH",),
    "GC": ("CNI_PATH",),
    "VERSION": (),
}
_MINIMUM_VERSION = {"CHECK": "0.4.0", "STATUS": "1.1.0", "GC": "1.1.0"}

_INTERFACE_OF_ORIGINAL = "eth0"
"""The interface name of an attachment whose saved file does not contain it. Kubernetes uses no other name."""

_STATUS_DEADLINE_S = 1.0


def main() -> int:
    """Run one command of the runtime; return the exit status."""
    environment = os.environ
    version = ""
    try:
        command = environment.get("CNI_COMMAND", "")
        if not command:
            sys.stderr.write(
                f"CNI Plugin flannel version {VERSION}\n"
                f"CNI protocol versions supported: {', '.join(cni.VERSIONS)}\n"
            )
            return 0
        _check_environment(command, environment)
        if command == "VERSION":
            sys.stdout.write(cni.format_versions())
            return 0
        conf = cni.parse_network_conf(sys.stdin.buffer.read(cni.LONGEST + 1))
        version = conf.version
        cni.check_version(version)
        if command in _MINIMUM_VERSION and not cni.is_at_least(version, _MINIMUM_VERSION[command]):
            raise CniError(
                f"config version does not allow {command}",
                hint=f"Set cniVersion to {_MINIMUM_VERSION[command]} or later.",
                code=cni.INCOMPATIBLE_VERSION,
            )
        sys.stdout.write(_run(command, conf, environment))
    except CniError as error:
        sys.stdout.write(cni.format_error(error, version))
        return 1
    except OSError as error:
        text = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        hint = "Check the permissions and the free space in this directory."
        failure = CniError(text, hint=hint, code=cni.IO_FAILURE)
        sys.stdout.write(cni.format_error(failure, version))
        return 1
    return 0


def _check_environment(command: str, environment: Mapping[str, str]) -> None:
    if command not in _REQUIRED:
        raise CniError(
            f"unknown CNI_COMMAND: {command}",
            hint=f"Use one of {', '.join(_REQUIRED)}.",
            code=cni.INVALID_ENVIRONMENT,
        )
    required = _REQUIRED[command]
    missing = [name for name in required if not environment.get(name)]
    if missing:
        raise CniError(
            f"required env variables [{','.join(missing)}] missing",
            hint="The container runtime must set these variables.",
            code=cni.INVALID_ENVIRONMENT,
        )
    if "CNI_CONTAINERID" in required:
        cni.check_container_id(environment["CNI_CONTAINERID"])
        cni.check_interface_name(environment["CNI_IFNAME"])
        _check_namespace(environment)


def _check_namespace(environment: Mapping[str, str]) -> None:
    """Refuse the network namespace of the host, whose interfaces a delegate would change or delete."""
    try:
        named = os.stat(environment.get("CNI_NETNS") or os.devnull)
        own = os.stat("/proc/self/ns/net")
    except OSError:
        return  # a DEL may follow the end of the namespace; in an ADD, the delegate reports the error
    is_own = (named.st_dev, named.st_ino) == (own.st_dev, own.st_ino)
    if is_own and environment.get("CNI_NETNS_OVERRIDE", "").lower() not in ("1", "true"):
        raise CniError(
            f"plugin's netns and netns from CNI_NETNS should not be the same: {environment['CNI_NETNS']}",
            hint="Specify the namespace of a container, or set CNI_NETNS_OVERRIDE=1.",
            code=cni.INVALID_ENVIRONMENT,
        )


def _run(command: str, conf: NetworkConf, environment: Mapping[str, str]) -> str:
    """Run a command; return the text for standard output."""
    match command:
        case "ADD":
            return _add(conf, environment)
        case "DEL":
            return _delete(conf, environment)
        case "CHECK":
            return _check(conf, environment)
        case "STATUS":
            return _status(conf, environment)
        case _:
            return _collect(conf, environment)


def _add(conf: NetworkConf, environment: Mapping[str, str]) -> str:
    delegate = cni.delegate_conf(conf, _subnets(conf))
    text = cni.format_conf(delegate)
    with _failure("failed to delegate add"):
        # Without the delegate, nothing is attached, and a DEL has nothing to do.
        _program_of(delegate, environment)
        _Saved(conf.data_dir).write(_attachment(environment), text)
        answer = _delegate("ADD", delegate, text, environment)
        result = cni.format_result(answer, conf.version)
    _announce(result)
    return result


def _announce(result: str) -> None:
    """Let the host and the other containers forget the MAC address of a former container with an address.

    Without this call, the host and the containers send packets to this MAC address for eight seconds. The
    delegate `bridge` (1.1.1 and 1.7.1) announces no address. A failure has no other effect than this delay.
    """
    addresses = cni.new_addresses(result)
    if not addresses:
        return
    import socket

    for address, mac, links in addresses:
        for link in links:
            with contextlib.suppress(OSError):
                with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW) as route:
                    route.send(cni.neighbour_removal(socket.if_nametoindex(link), address))
                if mac and isinstance(address, IPv4Address):
                    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM) as packets:
                        arp = cni.arp_announcement(address, mac)
                        packets.sendto(arp, (link, _ETHERTYPE_ARP, 0, 0, b"\xff" * 6))


_ETHERTYPE_ARP = 0x0806


def _delete(conf: NetworkConf, environment: Mapping[str, str]) -> str:
    """Delete an attachment, as far as it exists. The saved file remains until the delegate has succeeded."""
    saved = _Saved(conf.data_dir)
    attachment = _attachment(environment)
    text = saved.read(attachment)
    if text is None:
        return ""
    delegate = cni.parse_saved_conf(text)
    if delegate is None:
        sys.stderr.write(f"flannel: the saved configuration of {attachment.container} is damaged\n")
        delegate = _rebuilt(conf)
        text = cni.format_conf(delegate)
    if delegate:
        _delegate("DEL", delegate, text, environment)
    saved.remove(attachment)
    return ""


def _rebuilt(conf: NetworkConf) -> dict[str, object]:
    """Return the delegate configuration computed again, or an empty configuration if that is impossible."""
    with contextlib.suppress(CniError):
        return cni.delegate_conf(conf, _subnets(conf))
    return {}


def _check(conf: NetworkConf, environment: Mapping[str, str]) -> str:
    attachment = _attachment(environment)
    text = _Saved(conf.data_dir).read(attachment)
    delegate = None if text is None else cni.parse_saved_conf(text)
    if delegate is None:
        raise CniError(
            f"the attachment {attachment.interface} of container {attachment.container} is unknown on "
            f"this host",
            hint=f"{conf.data_dir} contains no valid configuration for this attachment. Start the "
            f"container again.",
            code=cni.UNKNOWN_CONTAINER,
        )
    planned = cni.delegate_conf(conf, _subnets(conf))
    if _ranges(planned) != _ranges(delegate):
        raise CniError(
            f"container {attachment.container} has an address outside the subnet of this host",
            hint="The subnet of this host has changed. Start the container again.",
            code=cni.INTERNAL,
        )
    if conf.prev_result is not None:
        delegate["prevResult"] = cni.with_gateways(conf.prev_result)
    with _failure("failed to delegate check"):
        _delegate("CHECK", delegate, cni.format_conf(delegate), environment)
    return ""


def _status(conf: NetworkConf, environment: Mapping[str, str]) -> str:
    """Succeed if an ADD can succeed."""
    try:
        delegate = cni.delegate_conf(conf, _subnets(conf))
    except CniError as error:
        code = cni.PLUGIN_NOT_AVAILABLE if error.code == cni.TRY_AGAIN_LATER else error.code
        raise CniError(str(error), hint=error.hint, code=code) from error
    _delegate("STATUS", delegate, cni.format_conf(delegate), environment)
    return ""


def _collect(conf: NetworkConf, environment: Mapping[str, str]) -> str:
    """Delete each saved attachment of this network that does not exist, then let the delegate collect its
    garbage.
    """
    saved = _Saved(conf.data_dir)
    failures = []
    for attachment in saved.attachments():
        text = saved.read(attachment)
        delegate = None if text is None else cni.parse_saved_conf(text)
        if text is None or delegate is None or delegate.get("name") != conf.name:
            continue
        if _is_valid(attachment, conf.valid):
            continue
        own = {
            **environment,
            "CNI_CONTAINERID": attachment.container,
            "CNI_IFNAME": attachment.interface or _INTERFACE_OF_ORIGINAL,
            "CNI_NETNS": "",
        }
        try:
            _delegate("DEL", delegate, text, own)
            saved.remove(attachment)
        except CniError as error:
            failures.append(f"{attachment.container}: {error}")
    delegate = _rebuilt(conf)
    if delegate:
        delegate["cni.dev/valid-attachments"] = [
            {"containerID": each.container, "ifname": each.interface} for each in conf.valid
        ]
        try:
            _delegate("GC", delegate, cni.format_conf(delegate), environment)
        except CniError as error:
            failures.append(str(error))
    if failures:
        raise CniError(
            f"garbage collection failed: {'; '.join(failures)}",
            hint="The next collection tries again.",
            code=cni.INTERNAL,
        )
    return ""


def _is_valid(attachment: Attachment, valid: Sequence[Attachment]) -> bool:
    if not attachment.interface:
        return any(each.container == attachment.container for each in valid)
    return attachment in valid


def _ranges(delegate: Mapping[str, object]) -> object:
    ipam = delegate.get("ipam")
    return ipam.get("ranges") if isinstance(ipam, dict) else None


def _attachment(environment: Mapping[str, str]) -> Attachment:
    return Attachment(environment["CNI_CONTAINERID"], environment["CNI_IFNAME"])


def _subnets(conf: NetworkConf) -> cni.Subnets:
    """Return the subnets of this host.

    Raises:
        CniError: flanneld has not written subnet.env; the message contains the reason that flanneld gives.
    """
    try:
        with open(conf.subnet_file, encoding="utf-8") as file:
            return cni.parse_subnets(file.read())
    except (OSError, WireError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise CniError(
            f"failed to load flannel 'subnet.env' file: {conf.subnet_file}: {reason}",
            hint=_advice(os.path.dirname(conf.subnet_file)),
            code=cni.TRY_AGAIN_LATER,
        ) from error


def _advice(run_dir: str) -> str:
    """Return the remedy if subnet.env is unusable, from the status of flanneld."""
    import socket

    request = b"GET /v1/status HTTP/1.1\r\nHost: flanneld\r\nConnection: close\r\n\r\n"
    received = b""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_STATUS_DEADLINE_S)
            connection.connect(os.path.join(run_dir, "flanneld.sock"))
            connection.sendall(request)
            while part := connection.recv(65536):
                received += part
    except OSError:
        return (
            "flanneld does not run on this host, or uses another directory. Start flanneld, and read its log."
        )
    reason = cni.format_waiting_for(received.partition(b"\r\n\r\n")[2])
    if reason is None:
        return "flanneld runs, but does not write this file. Compare subnetFile with its --subnet-file."
    return f"flanneld is not ready. flanneld waits for {reason}"


class _Saved:
    """The saved delegate configurations in the data directory."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def write(self, attachment: Attachment, text: bytes) -> None:
        """Save the configuration of an attachment, durably, before its delegate runs."""
        os.makedirs(self._directory, mode=0o700, exist_ok=True)
        keyed = self._keyed(attachment)
        temporary = f"{keyed}~{os.getpid()}"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            with open(descriptor, "wb") as file:
                file.write(text)
                file.flush()
                os.fsync(descriptor)
            self._name(temporary, attachment, keyed)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)

    def _name(self, temporary: str, attachment: Attachment, keyed: str) -> None:
        """Rename a new file to the name of the original if it is free, or if this attachment already used
        it.
        """
        first = self._path(attachment.container)
        if self._link_target(keyed) == attachment.container:
            os.rename(temporary, first)
            return
        with contextlib.suppress(FileExistsError):
            os.link(temporary, first)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(keyed)
            os.symlink(attachment.container, keyed)
            return
        os.rename(temporary, keyed)

    def read(self, attachment: Attachment) -> bytes | None:
        """Return the saved configuration of an attachment; None if no configuration is saved."""
        for path in self._candidates(attachment):
            with contextlib.suppress(FileNotFoundError):
                with open(path, "rb") as file:
                    return file.read()
        return None

    def remove(self, attachment: Attachment) -> None:
        """Remove the file of an attachment, and its symbolic link."""
        keyed = self._keyed(attachment)
        paths = list(self._candidates(attachment))[:1]
        if self._link_target(keyed) == attachment.container:
            paths = [self._path(attachment.container), keyed]
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def attachments(self) -> Iterator[Attachment]:
        """Yield every saved attachment. If the original saved an attachment, the name of its interface is
        "".
        """
        try:
            names = sorted(os.listdir(self._directory))
        except FileNotFoundError:
            return
        keyed = [name for name in names if "@" in name and "~" not in name]
        claimed = {self._link_target(self._path(name)) for name in keyed}
        for name in keyed:
            container, _, interface = name.partition("@")
            yield Attachment(container, interface)
        for name in names:
            if "@" not in name and name not in claimed:
                yield Attachment(name, "")

    def _candidates(self, attachment: Attachment) -> Iterator[str]:
        """Yield the files that may contain an attachment: the file of this plugin, or that of the original.

        A file of the original to which another attachment of pyflannel links is not a candidate.
        """
        keyed = self._keyed(attachment)
        if attachment.interface and os.path.lexists(keyed):
            yield keyed
            return
        owners = f"{attachment.container}@"
        try:
            names = os.listdir(self._directory)
        except FileNotFoundError:
            return
        if not any(
            name.startswith(owners) and self._link_target(self._path(name)) == attachment.container
            for name in names
        ):
            yield self._path(attachment.container)

    def _keyed(self, attachment: Attachment) -> str:
        return self._path(f"{attachment.container}@{attachment.interface}")

    def _path(self, name: str) -> str:
        return os.path.join(self._directory, name)

    @staticmethod
    def _link_target(path: str) -> str | None:
        try:
            return os.readlink(path)
        except OSError:
            return None


class _Finished(NamedTuple):
    status: int
    output: bytes
    errors: bytes


def _delegate(
    command: str, delegate: Mapping[str, object], text: bytes, environment: Mapping[str, str]
) -> bytes:
    """Run a command of a delegate; return its standard output.

    Raises:
        CniError: the delegate is not installed, or failed; the error contains the error that the delegate
            printed, if any.
    """
    program = _program_of(delegate, environment)
    finished = _execute(program, text, {**environment, "CNI_COMMAND": command})
    if finished.status == 0:
        sys.stderr.write(finished.errors.decode(errors="replace"))
        return finished.output
    if (error := cni.parse_error(finished.output)) is not None:
        raise error
    reason = (finished.errors or finished.output).decode(errors="replace").strip() or "no error message"
    raise CniError(
        f"netplugin failed: {program} {_ending(finished.status)}: {reason}",
        hint="Run the delegate manually with the saved configuration.",
        code=cni.INTERNAL,
    )


@contextlib.contextmanager
def _failure(what: str) -> Iterator[None]:
    """Name the failed step in an error of this plugin; an error of the delegate is not changed."""
    try:
        yield
    except CniError as error:
        raise CniError(f"{what}: {error}", hint=error.hint, code=error.code) from error


def _program_of(delegate: Mapping[str, object], environment: Mapping[str, str]) -> str:
    name, directories = cni.check_delegate_type(delegate), environment["CNI_PATH"].split(":")
    for directory in directories:
        program = os.path.join(directory, name)
        if os.path.isfile(program):
            return program
    raise CniError(
        f'failed to find plugin "{name}" in path [{" ".join(directories)}]',
        hint="Install the plugin: Debian's package containernetworking-plugins has bridge and host-local.",
        code=cni.INTERNAL,
    )


def _execute(program: str, text: bytes, environment: Mapping[str, str]) -> _Finished:
    """Run a program with `text` on its standard input. The output is read from files in memory, because
    they cannot block as pipes could.
    """
    given, output, errors = (os.memfd_create(name) for name in ("stdin", "stdout", "stderr"))
    try:
        os.write(given, text)
        os.lseek(given, 0, os.SEEK_SET)
        actions = [(os.POSIX_SPAWN_DUP2, file, number) for number, file in enumerate((given, output, errors))]
        try:
            process = os.posix_spawn(program, [program], environment, file_actions=actions)
        except OSError as error:
            raise CniError(
                f"{program} cannot be executed: {error.strerror}",
                hint="Install the delegate again."
                if error.errno != errno.EACCES
                else "Make the program executable: chmod +x.",
                code=cni.INTERNAL,
            ) from error
        _, ending = os.waitpid(process, 0)
        return _Finished(os.waitstatus_to_exitcode(ending), _contents(output), _contents(errors))
    finally:
        for file in (given, output, errors):
            os.close(file)


def _contents(file: int) -> bytes:
    return os.pread(file, os.fstat(file).st_size, 0)


def _ending(status: int) -> str:
    return f"ended with status {status}" if status > 0 else f"was ended by signal {-status}"


if __name__ == "__main__":
    sys.exit(main())
