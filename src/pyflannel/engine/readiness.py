"""One word to the service manager for several networks."""

from collections.abc import Callable, Collection

READY = "READY=1"


class Readiness:
    """Passes READY=1 on when every expected network has said it, and each network's status with its name."""

    def __init__(self, notify: Callable[[str], object], expected: Collection[str]) -> None:
        self._notify = notify
        self._awaited = set(expected)

    def voice(self, name: str) -> Callable[[str], object]:
        """Return what network `name` tells the service manager with."""

        def say(text: str) -> None:
            if text == READY:
                self._awaited.discard(name)
                if not self._awaited:
                    self._notify(READY)
            else:
                self._notify(text.replace("STATUS=", f"STATUS={name}: ", 1))

        return say
