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
        ("token: 1", "token is not a text"),
        ("token: 2001-12-14", "token is not a text"),
        ("tokenFile: !!binary YQ==", "tokenFile is not a text"),
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


@pytest.mark.parametrize(
    "value",
    [
        "1" * 5000,
        "2001-99-99",
        "2001-01-01T00:00:00+99:99",
        "!!int x",
        "!!int ''",
        "!!bool x",
        "!!float x",
        "!!timestamp x",
        "!!python/object:x x",
        "{[a]: b}",
    ],
)
def test_a_value_that_no_kubeconfig_contains_is_ignored(value: str) -> None:
    found = parse_kubeconfig(f"other: {value}\n" + YAML % "token: abc")

    assert found == parse_kubeconfig(YAML % "token: abc")


@pytest.mark.parametrize("text", ['"\\UFFFFFFFF"', '"\\U00110000"', "%YAML " + "1" * 5000 + ".0\n--- a"])
def test_a_number_that_yaml_cannot_read_is_an_error(text: str) -> None:
    with pytest.raises(WireError, match="not YAML"):
        parse_kubeconfig(text)


@pytest.mark.parametrize(
    ("before", "line", "is_accepted"),
    [
        ("", "a: b\t", False),
        ("", "a:\tb", False),
        ("", "a: [{b? c: d}]", False),
        ("", "a: [b, ?, c]", True),
        ("%YAML 1.3\n---\n", "a: b", True),
    ],
)
def test_the_same_texts_are_accepted_with_and_without_libyaml(
    before: str, line: str, is_accepted: bool
) -> None:
    """The parsers of PyYAML and of libyaml differ in these texts."""
    text = before + YAML % "token: abc" + line + "\n"

    if is_accepted:
        assert parse_kubeconfig(text) == parse_kubeconfig(YAML % "token: abc")
    else:
        with pytest.raises(WireError, match="not YAML"):
            parse_kubeconfig(text)


@pytest.mark.parametrize(("depth", "is_accepted"), [(32, True), (33, False), (5000, False)])
def test_brackets_may_have_a_depth_of_32(depth: int, is_accepted: bool) -> None:
    """With 800 brackets, yaml needed 0.4 s for 1,600 bytes."""
    text = "other: " + "[ " * depth + "] " * depth + "\n" + YAML % "token: abc"

    if is_accepted:
        assert parse_kubeconfig(text) == parse_kubeconfig(YAML % "token: abc")
    else:
        with pytest.raises(WireError, match="more than 32 nested brackets"):
            parse_kubeconfig(text)


def test_aliases_cannot_make_a_short_file_expand() -> None:
    """The expanded text would have 9 ** 30 parts."""
    levels = "".join(f"l{i + 1}: &a{i + 1} [{','.join([f'*a{i}'] * 9)}]\n" for i in range(30))

    with pytest.raises(WireError, match="an alias of YAML repeats a list or a mapping"):
        parse_kubeconfig(f"l0: &a0 [x]\n{levels}current-context: *a30\n")


def test_a_text_may_be_repeated_by_an_alias() -> None:
    text = (YAML % "token: abc").replace("current-context: c", "current-context: &c c")

    assert parse_kubeconfig(text.replace("- name: c", "- name: *c")) == parse_kubeconfig(text)


@pytest.mark.parametrize(
    ("word", "is_insecure"),
    [
        *((word, True) for word in ("true", "True", "yes", "on")),
        *((w, False) for w in ("no", "~", "1", "'on'")),
    ],
)
def test_the_certificate_of_the_server_is_ignored_only_if_the_file_allows_it(
    word: str, is_insecure: bool
) -> None:
    key = "insecure-skip-tls-verify"
    text = (YAML % "token: abc").replace("tls-server-name", f"{key}: {word}\n    tls-server-name")

    assert parse_kubeconfig(text).is_insecure == is_insecure
