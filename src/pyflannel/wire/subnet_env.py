"""Reads and writes subnet.env without a shell, and converts its variables to options of Docker."""

import re
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Network, IPv6Network
from itertools import takewhile
from typing import TYPE_CHECKING, NamedTuple

from pyflannel.errors import WireError

if TYPE_CHECKING:  # this import is here because the CNI plugin and mk-docker-opts then start twice as fast
    from pyflannel.model.docker import Division
    from pyflannel.model.network_config import IpNetwork, NetworkConfig

# Reads files of shell assignments without a shell: comments, `NAME=value`, quotes, `export`.
#
# A part that needs a shell (a command, an expansion, a redirection) is refused and never executed.
#
# Source: POSIX.1-2017, Shell Command Language, 2.2 quoting, 2.3 tokens, 2.9.1 simple commands.

_EXPANSION = r"(?:\$[A-Za-z0-9_{(@*#?$!-]|`)"
_PIECE = re.compile(
    rf"""
      (?P<blank> [ \t]+ )
    | (?P<end> [\n;] )
    | (?P<continuation> \\\n )
    | \\ (?P<escaped> . )
    | ' (?P<single> [^']* ) '
    | " (?P<double> (?: (?!{_EXPANSION}) [^"\\] | \\. )* ) "
    | (?P<plain> (?: (?!{_EXPANSION}) [^\ \t\n;'"\\|&<>()] )+ )
    """,
    re.VERBOSE | re.DOTALL,
)
_COMMENT = re.compile(r"(?P<comment>#[^\n]*)")
_ESCAPE_IN_DOUBLE_QUOTES = re.compile(r"\\(?:([$`\"\\])|\n)")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HOME = re.compile(r"(?:\A[A-Za-z_][A-Za-z0-9_]*=|:)~")

_Pieces = list[tuple[str, str]]
"""An incomplete word. The list contains the kind of each piece, which is a group of `_PIECE`, and the text
without quotes."""


class _Word(NamedTuple):
    """A word without its quotes. The first `bare` characters of the word were not quoted."""

    text: str
    bare: int


def parse_assignments(text: str) -> dict[str, str]:
    """Return the variables that a shell has after it has read `text`. If a name is assigned twice, the last
    assignment applies.

    A carriage return is an ordinary character, as in a shell.

    Raises:
        WireError: the text needs a shell, or a quote is not closed; the message contains the line number.
    """
    assigned: dict[str, str] = {}
    for line, words in _commands(text):
        assignments = list(takewhile(_is_assignment, words))
        command = words[len(assignments) :]
        if command and (command[0].text != "export" or len(command) == 1):
            raise _needs_shell(line, f"the command {command[0].text!r}")
        for word in assignments + command[1:]:
            name, equals, value = word.text.partition("=")
            if not is_variable_name(name):
                raise _needs_shell(line, f"'export' of {word.text!r}")
            if equals:
                assigned[name] = value
    return assigned


def is_variable_name(text: str) -> bool:
    """Return whether `text` is a valid name of a shell variable."""
    return _NAME.fullmatch(text) is not None


def _is_assignment(word: _Word) -> bool:
    name, equals, _ = word.text.partition("=")
    return bool(equals) and word.bare > len(name) and is_variable_name(name)


def _commands(text: str) -> Iterator[tuple[int, list[_Word]]]:
    """Yield the words of each command that is not empty, with the number of its last line."""
    words: list[_Word] = []
    word: _Pieces = []
    position, line = 0, 1
    while position < len(text):
        piece = (not word and _COMMENT.match(text, position)) or _PIECE.match(text, position)
        if not piece:
            raise _complaint(text[position:], line)
        kind, content = str(piece.lastgroup), piece[str(piece.lastgroup)]
        if kind in ("blank", "end", "comment"):
            words += _closed(word, line)
            word = []
        elif kind != "continuation":
            word.append((kind, content))
        if kind == "end":
            if words:
                yield line, words
            elif content == ";":
                raise _needs_shell(line, "a ';' without a command")
            words = []
        line += text.count("\n", position, piece.end())
        position = piece.end()
    if words := words + _closed(word, line):
        yield line, words


def _closed(pieces: _Pieces, line: int) -> list[_Word]:
    """Return a list with the word that consists of `pieces`; an empty list without pieces."""
    bare = "".join(content for _, content in takewhile(lambda piece: piece[0] == "plain", pieces))
    plain = [bare, *(content for kind, content in pieces if kind == "plain")]
    if any(_HOME.search(content) for content in plain):
        raise _needs_shell(line, "'~'")
    text = "".join(
        _ESCAPE_IN_DOUBLE_QUOTES.sub(r"\1", content) if kind == "double" else content
        for kind, content in pieces
    )
    return [_Word(text, len(bare))] if pieces else []


def _complaint(rest: str, line: int) -> WireError:
    """Return the error for a text with which no piece begins."""
    if rest.startswith("'") or re.fullmatch(r'"(?:[^"\\]|\\.)*\\?', rest, re.DOTALL):
        return WireError(f"line {line}: the quote {rest[0]} is not closed", hint="Close the quote.")
    return _needs_shell(line, "an expansion" if rest[0] in '"$`' else f"{rest[0]!r}")


def _needs_shell(line: int, what: str) -> WireError:
    return WireError(
        f"line {line}: {what} needs a shell, but no shell executes the file",
        hint="Write assignments NAME=value. Write quotes around special characters of a shell.",
    )


# subnet.env describes the lease of a host for Docker, CNI and operators.
#
# The file has one `NAME=value` on each line, without quotes or blanks, in flannel's order. flanneld reads the
# file with the wider syntax of dotenv: comments, `export`, quotes, blanks around the equals sign, CRLF.
#
# Source: flannel 0.28.9, the subnet file of that release.

_LINE = re.compile(
    r"""
    \s* (?: export \s+ )? (?P<key> [\w.]+ ) \s* [=:] \s*
    (?: '(?P<single> [^']* )' | "(?P<double> (?: [^"\\] | \\. )* )" | (?P<plain> [^'"\#\s] .*? )? )
    \s* (?: (?: (?<=\s) | (?<=['"=:]) ) \#.* )?
    """,
    re.VERBOSE,
)


IPV6_SUBNET = "FLANNEL_IPV6_SUBNET"
DOCKER0_SUBNET = "FLANNEL_DOCKER0_SUBNET"
CNI_SUBNET = "FLANNEL_CNI_SUBNET"
IPV6_CNI_SUBNET = "FLANNEL_IPV6_CNI_SUBNET"
"""Names of lines that exist only with the network plugin for Docker: the parts of FLANNEL_SUBNET for
docker0 and for CNI."""


def format_subnet_env(
    *,
    config: "NetworkConfig",
    subnet: "IpNetwork | None",
    ipv6_subnet: IPv6Network | None = None,
    mtu: int,
    ip_masq: bool,
    division: "Division | None" = None,
    ipv6_cni: IPv6Network | None = None,
) -> str:
    """Return the text of subnet.env, with the lines of each family that the config enables.

    FLANNEL_SUBNET is the first address after the base address of the subnet: the address for the bridge. If
    the subnet is divided, docker0 and CNI each have a part of it. FLANNEL_IPMASQ, which every file contains,
    is the last line, so that a reader notices a file that is cut short.
    """
    lines = []
    if config.enable_ipv4 and subnet is not None:
        lines += [f"FLANNEL_NETWORK={config.network}", f"FLANNEL_SUBNET={_bridge_address(subnet)}"]
    if config.enable_ipv6 and ipv6_subnet is not None:
        lines += [
            f"FLANNEL_IPV6_NETWORK={config.ipv6_network}",
            f"{IPV6_SUBNET}={_bridge_address(ipv6_subnet)}",
        ]
    if division is not None and config.enable_ipv4:
        lines += [
            f"{DOCKER0_SUBNET}={_bridge_address(division.docker0)}",
            f"{CNI_SUBNET}={_bridge_address(division.cni)}",
        ]
    if ipv6_cni is not None and config.enable_ipv6:
        lines.append(f"{IPV6_CNI_SUBNET}={_bridge_address(ipv6_cni)}")
    lines += [f"FLANNEL_MTU={mtu}", f"FLANNEL_IPMASQ={str(ip_masq).lower()}"]
    return "".join(f"{line}\n" for line in lines)


def parse_subnet_env(text: str) -> Mapping[str, str]:
    """Return the values by name. If a name occurs twice, its last value applies. No variable is expanded.

    Raises:
        WireError: a line is neither a comment nor `NAME=value`; the message quotes the line.
    """
    values = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        found = _LINE.fullmatch(line)
        if not found:
            raise WireError(f"line {number}: {line!r} is not NAME=value", hint="Correct or delete the file.")
        values[found["key"]] = _value(found)
    return values


def previous_subnet(text: str) -> IPv4Network | None:
    """Return the subnet that an earlier run wrote, or None if the file does not contain exactly one subnet.

    Raises:
        WireError: a line, or the value of FLANNEL_SUBNET, is malformed.
    """
    value = parse_subnet_env(text).get("FLANNEL_SUBNET")
    if value is None or "," in value:
        return None
    _, _, length = value.partition("/")
    try:
        if not length.isdecimal():
            raise ValueError("the prefix length is missing")
        return IPv4Network(value, strict=False)
    except ValueError as error:
        raise WireError(
            f"FLANNEL_SUBNET={value} is not an IPv4 address with a prefix length: {error}",
            hint="Correct or delete the file.",
        ) from error


def previous_ipv6_subnet(text: str) -> IPv6Network | None:
    """Return the IPv6 subnet that an earlier run wrote, or None if the file does not name exactly one IPv6
    subnet.

    Raises:
        WireError: a line, or the value of FLANNEL_IPV6_SUBNET, is malformed.
    """
    value = parse_subnet_env(text).get(IPV6_SUBNET)
    if value is None or "," in value:
        return None
    try:
        return IPv6Network(value, strict=False)
    except ValueError as error:
        raise WireError(
            f"FLANNEL_IPV6_SUBNET={value} is not an IPv6 address with a prefix length: {error}",
            hint="Correct or delete the file.",
        ) from error


def _bridge_address(subnet: IPv4Network | IPv6Network) -> str:
    return f"{subnet.network_address + 1}/{subnet.prefixlen}"


def _value(found: re.Match[str]) -> str:
    if found["double"] is not None:
        return re.sub(r"\\(.)", r"\1", found["double"])
    return str(found["single"] or found["plain"] or "")


# A file for the unit of Docker: an environment file with options of Docker.
#
# Source: flannel 0.28.9, the output of its mk-docker-opts.sh, which has no options for IPv6.

DEFAULT_KEY = "DOCKER_OPTS"
_OPTION_MARK = "DOCKER_OPT_"
_OF_FLANNEL = {
    "FLANNEL_SUBNET": re.compile(r"[0-9.]+/[0-9]+"),
    DOCKER0_SUBNET: re.compile(r"[0-9.]+/[0-9]+"),
    IPV6_SUBNET: re.compile(r"[0-9A-Fa-f:.]+/[0-9]+"),
    "FLANNEL_MTU": re.compile(r"[0-9]+"),
    "FLANNEL_IPMASQ": re.compile(r"true|false"),
}
"""The variables that become options of Docker, and the form of their values."""


def flannels_alone(variables: Mapping[str, str]) -> dict[str, str]:
    """Return only flannel's variables from a file, because the writer of the file must not set other options
    of Docker.

    Raises:
        WireError: a value does not have the form that flannel writes.
    """
    found = {name: variables[name] for name in _OF_FLANNEL if name in variables}
    for name, value in found.items():
        if value and not _OF_FLANNEL[name].fullmatch(value):
            raise WireError(
                f"{name} is {value!r}, and the file does not belong to root",
                hint="Wait until flanneld writes the file again, or read a file that belongs to root.",
            )
    return found


# Docker masquerades if flannel does not masquerade.
_DOCKER_IP_MASQ = {"true": "false", "false": "true"}


def format_docker_opts(
    variables: Mapping[str, str],
    *,
    individual: bool,
    combined: bool,
    with_ip_masq: bool = True,
    key: str = DEFAULT_KEY,
) -> str:
    """Return the lines `NAME="option"` in the order of their names, then `key="all options"`.

    `variables` contains the variables of the environment and of the file. A variable of the file has
    precedence. Every variable that contains `DOCKER_OPT_` is an option. The combined line begins with the
    previous value of `key`. Quotation marks in values are not escaped.

    Raises:
        WireError: FLANNEL_IPMASQ is neither true nor false, or FLANNEL_IPV6_SUBNET is invalid.
    """
    known = {**variables, **_flannel_options(variables, with_ip_masq)}
    options = _options(known, key)
    lines = [f'{name}="{option}"\n' for name, option in options] if individual else []
    if combined:
        # An empty key is not a variable: a shell keeps the `$` of an expansion without a name.
        preset = known.get(key, "") if key else "$"
        head = f"{preset} " if preset else ""
        lines.append(f'{key}="{head}' + "".join(f" {option}" for _, option in options) + '"\n')
    return "".join(lines)


def foreign_routes(flannel_subnet: str, routes: Iterable[str]) -> list[str]:
    """Return the lines of `ip route show` that send this host's subnet through a gateway.

    `flannel_subnet` is FLANNEL_SUBNET, the first address of the subnet with its length.
    """
    address, _, length = flannel_subnet.partition("/")
    head, _, last = address.rpartition(".")
    if not last.isdecimal():
        return []
    subnet = f"{head}.{int(last) - 1}/{length}"
    return [line for line in routes if line.split()[:1] == [subnet] and "via" in line.split()]


def _flannel_options(variables: Mapping[str, str], with_ip_masq: bool) -> dict[str, str]:
    options = {}
    if subnet := variables.get(DOCKER0_SUBNET) or variables.get("FLANNEL_SUBNET"):
        options["DOCKER_OPT_BIP"] = f"--bip={subnet}"
    # With the network plugin, the IPv6 subnet belongs to the networks of the plugin and to CNI.
    if (ipv6 := variables.get(IPV6_SUBNET)) and not variables.get(DOCKER0_SUBNET):
        options["DOCKER_OPT_FIXED_CIDR_V6"] = f"--fixed-cidr-v6={_ipv6_prefix(ipv6)}"
        options["DOCKER_OPT_IPV6"] = "--ipv6"
    if mtu := variables.get("FLANNEL_MTU"):
        options["DOCKER_OPT_MTU"] = f"--mtu={mtu}"
    if with_ip_masq and (ip_masq := variables.get("FLANNEL_IPMASQ")):
        if ip_masq not in _DOCKER_IP_MASQ:
            raise WireError(f"Invalid value of FLANNEL_IPMASQ: {ip_masq}", hint="Write true or false.")
        options["DOCKER_OPT_IPMASQ"] = f"--ip-masq={_DOCKER_IP_MASQ[ip_masq]}"
    return options


def _ipv6_prefix(subnet: str) -> IPv6Network:
    try:
        return IPv6Network(subnet, strict=False)
    except ValueError as error:
        raise WireError(
            f"Invalid value of {IPV6_SUBNET}: {subnet}", hint="Write an IPv6 address and a prefix length."
        ) from error


def _options(variables: Mapping[str, str], key: str) -> list[tuple[str, str]]:
    # flannel's script searches all variables, including its own `combined_opts_key`.
    searched = {**variables, "combined_opts_key": key}
    return sorted((name, value) for name, value in searched.items() if _OPTION_MARK in f"{name}={value}")
