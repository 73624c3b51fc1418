"""The address of the API server, and the credentials, which are read for each connection."""

import os
from collections.abc import Mapping
from contextlib import ExitStack
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from msgspec import Struct

from pyflannel.errors import StoreError, UsageError, WireError, in_words
from pyflannel.model.network_config import IpAddress
from pyflannel.model.store_record import Secret
from pyflannel.wire.kubeconfig import Kubeconfig, parse_kubeconfig

if TYPE_CHECKING:
    import ssl

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Directory of the token and the certificate authority of a pod."""

_URL_HINT = "Write the URL in the form https://HOST:6443."


class Server(Struct, frozen=True):
    """The API server.

    Attributes:
        path: start of the path of each request: "" or `/PATH`.
    """

    url: str
    host: str
    port: int
    path: str
    has_tls: bool

    @property
    def address(self) -> IpAddress | None:
        """The address in the URL; None for a name."""
        try:
            return ip_address(self.host)
        except ValueError:
            return None


def parse_server(url: str, origin: str) -> Server:
    """Return the server at a URL; messages name `origin` as the source of the URL.

    Raises:
        UsageError: the text is not the URL of an API server.
    """
    try:
        parts = urlsplit(url if "://" in url else f"https://{url}")
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or "@" in parts.netloc:
        raise UsageError(f"{origin} is not the URL of a Kubernetes API server", hint=_URL_HINT)
    has_tls = parts.scheme == "https"
    path = parts.path.rstrip("/")
    return Server(url, parts.hostname, port or (443 if has_tls else 80), path, has_tls)


class Access:
    """The server and the credentials, from a kubeconfig file, a URL, or the service account of the pod.

    A kubeconfig file, a token file and certificates are read for each connection, so that renewed files are
    used.

    Raises:
        UsageError: no flag or file names a server, or its URL is invalid.
    """

    def __init__(
        self,
        *,
        url: str,
        kubeconfig: Path | None,
        environment: Mapping[str, str],
        account: Path = SERVICE_ACCOUNT,
    ) -> None:
        self._kubeconfig = kubeconfig
        self._account: Path | None = None
        self._url = url
        if url:
            self._given: Server | None = parse_server(url, "--kube-api-url")
        elif kubeconfig is not None:
            self._given = None
        else:
            host, port = (environment.get(f"KUBERNETES_SERVICE_{name}", "") for name in ("HOST", "PORT"))
            if not host:
                raise UsageError(
                    "fail to create kubernetes config: this is no pod, and no flag names the API server",
                    hint="Write --kubeconfig-file=PATH, or --kube-api-url=https://HOST:6443.",
                )
            self._account = account
            shown = f"[{host}]" if ":" in host else host
            self._given = parse_server(f"https://{shown}:{port or 443}", "KUBERNETES_SERVICE_HOST")

    def connection(self) -> "Connection":
        """Return the server and the current credentials.

        Raises:
            StoreError: a file is unreadable or unusable; the message names the file.
        """
        if self._account is not None:
            config = Kubeconfig(ca=str(self._account / "ca.crt"), token_file=str(self._account / "token"))
            base = self._account
        elif self._kubeconfig is not None:
            config, base = self._read_kubeconfig(self._kubeconfig), self._kubeconfig.parent
        else:
            config, base = Kubeconfig(), Path()
        return Connection(server=self._given or self._server(config), config=config, base=base)

    def _server(self, config: Kubeconfig) -> Server:
        try:
            return parse_server(config.server or ":", f"the server {config.server!r} in {self._kubeconfig}")
        except UsageError as error:
            raise StoreError(str(error), hint="Correct the server of the cluster in the file.") from error

    def _read_kubeconfig(self, path: Path) -> Kubeconfig:
        try:
            return parse_kubeconfig(read(path, "kubeconfig"))
        except WireError as error:
            raise StoreError(f"the kubeconfig {path} cannot be used: {error}", hint=error.hint) from error


class Connection(Struct, frozen=True, kw_only=True):
    """The settings of one connection to the server. Relative paths in `config` are relative to `base`."""

    server: Server
    config: Kubeconfig
    base: Path

    @property
    def credentials(self) -> str:
        """The origin of the credentials, as text for messages."""
        if self.config.token_file is not None:
            return f"the token in {self.base / self.config.token_file}"
        if self.config.token is not None:
            return "the token in the kubeconfig"
        return "the client certificate" if self.config.certificate is not None else "no credentials"

    def headers(self) -> list[tuple[str, str]]:
        """Return the headers with the credentials.

        Raises:
            StoreError: the token file is unreadable or empty.
        """
        token = self.config.token.reveal() if self.config.token is not None else ""
        if self.config.token_file is not None:
            path = self.base / self.config.token_file
            token = read(path, "token").strip()
            if not token:
                raise StoreError(f"the token file {path} is empty", hint="Write a token to the file.")
        if any(not 0x20 < ord(character) < 0x7F for character in token):
            raise StoreError(f"{self.credentials} is not valid", hint="A token is one line without spaces.")
        return [("Authorization", f"Bearer {token}")] if token else []

    def tls(self) -> "ssl.SSLContext | None":
        """Return the settings of TLS; None for plain HTTP.

        Raises:
            StoreError: a certificate or a key is unreadable or unusable.
        """
        if not self.server.has_tls:
            return None
        import ssl  # this import is not at the top, see programs/own_process.py

        context = ssl.create_default_context()
        if self.config.ca is not None:
            shown, text = self._text(self.config.ca, "certificate authority")
            try:
                context = ssl.create_default_context(cadata=text)
            except (ssl.SSLError, ValueError) as error:
                raise StoreError(
                    f"{shown} contains no usable certificate",
                    hint="Use the PEM certificate of the authority that signed the API server's certificate.",
                ) from error
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if self.config.is_insecure:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if self.config.certificate is not None and self.config.key is not None:
            self._show(context, self.config.certificate, self.config.key)
        return context

    def _show(self, context: "ssl.SSLContext", certificate: Secret | str, key: Secret | str) -> None:
        import ssl

        shown, text = self._text(certificate, "client certificate")
        with ExitStack() as opened:
            paths = []
            for content in (text, self._text(key, "client key")[1]):
                # Python reads certificates and keys only from files. These files are in memory, and only this
                # process can read them.
                file = opened.enter_context(os.fdopen(os.memfd_create("flanneld"), "w"))
                file.write(content)
                file.flush()
                paths.append(f"/proc/self/fd/{file.fileno()}")
            try:
                context.load_cert_chain(paths[0], paths[1], password=lambda: "")
            except (ssl.SSLError, ValueError) as error:
                raise StoreError(
                    f"{shown}, or its key, cannot be used",
                    hint="Certificate and key must be PEM, belong together, and have no pass phrase.",
                ) from error

    def _text(self, content: Secret | str, what: str) -> tuple[str, str]:
        """Return the origin of a PEM text, for messages, and the text. The argument is a path or the text."""
        if isinstance(content, Secret):
            return f"the {what} in the kubeconfig", content.reveal()
        path = self.base / content
        return f"the {what} {path}", read(path, what)


def read(path: Path, what: str) -> str:
    """Return the text of a file.

    Raises:
        StoreError: the file is unreadable.
    """
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise StoreError(
            f"the {what} {path} cannot be read: {error.strerror or in_words(error)}",
            hint="Create the file, readable for flanneld. flanneld reads the file at each attempt.",
        ) from error
