"""Where one member of an etcd cluster serves clients."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A host, by name or address, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
