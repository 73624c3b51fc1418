"""From the path of an SQLite file to the store."""

from pathlib import Path

from pyflannel.kernel.host.clock import BoottimeClock
from pyflannel.kernel.host.inotify import InotifyFileWatch
from pyflannel.stores.embedded.database import Database
from pyflannel.stores.embedded.store import EmbeddedStore

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def embedded_store(path: Path) -> EmbeddedStore:
    """Return the store."""
    database = Database(path, BoottimeClock(), _BOOT_ID.read_text().strip())
    return EmbeddedStore(path, database, InotifyFileWatch())
