"""`mk-docker-opts` writes Docker's options from subnet.env, like flannel's shell script of the same name.

The program never executes the input. The program replaces the output file as a whole.
"""

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pyflannel.errors import UsageError, WireError
from pyflannel.wire.subnet_env import (
    DEFAULT_KEY,
    flannels_alone,
    foreign_routes,
    format_docker_opts,
    is_variable_name,
    parse_assignments,
)

_USAGE = """\
{program} [-f FLANNEL-ENV-FILE] [-d DOCKER-ENV-FILE] [-i] [-c] [-m] [-k COMBINED-KEY]

Generate Docker daemon options based on flannel env file
OPTIONS:
\t-f\tPath to flannel env file. Defaults to /run/flannel/subnet.env
\t-d\tPath to Docker env file to write to. Defaults to /run/docker_opts.env
\t-i\tOutput each Docker option as individual var. e.g. DOCKER_OPT_MTU=1500
\t-c\tOutput combined Docker options into DOCKER_OPTS var
\t-k\tSet the combined options key to this value (default DOCKER_OPTS=)
\t-m\tDo not output --ip-masq (useful for older Docker version)

"""
_WITH_ARGUMENT, _WITHOUT_ARGUMENT, _ASK_FOR_USAGE = "fdk", "icm", "?h"

_EXIT_REFUSED = 1
_EXIT_UNREADABLE = 2


class _Flags(NamedTuple):
    flannel_env: str = "/run/flannel/subnet.env"
    docker_env: str = "/run/docker_opts.env"
    key: str = DEFAULT_KEY
    individual: bool = False
    combined: bool = False
    with_ip_masq: bool = True


def main() -> int:
    """Run the program; return its exit status: 1 for a wrong command line or a refusal, 2 for an unusable
    file.
    """
    try:
        flags = _parse(sys.argv[1:])
    except UsageError as error:
        sys.stderr.write(f"{error}\n" if str(error) else "")
        sys.stderr.write(_USAGE.format(program=sys.argv[0]))
        return _EXIT_REFUSED
    try:
        variables = _environment() | _read(flags.flannel_env)
    except WireError as error:
        return _fail(_EXIT_UNREADABLE, f"{flags.flannel_env}: {error.in_full}")
    except OSError as error:
        return _fail(_EXIT_UNREADABLE, f"{flags.flannel_env}: {error.strerror}")
    return _generate(flags, variables)


def _generate(flags: _Flags, variables: Mapping[str, str]) -> int:
    """Write the options for `variables`, then check for a conflicting route."""
    try:
        text = format_docker_opts(
            variables,
            individual=flags.individual or not flags.combined,
            combined=flags.combined or not flags.individual,
            with_ip_masq=flags.with_ip_masq,
            key=flags.key,
        )
        _write(flags.docker_env, os.fsencode(text))
    except WireError as error:
        return _fail(_EXIT_REFUSED, str(error))
    except OSError as error:
        return _fail(_EXIT_UNREADABLE, f"{flags.docker_env}: {error.strerror}")
    subnet = variables.get("FLANNEL_SUBNET")
    if subnet and (routes := foreign_routes(subnet, _ip_routes())):
        listed = "\n".join(routes)
        return _fail(_EXIT_REFUSED, f"Your routing table already contains the subnet: {listed}")
    return 0


def _parse(arguments: Sequence[str]) -> _Flags:
    """Return the flags, parsed like getopts of a POSIX shell. Words after the flags are ignored.

    Raises:
        UsageError: a wrong flag (with the same message as dash), or a request for the usage (without a
            message).
    """
    given: dict[str, str] = {}
    words = list(arguments)
    while words and len(words[0]) > 1 and words[0].startswith("-"):
        letters = words.pop(0)[1:]
        if letters == "-":
            break
        while letters:
            letter, letters = letters[0], letters[1:]
            if letter in _ASK_FOR_USAGE:
                raise UsageError("", hint="")
            if letter in _WITHOUT_ARGUMENT:
                given[letter] = ""
            elif letter not in _WITH_ARGUMENT:
                raise UsageError(f"Illegal option -{letter}", hint="See the usage.")
            elif not letters and not words:
                raise UsageError(f"No arg for -{letter} option", hint="See the usage.")
            else:
                given[letter], letters = letters or words.pop(0), ""
    return _Flags(
        flannel_env=given.get("f", _Flags().flannel_env),
        docker_env=given.get("d", _Flags().docker_env),
        key=given.get("k", DEFAULT_KEY),
        individual="i" in given,
        combined="c" in given,
        with_ip_masq="m" not in given,
    )


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if is_variable_name(name)}


def _read(path: str) -> dict[str, str]:
    """Return the variables that the file assigns. A missing file counts as empty, with a warning on stderr.

    The original does not warn about a missing file. Without options, Docker starts with its default subnet,
    which no peer can reach. Docker runs as root. Therefore a file or a link of another user, such as
    flanneld, must not be able to set options other than flannel's options.
    """
    if not os.path.isfile(path):
        sys.stderr.write(
            f"warning: {path} does not exist or is not a file, so Docker gets no subnet from it."
            " Start flanneld first.\n"
        )
        return {}
    with open(path, "rb") as file:
        variables = parse_assignments(os.fsdecode(file.read()))
        is_trusted = _is_ours(os.fstat(file.fileno())) and _is_path_ours(path)
        return variables if is_trusted else flannels_alone(variables)


def _is_ours(found: os.stat_result) -> bool:
    return found.st_uid in (0, os.geteuid())


def _is_path_ours(path: str) -> bool:
    """Return whether no other user can replace a part of the path, for example by a link to a file of
    root.
    """
    part = os.path.abspath(path)
    while _is_ours(os.lstat(part)):
        if part == os.path.dirname(part):
            return True
        part = os.path.dirname(part)
    return False


def _write(path: str, data: bytes) -> None:
    """Replace the content of `path` as a whole. Like the operator `>` of a shell, follow symbolic links and
    keep mode and owner.

    Paths that cannot be replaced are written in place: an open descriptor such as /dev/stdout, a file that is
    not regular, and a file that is a mount point, for example in a container.
    """
    try:
        found = os.stat(path)
    except FileNotFoundError:
        found = None
    is_descriptor = os.path.abspath(path).startswith(("/dev/", "/proc/"))
    if not is_descriptor and (found is None or stat.S_ISREG(found.st_mode)):
        try:
            _replace(os.path.realpath(path), data, found)
            return
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
    with open(path, "wb") as file:
        file.write(data)


def _replace(path: str, data: bytes, found: os.stat_result | None) -> None:
    """Rename a new file to `path`, with mode and owner of the existing file `found`, if such a file
    exists.
    """
    temporary = f"{os.path.dirname(path)}/.{os.path.basename(path)}.{os.urandom(4).hex()}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        with open(descriptor, "wb") as file:
            if found is not None:
                os.fchown(descriptor, found.st_uid, found.st_gid)
                os.fchmod(descriptor, stat.S_IMODE(found.st_mode))
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _ip_routes() -> list[str]:
    """Return the lines of `ip route show`; empty if the command is missing or fails."""
    try:
        shown = subprocess.run(["ip", "route", "show"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    except OSError:
        return []
    return os.fsdecode(shown.stdout).splitlines()


def _fail(status: int, message: str) -> int:
    sys.stderr.write(f"{message}\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
