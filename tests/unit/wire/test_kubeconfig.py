"""Kubeconfig files."""

import pytest

from pyflannel.errors import WireError
from pyflannel.model.store_record import Secret
from pyflannel.wire.kubeconfig import parse_kubeconfig

YAML = """\
apiVersion: v1
kind: Config
current-context: c
contexts:
- name: other
  context: {cluster: x, user: y}
- name: c
  context:
    cluster: k
    user: u
clusters:
- name: k
  cluster:
    server: https://10.0.0.1:6443
    certificate-authority-data: UEVN
    tls-server-name: kubernetes
users:
- name: u
  user:
    %s
"""


def test_the_current_context_names_server_and_credentials() -> None:
    found = parse_kubeconfig(YAML % "tokenFile: token\n    token: abc")
    assert (found.server, found.server_name, found.ca) == (
        "https://10.0.0.1:6443",
        "kubernetes",
        Secret("PEM"),
    )
    assert (found.token_file, found.token, found.is_insecure) == ("token", Secret("abc"), False)
    certified = parse_kubeconfig(YAML % "client-certificate: c.crt\n    client-key-data: UEVN")
    assert (certified.certificate, certified.key) == ("c.crt", Secret("PEM"))


@pytest.mark.parametrize(
    ("user", "message"),
    [
        ("exec: {command: x}", "the user has exec, which flanneld does not support"),
        ("token: [1]", "token is not a text"),
        ("client-key-data: '*'", "client-key-data is not base64 of a PEM text"),
    ],
)
def test_unusable_credentials_are_named(user: str, message: str) -> None:
    with pytest.raises(WireError, match=message):
        parse_kubeconfig(YAML % user)


@pytest.mark.parametrize("text", ["", "a: [", "- x", "[" * 100, "contexts: {}", "!!python/object:x {}", "\0"])
def test_another_text_is_an_error(text: str) -> None:
    with pytest.raises(WireError):
        parse_kubeconfig(text)
