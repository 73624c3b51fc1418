"""The formats of the CNI plugin: network configuration, delegate configuration, results and errors.

This module imports only the modules that an ADD needs, because each start of a container waits for these
imports.

Source: CNI specification 1.1.0; flannel's CNI plugin 1.9.1 for the delegate configuration.
"""

import json
import re
import struct
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import NamedTuple

from pyflannel.errors import CniError, WireError
from pyflannel.wire.json_values import escape, fold
from pyflannel.wire.subnet_env import CNI_SUBNET, IPV6_CNI_SUBNET, parse_subnet_env

VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
"""The supported versions of the specification, oldest first."""

DEFAULT_SUBNET_FILE = "/run/flannel/subnet.env"
DEFAULT_DATA_DIR = "/var/lib/cni/flannel"

INCOMPATIBLE_VERSION = 1
UNKNOWN_CONTAINER = 3
INVALID_ENVIRONMENT = 4
IO_FAILURE = 5
DECODING_FAILURE = 6
INVALID_CONFIG = 7
TRY_AGAIN_LATER = 11
PLUGIN_NOT_AVAILABLE = 50
INTERNAL = 999
"""Error codes. Source: CNI specification 1.1.0, section 5; the CNI library defines the code INTERNAL."""

LONGEST = 1 << 20
"""Maximum length of a network configuration in bytes. A large network configuration has a few thousand
bytes."""

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
"""Network names and container IDs."""

_LONGEST_INTERFACE_NAME = 15
_ATTACHMENT_KEYS = ("cni.dev/valid-attachments", "cni.dev/attachments")
"""The key of the valid attachments in a GC request, and the name of this key before libcni 1.2.3."""


class Attachment(NamedTuple):
    """One interface of one container."""

    container: str
    interface: str


class NetworkConf(NamedTuple):
    """The network configuration that the runtime passes on standard input.

    Attributes:
        version: cniVersion; "" if the key is missing, which means 0.1.0.
        prev_result: in a CHECK request, the result of the ADD.
        valid: in a GC request, the attachments that exist.
    """

    name: str
    version: str
    subnet_file: str
    data_dir: str
    delegate: Mapping[str, object]
    ipam: Mapping[str, object]
    runtime_config: object = None
    prev_result: object = None
    valid: tuple[Attachment, ...] = ()


class Subnets(NamedTuple):
    """The values of subnet.env.

    Attributes:
        networks: the ranges of the network, IPv4 first.
        subnets: the subnets of this host, at most one subnet for each family, IPv4 first.
        mtu: MTU of containers in bytes.
        ip_masq: True if flanneld masquerades, so that the delegate does not masquerade.
    """

    networks: tuple[IPv4Network | IPv6Network, ...]
    subnets: tuple[IPv4Network | IPv6Network, ...]
    mtu: int
    ip_masq: bool


def parse_network_conf(text: bytes) -> NetworkConf:
    """Return the network configuration.

    Raises:
        CniError: the text is not a JSON object, or the value of a key is invalid.
    """
    document = _decode(text)
    if document is None:
        document = {}
    if not isinstance(document, dict):
        raise CniError(
            f"error unmarshall network config: the text is {_kind(document)}, not an object",
            hint="Write an object with the keys name, cniVersion and type.",
            code=DECODING_FAILURE,
        )
    values = {fold(key): value for key, value in document.items()}
    name = _text(values, "name")
    if not name:
        raise CniError("missing network name", hint='Add the key "name".', code=INVALID_CONFIG)
    if not _NAME.fullmatch(name):
        raise CniError(
            f"invalid characters found in network name: {name!r}",
            hint="Use letters, digits, '.', '_' and '-', and begin with a letter or a digit.",
            code=INVALID_CONFIG,
        )
    return NetworkConf(
        name=name,
        version=_text(values, "cniVersion"),
        subnet_file=_text(values, "subnetFile") or DEFAULT_SUBNET_FILE,
        data_dir=_text(values, "dataDir") or DEFAULT_DATA_DIR,
        delegate=_object(values, "delegate"),
        ipam=_object(values, "ipam"),
        runtime_config=values.get("runtimeconfig"),
        prev_result=values.get("prevresult"),
        valid=tuple(_attachments(document)),
    )


def check_version(version: str) -> None:
    """Check that the version of a network configuration is supported.

    Raises:
        CniError: the version is not supported.
    """
    if version and version not in VERSIONS:
        raise CniError(
            f'incompatible CNI versions: the network configuration is "{version}"',
            hint=f"Set cniVersion to one of {', '.join(VERSIONS)}.",
            code=INCOMPATIBLE_VERSION,
        )


def is_at_least(version: str, minimum: str) -> bool:
    """Return whether a supported version is `minimum` or later."""
    return bool(version) and VERSIONS.index(version) >= VERSIONS.index(minimum)


def check_container_id(container: str) -> None:
    """Check a container ID, which becomes a file name.

    Raises:
        CniError: the ID contains invalid characters.
    """
    if not _NAME.fullmatch(container):
        raise CniError(
            f"invalid characters in containerID: {container!r}",
            hint="The runtime sets CNI_CONTAINERID: letters, digits, '.', '_' and '-'.",
            code=INVALID_ENVIRONMENT,
        )


def check_interface_name(name: str) -> None:
    """Check the name of the interface in the container.

    Raises:
        CniError: the kernel does not accept the name.
    """
    if len(name) > _LONGEST_INTERFACE_NAME:
        raise CniError(
            f"interface name is too long: {name!r}",
            hint=f"The runtime sets CNI_IFNAME: at most {_LONGEST_INTERFACE_NAME} characters.",
            code=INVALID_ENVIRONMENT,
        )
    if name in ("", ".", "..") or re.search(r"[/:\s]", name):
        raise CniError(
            f"interface name contains / or : or whitespace characters, or is empty: {name!r}",
            hint="The runtime sets CNI_IFNAME: the name of a network interface, for example eth0.",
            code=INVALID_ENVIRONMENT,
        )


def parse_subnets(text: str) -> Subnets:
    """Return the values of subnet.env.

    Raises:
        WireError: a value is missing or invalid; the message names the variable.
    """
    values = parse_subnet_env(text)
    networks = _networks(values, "FLANNEL_NETWORK") + _networks(values, "FLANNEL_IPV6_NETWORK")
    own = CNI_SUBNET if CNI_SUBNET in values else "FLANNEL_SUBNET"
    ipv6 = IPV6_CNI_SUBNET if IPV6_CNI_SUBNET in values else "FLANNEL_IPV6_SUBNET"
    subnets = _networks(values, own)[:1] + _networks(values, ipv6)[:1]
    missing = [] if networks else ["FLANNEL_NETWORK", "FLANNEL_IPV6_NETWORK"]
    missing += [] if subnets else ["FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"]
    missing += [name for name in ("FLANNEL_MTU", "FLANNEL_IPMASQ") if name not in values]
    if missing:
        raise WireError(
            f"it is missing {', '.join(missing)}", hint="Delete the file: flanneld writes it again."
        )
    if not re.fullmatch(r"[0-9]{1,9}", values["FLANNEL_MTU"]):
        raise _bad_variable("FLANNEL_MTU", values["FLANNEL_MTU"], "a number of bytes")
    ip_masq = values["FLANNEL_IPMASQ"]
    if ip_masq not in ("true", "false") and any(word.startswith(ip_masq) for word in ("true", "false")):
        raise _bad_variable("FLANNEL_IPMASQ", ip_masq, "true or false: the file is cut short")
    return Subnets(networks, subnets, int(values["FLANNEL_MTU"]), ip_masq == "true")


def delegate_conf(conf: NetworkConf, host: Subnets) -> dict[str, object]:
    """Return the configuration of the delegate. Keys in `delegate` have precedence over the keys of flannel.

    Raises:
        CniError: `delegate` or `ipam` is invalid.
    """
    delegate = dict(conf.delegate)
    kind = delegate.setdefault("type", "bridge")
    if not isinstance(kind, str):
        raise _bad_config("'delegate' dictionary, if present, must have (string) 'type' field")
    for key in ("name", "ipam"):
        if key in delegate:
            raise _bad_config(f"'delegate' dictionary must not have '{key}' field, it'll be set by flannel")
    delegate["name"] = conf.name
    delegate.setdefault("ipMasq", not host.ip_masq)
    delegate.setdefault("mtu", host.mtu)
    if kind == "bridge":
        delegate.setdefault("isGateway", True)
    if conf.version:
        delegate["cniVersion"] = conf.version
    if conf.runtime_config is not None:
        delegate["runtimeConfig"] = conf.runtime_config
    delegate["ipam"] = _delegate_ipam(conf.ipam, host)
    return delegate


def with_gateways(result: object) -> object:
    """Return a result in which every route has its gateway, which the delegate has configured.

    A route without a gateway uses the gateway of the address of its family. CHECK of the bridge plugin before
    1.2 expects the gateway in the result.
    """
    if not isinstance(result, dict) or not isinstance(result.get("routes"), list):
        return result
    gateways: dict[bool, object] = {}
    ips = result.get("ips")
    for address in ips if isinstance(ips, list) else ():
        if isinstance(address, dict) and isinstance(gateway := address.get("gateway"), str):
            gateways.setdefault(":" in gateway, gateway)
    routes = [
        {**route, "gw": route.get("gw") or gateways.get(":" in str(route.get("dst")))}
        for route in result["routes"]
        if isinstance(route, dict)
    ]
    return {**result, "routes": [{key: value for key, value in route.items() if value} for route in routes]}


def check_delegate_type(conf: Mapping[str, object]) -> str:
    """Return the type of a delegate: the file name of its program.

    Raises:
        CniError: the type is missing, or is not a file name.
    """
    kind = conf.get("type")
    if not isinstance(kind, str) or not kind:
        raise _bad_config("no plugin name provided: the delegate has no type")
    if "/" in kind or kind in (".", ".."):
        raise _bad_config(f"invalid plugin name: {kind}")
    return kind


def format_conf(value: object) -> bytes:
    """Return JSON in the format of the original (Go, encoding/json, maps): sorted keys, shortest numbers."""
    return escape(_format(value)).encode("utf-8", "surrogatepass")


def format_result(result: bytes, version: str) -> str:
    """Return the result of a delegate in the layout of the CNI library.

    Raises:
        CniError: the text is not a JSON object.
    """
    try:
        document = json.loads(result)
    except (ValueError, RecursionError) as error:
        raise CniError(
            f"failed to unmarshal raw result: {error}", hint="The delegate must print JSON.", code=INTERNAL
        ) from error
    if not isinstance(document, dict):
        raise CniError(
            f"failed to unmarshal raw result: it is {_kind(document)}, not an object",
            hint="The delegate must print a result.",
            code=INTERNAL,
        )
    document.setdefault("cniVersion", version or VERSIONS[0])
    return json.dumps(document, indent=4, ensure_ascii=False)


class NewAddress(NamedTuple):
    """An address of a new container.

    Attributes:
        mac: the MAC address of its interface; empty if the result does not contain it.
        links: the interfaces of the host that the result names, such as the bridge.
    """

    address: IPv4Address | IPv6Address
    mac: bytes
    links: tuple[str, ...]


def new_addresses(result: str) -> list[NewAddress]:
    """Return the addresses in the result of an ADD; an empty list if the result has another form."""
    try:
        document = json.loads(result)
        interfaces = document.get("interfaces") or []
        links = tuple(str(one["name"]) for one in interfaces if not one.get("sandbox"))
        found = []
        for entry in document.get("ips") or []:
            own = interfaces[entry["interface"]] if "interface" in entry else {}
            mac = bytes.fromhex(str(own.get("mac", "")).replace(":", ""))
            address = ip_address(entry["address"].partition("/")[0])
            found.append(NewAddress(address, mac if len(mac) == _MAC_SIZE else b"", links))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return []
    return found


_MAC_SIZE = 6  # bytes


def neighbour_removal(link: int, address: IPv4Address | IPv6Address) -> bytes:
    """Return the netlink message that deletes the neighbour entry of an address on the link of this index.

    Source: linux/netlink.h, linux/rtnetlink.h (RTM_DELNEIGH is 29), linux/neighbour.h (NDA_DST is 1).
    """
    family = 2 if address.version == 4 else 10  # AF_INET, AF_INET6
    body = struct.pack("=BxxxiHBB", family, link, 0, 0, 0)
    body += struct.pack("=HH", 4 + len(address.packed), 1) + address.packed
    return struct.pack("=IHHII", 16 + len(body), 29, 1, 1, 0) + body


def arp_announcement(address: IPv4Address, mac: bytes) -> bytes:
    """Return the ARP request by which a host announces its own address. Source: RFC 5227, section 3."""
    return struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + mac + address.packed + bytes(6) + address.packed


def parse_saved_conf(text: bytes) -> dict[str, object] | None:
    """Return the delegate configuration that an ADD saved; None if the file is damaged."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def parse_error(text: bytes) -> CniError | None:
    """Return the error that a delegate printed, or None if the delegate printed no error."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict) or not isinstance(document.get("msg"), str):
        return None
    code = document.get("code")
    return CniError(
        document["msg"],
        hint=str(document.get("details") or ""),
        code=code if isinstance(code, int) else INTERNAL,
    )


def format_error(error: CniError, version: str) -> str:
    """Return the error object that the runtime expects on standard output."""
    document: dict[str, object] = {"cniVersion": version} if version in VERSIONS else {}
    document |= {"code": error.code, "msg": str(error)}
    if error.hint:
        document["details"] = error.hint
    return json.dumps(document, indent=4)


def format_versions() -> str:
    """Return the response to VERSION."""
    versions = {"cniVersion": VERSIONS[-1], "supportedVersions": list(VERSIONS)}
    return json.dumps(versions, separators=(",", ":")) + "\n"


def format_waiting_for(document: bytes) -> str | None:
    """Return the reason why flanneld is not ready, from its status; None if flanneld is ready, or if the
    status does not contain a reason.
    """
    status = parse_saved_conf(document) or {}
    reason = status.get("waiting_for")
    return None if status.get("is_ready") or not isinstance(reason, str) else reason


def _decode(text: bytes) -> object:
    if len(text) > LONGEST:
        raise CniError(
            f"the network configuration has {len(text)} bytes, more than {LONGEST}",
            hint="Remove the keys that flannel does not know.",
            code=DECODING_FAILURE,
        )
    try:
        return json.loads(text, parse_int=_number, parse_float=_number, parse_constant=_number)
    except (ValueError, RecursionError) as error:
        raise CniError(
            f"error unmarshall network config: {error}",
            hint="The runtime passes the network configuration as JSON on standard input.",
            code=DECODING_FAILURE,
        ) from error


def _number(text: str) -> float | int:
    """Return a number as a float, because the original decodes numbers to floats. Integers below 2**53 are
    exact as integers and as floats.
    """
    number = float(text)
    if number - number != 0:
        raise ValueError(f"{text} is not a finite number")
    return int(number) if number.is_integer() and abs(number) < _EXACT else number


def _text(values: Mapping[str, object], key: str) -> str:
    value = values.get(fold(key))
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _bad_type(key, value, "a string")
    return value


def _object(values: Mapping[str, object], key: str) -> Mapping[str, object]:
    value = values.get(fold(key))
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _bad_type(key, value, "an object")
    return value


def _attachments(document: Mapping[str, object]) -> Iterable[Attachment]:
    for key in _ATTACHMENT_KEYS:
        value = document.get(key)
        if value is None:
            continue
        if not isinstance(value, list):
            raise _bad_type(key, value, "an array")
        for entry in value:
            if not isinstance(entry, dict):
                raise _bad_type(key, entry, "an array of objects")
            yield Attachment(str(entry.get("containerID", "")), str(entry.get("ifname", "")))


def _networks(values: Mapping[str, str], name: str) -> tuple[IPv4Network | IPv6Network, ...]:
    if name not in values:
        return ()
    networks = []
    for text in values[name].split(","):
        try:
            if "/" not in text:
                raise ValueError("it has no prefix length")
            networks.append(ip_network(text, strict=False))
        except ValueError as error:
            raise _bad_variable(name, text, "an address with a prefix length") from error
    return tuple(dict.fromkeys(networks))


def _delegate_ipam(ipam: Mapping[str, object], host: Subnets) -> dict[str, object]:
    conf = dict(ipam)
    conf.setdefault("type", "host-local")
    conf["ranges"] = [[{"subnet": str(subnet)}] for subnet in host.subnets]
    routes: list[object] = [_Ordered(route) for route in _routes(ipam.get("routes"))]
    conf["routes"] = routes + [{"dst": str(network)} for network in host.networks]
    return conf


class _Ordered(dict[str, object]):
    """An object that preserves the order of its keys."""


_ROUTE_NUMBERS = ("mtu", "advmss", "priority")
_ROUTE_OPTIONAL_NUMBERS = ("table", "scope")


def _routes(value: object) -> Iterable[dict[str, object]]:
    """Yield each route of the ipam configuration with the keys that the original knows, in the order of
    the original.
    """
    if value is None:
        return
    if not isinstance(value, list):
        raise _bad_type("ipam.routes", value, "an array")
    for entry in value:
        if not isinstance(entry, dict):
            raise _bad_type("ipam.routes", entry, "an array of objects")
        given = {fold(key): inner for key, inner in entry.items()}
        destination = given.get("dst")
        try:
            if not isinstance(destination, str) or "/" not in destination:
                raise ValueError("no prefix length")
            ip_network(destination, strict=False)
        except ValueError as error:
            raise _bad_config(f"failed to parse ipam.routes: invalid CIDR address: {destination}") from error
        route: dict[str, object] = {"dst": destination}
        if given.get("gw"):
            route["gw"] = given["gw"]
        for key in _ROUTE_NUMBERS:
            if given.get(key):
                route[key] = given[key]
        for key in _ROUTE_OPTIONAL_NUMBERS:
            if given.get(key) is not None:
                route[key] = given[key]
        yield route


def _format(value: object) -> str:
    match value:
        case dict():
            keys = value if isinstance(value, _Ordered) else sorted(value)
            return "{" + ",".join(f"{_format(key)}:{_format(value[key])}" for key in keys) + "}"
        case list():
            return "[" + ",".join(map(_format, value)) + "]"
        case float():
            return _format_float(value)
        case _:
            return json.dumps(value, ensure_ascii=False)


_EXACT = 2**53
_FIRST_WITH_EXPONENT = 1e21
_LAST_WITH_EXPONENT = 1e-6


def _format_float(number: float) -> str:
    """Return the shortest decimal form, with an exponent if Go's encoding/json writes an exponent."""
    text = repr(number)
    mantissa, _, exponent = text.partition("e")
    if number and not _LAST_WITH_EXPONENT <= abs(number) < _FIRST_WITH_EXPONENT:
        return f"{mantissa}e{int(exponent):+d}"
    if not exponent:
        return text.removesuffix(".0")
    sign = "-" if mantissa.startswith("-") else ""
    whole, _, fraction = mantissa.lstrip("-").partition(".")
    shift = int(exponent)
    if shift < 0:
        return f"{sign}0.{'0' * (-shift - 1)}{whole}{fraction}"
    return f"{sign}{whole}{fraction.ljust(shift, '0')}"


def _kind(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a boolean"
        case str():
            return "a string"
        case int() | float():
            return "a number"
        case list():
            return "an array"
        case _:
            return "an object"


def _bad_type(key: str, value: object, wanted: str) -> CniError:
    return _bad_config(f"the value of {key!r} is {_kind(value)}, not {wanted}")


def _bad_config(message: str) -> CniError:
    return CniError(
        message, hint="Correct the network configuration, by default in /etc/cni/net.d.", code=INVALID_CONFIG
    )


def _bad_variable(name: str, value: str, wanted: str) -> WireError:
    return WireError(f"{name}={value} is not {wanted}", hint="Delete the file: flanneld writes it again.")
