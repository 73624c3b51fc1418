"""OpenSSL, where nobody speaks TLS: left out of the process, of which it would take an eighth of the memory.

asyncio, the gRPC client and hashlib load it with themselves where it is there, and do without it where it is
not. So this comes before any of them.
"""

import sys
from collections.abc import Mapping, Sequence

from pyflannel.assembly.flanneld_flags import FLAGS
from pyflannel.assembly.settings import Settings
from pyflannel.assembly.store_flags import chosen_store
from pyflannel.errors import UsageError
from pyflannel.wire.go_flags import read_words

_MODULES = ("ssl", "_ssl", "_hashlib")


def leave_out_openssl(arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    """Let OpenSSL be missing in this process, unless what flanneld is asked for needs it."""
    if not _needs_openssl(arguments, environment):
        sys.modules.update(dict.fromkeys(_MODULES))  # type: ignore[arg-type]


def _needs_openssl(arguments: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Return whether the store is spoken to over TLS, or metrics are served, whose library asks for it."""
    try:
        settings = Settings(FLAGS, read_words(FLAGS, arguments)[0], environment)
        return chosen_store(settings).url.startswith("etcds:") or bool(settings.last("http").value)
    except UsageError:
        return True  # whoever reads the flags in earnest says so
