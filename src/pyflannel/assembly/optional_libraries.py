"""What others load where it is installed, and do without where it is not: left out of the daemon.

OpenSSL takes an eighth of its memory; asyncio, the gRPC client and hashlib load it, whether or not anybody
speaks TLS. msgspec loads typing_extensions, which development tools bring along. So this comes before them.
"""

import sys
from collections.abc import Mapping, Sequence

from pyflannel.assembly.flanneld_flags import FLAGS
from pyflannel.assembly.store_flags import chosen_store
from pyflannel.errors import UsageError
from pyflannel.wire.go_flags import Settings, read_words

_NEVER_NEEDED = ("typing_extensions",)
_OPENSSL = ("ssl", "_ssl", "_hashlib")


def leave_out_optional_libraries(arguments: Sequence[str], environment: Mapping[str, str]) -> None:
    """Let them be missing in this process, unless what flanneld is asked for needs them."""
    missing = _NEVER_NEEDED if _needs_openssl(arguments, environment) else _NEVER_NEEDED + _OPENSSL
    sys.modules.update(dict.fromkeys(missing))  # type: ignore[arg-type]


def _needs_openssl(arguments: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Return whether the store is spoken to over TLS, or metrics are served, whose library asks for it."""
    try:
        settings = Settings(FLAGS, read_words(FLAGS, arguments)[0], environment)
        return chosen_store(settings).url.startswith("etcds:") or bool(settings.last("http").value)
    except UsageError:
        return True  # whoever reads the flags in earnest says so
