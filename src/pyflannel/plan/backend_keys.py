"""The Backend object of the network config, as its backend reads it.

Keys match in any case, `null` leaves the default, and of a key that comes twice the last counts.

Source: flannel 0.28.9; how its messages begin is kept, so that they can be searched for.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network

from pyflannel.errors import ConfigError
from pyflannel.model.network_config import KEYS, LATER_KEYS, NetworkConfig

_LONGEST_SHOWN = 80
"""Characters of a key or of a bad value that a message repeats."""


_NAMED = 8
"""So many unknown keys are named."""


@dataclass(frozen=True, slots=True)
class BackendKeys:
    """The values of one backend.

    Attributes:
        name: as the original's messages call the backend: `VXLAN`.
        backend: as decoded from JSON, keys as written.
    """

    name: str
    backend: Mapping[str, object]

    def number(self, key: str, default: int, allowed: range, *, default_means: str = "") -> int:
        """Return a whole number.

        Raises:
            ConfigError: it is none, or not one of `allowed`.
        """
        value = self._value(key)
        if value is None:
            return default
        if type(value) is not int or value not in allowed:
            wanted = f"a whole number from {allowed[0]} to {allowed[-1]}"
            raise self.bad(key, value, wanted, default_means or str(default))
        return value

    def flag(self, key: str) -> bool:
        """Return a boolean, which is false where it is left out.

        Raises:
            ConfigError: it is none.
        """
        value = self._value(key)
        if not isinstance(value, bool | None):
            raise self.bad(key, value, "true or false, without quotes", "false")
        return bool(value)

    def text(self, key: str, wanted: str) -> str | None:
        """Return a text; `wanted` says in words what may stand there.

        Raises:
            ConfigError: it is none.
        """
        value = self._value(key)
        if not isinstance(value, str | None):
            raise self.bad(key, value, wanted)
        return value

    def bad(self, key: str, value: object, wanted: str, default: str | None = None) -> ConfigError:
        """Return the error that names the key, its value and what is allowed."""
        shown = _cut(json.dumps(value))
        left_out = f"leave it out for {default}" if default is not None else "leave it out"
        return ConfigError(
            f"error decoding {self.name} backend config: Backend.{key} is {shown}, not {wanted}",
            hint=f"Write Backend.{key} as {wanted}, or {left_out}.",
        )

    def _value(self, key: str) -> object:
        value = None
        for written, candidate in self.backend.items():
            if written.lower() == key.lower():
                value = candidate
        return value


def ipv4_network(config: NetworkConfig) -> IPv4Network:
    """Return the network, for a backend that carries IPv4 alone.

    Raises:
        ConfigError: IPv4 is off.
    """
    if not config.enable_ipv4 or config.network is None:
        raise ConfigError(
            f"the {config.backend_type} backend carries IPv4 only, and the config has EnableIPv4=false",
            hint="Set EnableIPv4 and Network, or choose another Backend.Type.",
        )
    return config.network


def ineffective(config: NetworkConfig, known: Collection[str]) -> tuple[str, ...]:
    """Return which parts of a right config have no effect: a line for unknown keys, and one for IPv6."""
    lines = list(without_effect(config))
    folded = {key.lower() for key in ("Type", *known)}
    unknown = [_cut(f"Backend.{key}") for key in config.backend if key.lower() not in folded]
    if unknown:
        lines.append(
            f"{_named(unknown)} no effect: the {config.backend_type} backend knows {_listing(known)}"
        )
    if config.enable_ipv6:
        lines.append(f"EnableIPv6=true has no effect: the {config.backend_type} backend carries IPv4 only")
    return tuple(lines)


def without_effect(config: NetworkConfig) -> tuple[str, ...]:
    """Return which keys beside Backend have no effect: a line for each of the original's, one for others."""
    lines = [
        f"{key} has no effect: only flannel 0.20 knows it, and no flanneld of this version supports it"
        for key in config.unread
        if key in LATER_KEYS
    ]
    unknown = [key for key in config.unread if key not in LATER_KEYS]
    if unknown:
        lines.append(f"{_named(unknown)} no effect: the network config knows {_listing(KEYS)}")
    return tuple(lines)


def _named(keys: Sequence[str]) -> str:
    """Return the first keys, how many more there are, and the verb: they have."""
    more = f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else ""
    return f"{', '.join(keys[:_NAMED])}{more} {'have' if len(keys) > 1 else 'has'}"


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 1] + "…"


def _listing(known: Collection[str]) -> str:
    return ", ".join(known) if known else "no keys but Type"
