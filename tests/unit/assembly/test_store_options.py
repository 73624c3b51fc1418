"""The flags and variables that name the store, its certificates and its user."""

import pytest

from doubles.flanneld_options import options, refusal
from pyflannel.assembly.store_flags import store_url_from_environment
from pyflannel.model.store_record import Secret


@pytest.mark.parametrize(
    ("arguments", "environment", "url"),
    [
        (["--store=sqlite:///l.db"], {}, "sqlite:///l.db"),
        (["--store=etcd://h:1,g:2/p"], {}, "etcd://h:1,g:2/p"),
        ([], {"FLANNELD_STORE": "sqlite:///l.db"}, "sqlite:///l.db"),
        (["--store=sqlite:///l.db"], {"FLANNELD_ETCD_ENDPOINTS": "http://h:1"}, "sqlite:///l.db"),
        (
            ["--etcd-prefix=/p"],
            {"FLANNELD_STORE": "sqlite:///l.db", "FLANNELD_ETCD_ENDPOINTS": "http://h:1"},
            "etcd://h:1/p",
        ),
        ([], {"FLANNELD_ETCD_ENDPOINTS": "http://h:1", "FLANNELD_ETCD_PREFIX": "/p"}, "etcd://h:1/p"),
    ],
)
def test_the_store_is_named_by_url_or_by_endpoints(
    arguments: list[str], environment: dict[str, str], url: str
) -> None:
    assert options(*arguments, environment=environment).store_url == url


TLS = ("--etcd-endpoints=https://h:1,https://g:2", "--etcd-cafile=/ca.pem")


@pytest.mark.parametrize(
    ("arguments", "url"),
    [
        (TLS, "etcds://h:1,g:2/coreos.com/network?cafile=/ca.pem"),
        (
            [
                *TLS,
                "--etcd-certfile=/c",
                "--etcd-keyfile=/k y",
                "--etcd-username=u",
                "--etcd-password-file=/f",
            ],
            "etcds://h:1,g:2/coreos.com/network"
            "?cafile=/ca.pem&certfile=/c&keyfile=/k%20y&username=u&password-file=/f",
        ),
        (["--store=etcds://h/p?cafile=/ca.pem"], "etcds://h/p?cafile=/ca.pem"),
    ],
)
def test_the_url_names_the_files_of_tls_and_the_user(arguments: list[str], url: str) -> None:
    parsed = options(*arguments)

    assert parsed.store_url == url
    assert parsed.warnings == ()


@pytest.mark.parametrize(
    ("arguments", "environment", "url"),
    [
        (
            ["--etcd-endpoints=https://h:1"],
            {"FLANNELD_ETCD_CAFILE": "/ca.pem"},
            "etcds://h:1/coreos.com/network?cafile=/ca.pem",
        ),
        (
            ["--etcd-endpoints=https://h:1"],
            {
                "FLANNELD_ETCD_CERTFILE": "/c",
                "FLANNELD_ETCD_KEYFILE": "/k",
                "FLANNELD_ETCD_USERNAME": "u",
                "FLANNELD_ETCD_PASSWORD_FILE": "/f",
            },
            "etcds://h:1/coreos.com/network?certfile=/c&keyfile=/k&username=u&password-file=/f",
        ),
        (
            ["--etcd-cafile=/mine.pem"],
            {
                "FLANNELD_ETCD_ENDPOINTS": "https://h:1",
                "FLANNELD_ETCD_PREFIX": "/p",
                "FLANNELD_ETCD_CAFILE": "/ca.pem",
                "FLANNELD_ETCD_USERNAME": "u",
                "FLANNELD_ETCD_PASSWORD": "secret",
            },
            "etcds://h:1/p?cafile=/mine.pem&username=u",
        ),
        (
            ["--etcd-prefix=/p", "--etcd-cafile="],
            {"FLANNELD_ETCD_ENDPOINTS": "https://h:1", "FLANNELD_ETCD_CAFILE": "/ca.pem"},
            "etcds://h:1/p",
        ),
    ],
)
def test_each_store_variable_counts_unless_its_own_flag_is_given(
    arguments: list[str], environment: dict[str, str], url: str
) -> None:
    """A flag overrides only its own variable, as in the original."""
    parsed = options(*arguments, environment=environment)

    assert parsed.store_url == url
    assert parsed.warnings == ()


@pytest.mark.parametrize(
    ("arguments", "environment", "url", "without_effect"),
    [
        (
            ["--store=etcds://h/p"],
            {"FLANNELD_ETCD_CAFILE": "/ca.pem", "FLANNELD_ETCD_USERNAME": "u"},
            "etcds://h/p",
            "Ignored FLANNELD_ETCD_CAFILE, FLANNELD_ETCD_USERNAME, because --store names the store",
        ),
        (
            ["--etcd-endpoints=http://h:1"],
            {"FLANNELD_STORE": "sqlite:///l.db"},
            "etcd://h:1/coreos.com/network",
            "Ignored FLANNELD_STORE, because --etcd-endpoints names the store",
        ),
    ],
)
def test_a_warning_names_the_variables_that_another_way_to_name_the_store_overrides(
    arguments: list[str], environment: dict[str, str], url: str, without_effect: str
) -> None:
    """`--store` and the etcd flags both name the store. A flag overrides the variables of the other kind."""
    parsed = options(*arguments, environment=environment)

    assert parsed.store_url == url
    assert parsed.warnings == (without_effect,)


@pytest.mark.parametrize(
    ("arguments", "environment"),
    [
        (["--etcd-password=secret"], {}),
        (["--etcd-password", "secret"], {"FLANNELD_ETCD_PASSWORD": "other"}),
        ([], {"FLANNELD_ETCD_PASSWORD": "secret"}),
    ],
)
def test_a_password_is_accepted_and_never_shown(arguments: list[str], environment: dict[str, str]) -> None:
    parsed = options(*TLS, "--etcd-username=u", *arguments, environment=environment)

    assert parsed.etcd_password == Secret("secret")
    assert "secret" not in repr(parsed)
    assert parsed.store_url.endswith("&username=u")


def test_flags_that_http_endpoints_ignore_give_a_warning() -> None:
    parsed = options("--etcd-cafile=/c", "--etcd-username=u", "--etcd-password=secret")

    assert parsed.store_url.endswith("/coreos.com/network?username=u")
    assert ["--etcd-cafile" in parsed.warnings[0], "unencrypted" in parsed.warnings[1]] == [True, True]


@pytest.mark.parametrize(
    ("arguments", "environment", "origin"),
    [
        (["--store=etcd://h/p?username=u", "--etcd-password=secret"], {}, "--store"),
        (["--store=etcd://h/p?username=u&password-file=/f"], {}, "--store"),
        ([], {"FLANNELD_STORE": "etcd://h/p?username=u", "FLANNELD_ETCD_PASSWORD": "s"}, "FLANNELD_STORE"),
    ],
)
def test_a_store_url_that_sends_a_password_in_clear_text_gives_a_warning(
    arguments: list[str], environment: dict[str, str], origin: str
) -> None:
    parsed = options(*arguments, environment=environment)

    assert parsed.warnings == (f"The etcd password is sent unencrypted, because {origin} uses etcd://",)


@pytest.mark.parametrize("url", ["etcds://h/p?username=u&password-file=/f", "etcd://h/p", "sqlite:///f"])
def test_a_store_url_without_a_clear_text_password_gives_no_warning(url: str) -> None:
    assert options(f"--store={url}").warnings == ()


def test_the_environment_alone_names_the_store() -> None:
    environment = {"FLANNELD_ETCD_ENDPOINTS": "http://h:1", "FLANNELD_IP_MASQ": "nonsense"}

    assert store_url_from_environment(environment) == "etcd://h:1/coreos.com/network"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--etcd-endpoints=http://u:secret@h:1"],
        ["--etcd-endpoints=u:secret@h:1"],
        ["--etcd-endpoints=http://h:1?x=secret"],
        ["--store=u:secret@h:1"],
        ["--store=etcd://u:secret@h:1/"],
        ["--store=etcds://h/?username=u&password=secret"],
        ["--etcd-password=secret"],
        ["--etcd-password", "secret", "--etcd-username="],
    ],
)
def test_no_refusal_quotes_a_password(arguments: list[str]) -> None:
    assert "secret" not in refusal(*arguments)


KUBERNETES = ("--kube-subnet-mgr", "--kubeconfig-file=/etc/flannel.conf")


def test_kubernetes_replaces_the_other_stores() -> None:
    found = options(*KUBERNETES, "--kube-annotation-prefix=example.org/blue", environment={"NODE_NAME": "n1"})

    assert found.store_url == "kube:"
    assert found.kubernetes is not None
    assert (found.kubernetes.node, found.kubernetes.pod) == ("n1", None)
    assert found.kubernetes.prefix == "example.org/blue-"
    assert str(found.kubernetes.config) == "/etc/kube-flannel/net-conf.json"
    assert found.kubernetes.sets_condition
    assert not found.kubernetes.warns
    pod = {"POD_NAME": "p", "POD_NAMESPACE": "s"}
    others = ("--set-node-network-unavailable=false", "--warn-network-policies")
    other = options(*KUBERNETES, *others, environment=pod).kubernetes
    assert other is not None
    assert (other.node, other.pod, other.sets_condition, other.warns) == (None, ("s", "p"), False, True)
    assert options("--kube-api-url=x", "--net-config-path=/x").kubernetes is None


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (KUBERNETES, {}, "env variables POD_NAME and POD_NAMESPACE must be set: Set both, or set NODE_NAME"),
        (KUBERNETES, {"POD_NAME": "p"}, "env variables POD_NAME and POD_NAMESPACE must be set"),
        (["--kube-subnet-mgr"], {"NODE_NAME": "n"}, "fail to create kubernetes config: this is no pod"),
        (
            ["--kube-subnet-mgr", "--kube-api-url=ftp://x"],
            {"NODE_NAME": "n"},
            "--kube-api-url is not the URL",
        ),
        (
            [*KUBERNETES, "--networks=a"],
            {"NODE_NAME": "n"},
            "--networks cannot be used with --kube-subnet-mgr",
        ),
        ([*KUBERNETES, "--lease-signing=warn"], {"NODE_NAME": "n"}, "--lease-signing cannot be used with"),
        (
            [*KUBERNETES, "--kube-annotation-prefix=a/b/c"],
            {"NODE_NAME": "n"},
            "prefix can contain at most single slash: Write flannel.alpha.coreos.com.",
        ),
    ],
)
def test_wrong_options_for_kubernetes_are_refused(
    arguments: list[str], environment: dict[str, str], message: str
) -> None:
    assert message in refusal(*arguments, environment=environment)
