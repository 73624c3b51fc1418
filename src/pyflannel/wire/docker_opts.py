"""Docker's options from the variables of subnet.env, as an environment file for Docker's unit.

Source: flannel 0.28.9, the output of its mk-docker-opts.sh.
"""

from collections.abc import Iterable, Mapping

from pyflannel.errors import WireError

DEFAULT_KEY = "DOCKER_OPTS"
_OPTION_MARK = "DOCKER_OPT_"
# Docker masquerades what flannel does not.
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

    `variables` are the environment's, overlaid by the file's. Every variable of them that carries
    `DOCKER_OPT_` counts as an option, and what `key` held before stands first in the combined line.
    Values are written as they are: a quotation mark in one is not escaped.

    Raises:
        WireError: FLANNEL_IPMASQ is neither true nor false.
    """
    known = {**variables, **_flannel_options(variables, with_ip_masq)}
    options = _options(known, key)
    lines = [f'{name}="{option}"\n' for name, option in options] if individual else []
    if combined:
        # An empty key names no variable: a shell leaves the sign of the expansion standing.
        preset = known.get(key, "") if key else "$"
        head = f"{preset} " if preset else ""
        lines.append(f'{key}="{head}' + "".join(f" {option}" for _, option in options) + '"\n')
    return "".join(lines)


def foreign_routes(flannel_subnet: str, routes: Iterable[str]) -> list[str]:
    """Return the lines of `ip route show` that send our own subnet through a gateway.

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
    if subnet := variables.get("FLANNEL_SUBNET"):
        options["DOCKER_OPT_BIP"] = f"--bip={subnet}"
    if mtu := variables.get("FLANNEL_MTU"):
        options["DOCKER_OPT_MTU"] = f"--mtu={mtu}"
    if with_ip_masq and (ip_masq := variables.get("FLANNEL_IPMASQ")):
        if ip_masq not in _DOCKER_IP_MASQ:
            raise WireError(f"Invalid value of FLANNEL_IPMASQ: {ip_masq}", hint="Write true or false.")
        options["DOCKER_OPT_IPMASQ"] = f"--ip-masq={_DOCKER_IP_MASQ[ip_masq]}"
    return options


def _options(variables: Mapping[str, str], key: str) -> list[tuple[str, str]]:
    # flannel's script searches all variables for the mark, its own `combined_opts_key` among them.
    searched = {**variables, "combined_opts_key": key}
    return sorted((name, value) for name, value in searched.items() if _OPTION_MARK in f"{name}={value}")
