"""The Backend object of the network config: its values, and the keys without effect.

Keys are case-insensitive. `null` means the default. If a key is repeated, the last value applies.

Source: flannel 0.28.9. The messages begin in the same way as the messages of the original, so that users find
    them in a search.
"""

import json
from collections.abc import Collection, Mapping, Sequence

from msgspec import Struct

from pyflannel.errors import ConfigError
from pyflannel.model.network_config import IPV4_ONLY, KEYS, LATER_KEYS, Family, NetworkConfig

_LONGEST_SHOWN = 80
"""Maximum number of characters of a key or value in a message."""

_NAMED = 8
"""Maximum number of unknown keys that a message names."""


class BackendKeys(Struct, frozen=True):
    """The values of one backend.

    Attributes:
        name: name of the backend in the original's messages: `VXLAN`.
        backend: the decoded JSON object, with its keys as the operator wrote them.
    """

    name: str
    backend: Mapping[str, object]

    def number(self, key: str, default: int, allowed: range, *, default_means: str = "") -> int:
        """Return a whole number.

        Raises:
            ConfigError: the value is not one of `allowed`.
        """
        value = self._value(key)
        if value is None:
            return default
        if type(value) is not int or value not in allowed:
            wanted = f"a whole number from {allowed[0]} to {allowed[-1]}"
            raise self.bad(key, value, wanted, default_means or str(default))
        return value

    def flag(self, key: str) -> bool:
        """Return a boolean; the default is false.

        Raises:
            ConfigError: the value is not a boolean.
        """
        value = self._value(key)
        if not isinstance(value, bool | None):
            raise self.bad(key, value, "true or false, without quotes", "false")
        return bool(value)

    def text(self, key: str, wanted: str) -> str | None:
        """Return a text; `wanted` describes the allowed values.

        Raises:
            ConfigError: the value is not a text.
        """
        value = self._value(key)
        if not isinstance(value, str | None):
            raise self.bad(key, value, wanted)
        return value

    def bad(self, key: str, value: object, wanted: str, default: str | None = None) -> ConfigError:
        """Return the error that names the key, its value and the allowed values."""
        shown = _cut(json.dumps(value))
        omitted = f"omit it for {default}" if default is not None else "omit it"
        return ConfigError(
            f"error decoding {self.name} backend config: Backend.{key} is {shown}, not {wanted}",
            hint=f"Write Backend.{key} as {wanted}, or {omitted}.",
        )

    def _value(self, key: str) -> object:
        value = None
        for written, candidate in self.backend.items():
            if written.lower() == key.lower():
                value = candidate
        return value


def ineffective(
    config: NetworkConfig, known: Collection[str], families: Collection[Family] = IPV4_ONLY
) -> tuple[str, ...]:
    """Return a line for each part of a valid config that has no effect: unknown keys, and IPv6.

    Args:
        config: the config.
        known: the keys of the backend.
        families: the families that the backend carries.
    """
    lines = list(without_effect(config))
    folded = {key.lower() for key in ("Type", *known)}
    unknown = [_cut(f"Backend.{key}") for key in config.backend if key.lower() not in folded]
    if unknown:
        lines.append(
            f"{_named(unknown)} no effect: the {config.backend_type} backend knows {_listing(known)}"
        )
    if config.enable_ipv6 and 6 not in families:
        lines.append(f"EnableIPv6=true has no effect: the {config.backend_type} backend carries IPv4 only")
    return tuple(lines)


def without_effect(config: NetworkConfig) -> tuple[str, ...]:
    """Return a line for each key of the original without effect outside Backend, and one line for unknown
    keys.
    """
    lines = [
        f"{key} has no effect: it is a key of flannel 0.20 that this version does not support"
        for key in config.unread
        if key in LATER_KEYS
    ]
    unknown = [key for key in config.unread if key not in LATER_KEYS]
    if unknown:
        lines.append(f"{_named(unknown)} no effect: the network config knows {_listing(KEYS)}")
    return tuple(lines)


def _named(keys: Sequence[str]) -> str:
    """Return the first keys, the number of further keys, and the verb "has" or "have"."""
    more = f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else ""
    return f"{', '.join(keys[:_NAMED])}{more} {'have' if len(keys) > 1 else 'has'}"


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 1] + "…"


def _listing(known: Collection[str]) -> str:
    return ", ".join(known) if known else "only Type"
