"""Secrets are removed from texts at any position, and other texts are unchanged."""

import base64
import json
import time
from urllib.parse import quote

import pytest

from pyflannel.wire.redaction import REMOVED, Redactor, is_secret, named_secrets, secrets_in

SECRET = 'S3"cr/et pa:ss'
PLANTED = [
    '{"Backend": {"Type": "wireguard", "PSK": "h1dden+key="}, "Network": "10.5.0.0/16"}',
    r'{"text": "{\"Backend\": {\"Type\": \"ipsec\", \"PSK\": \"h1dden+key=\"}}"}',
    "--etcd-password=h1dden+key=",
    "flanneld -etcd-password h1dden+key= --iface eth0",
    "FLANNELD_ETCD_PASSWORD=h1dden+key=\nFLANNELD_IFACE=eth0",
    "Environment='FLANNELD_ETCD_PASSWORD=h1dden+key='",
    "etcd://root:h1dden+key=@10.0.0.1:2379/coreos.com/network",
    "https://root:a@h1dden+key=@10.0.0.1",
    "etcd://10.0.0.1/x?username=root&password=h1dden+key=&prefix=y",
    "Authorization: Bearer h1dden+key=",
    "PrivateKey = h1dden+key=",
    "PresharedKey = h1dden+key=",
    "    client-key-data: h1dden+key=",
    "token: h1dden+key= with more words h1dden+key=",
    "-----BEGIN EC PRIVATE KEY-----\nh1dden+key=\nh1dden+key=\n-----END EC PRIVATE KEY-----",
    "-----BEGIN PRIVATE KEY-----\nh1dden+key=",
]


@pytest.mark.parametrize("text", PLANTED)
def test_a_value_beside_the_name_of_a_secret_is_removed(text: str) -> None:
    redactor = Redactor([])

    cleaned = redactor.clean(text)

    assert "h1dden" not in cleaned
    assert REMOVED in cleaned
    assert redactor.removed


def test_a_token_of_kubernetes_is_removed_without_a_name() -> None:
    token = f"eyJhbGciOiJSUzI1NiJ9.{'a' * 40}.{'b-_' * 20}"

    assert Redactor([]).clean(f"seen {token}, refused") == f"seen {REMOVED}, refused"


@pytest.mark.parametrize(
    "form",
    [
        SECRET,
        json.dumps({"note": SECRET}),
        f"https://host/{quote(SECRET, safe='')}",
        base64.b64encode(SECRET.encode()).decode(),
    ],
)
def test_a_known_value_is_removed_in_each_form(form: str) -> None:
    text = f"no name announces it: {form}."

    cleaned = Redactor([SECRET, ""]).clean(text)

    assert "cr" not in cleaned.partition(":")[2]
    assert cleaned.startswith("no name announces it: ")


@pytest.mark.parametrize(
    "text",
    [
        "--etcd-password-file=/etc/flannel/password",
        "--etcd-keyfile /etc/flannel/key.pem",
        '{"Network": "10.5.0.0/16", "Backend": {"Type": "vxlan", "Port": 8472}}',
        "etcd://10.0.0.1:2379,10.0.0.2:2379/coreos.com/network",
        "10.5.16.0/24 via 10.5.16.0 dev flannel.1 onlink",
        "The etcd password is sent unencrypted, because the endpoint is not https",
        "-A FORWARD -s 10.5.0.0/16 -m comment --comment flanneld -j ACCEPT",
        "public key: hKkG9Pwc=",
    ],
)
def test_other_texts_are_unchanged(text: str) -> None:
    redactor = Redactor([])

    assert redactor.clean(text) == text
    assert not redactor.removed


def test_names_of_secrets_are_recognised() -> None:
    assert is_secret("FLANNELD_ETCD_PASSWORD")
    assert is_secret("etcd-password")
    assert is_secret("PSK")
    assert not is_secret("etcd-password-file")
    assert not is_secret("FLANNELD_ETCD_PASSWORD_FILE")
    assert not is_secret("FLANNELD_IFACE")


def test_the_secrets_in_a_key_file_are_found() -> None:
    key = json.dumps({"Owner": "o", "Private": "aabb", "Public": "ccdd"})
    pem = "-----BEGIN PRIVATE KEY-----\nMC4CAQ\n-----END PRIVATE KEY-----\n"

    assert list(secrets_in(key)) == ["aabb"]
    assert list(secrets_in(pem)) == ["MC4CAQ"]
    assert list(secrets_in("pass word\n\n")) == ["pass word"]
    assert list(secrets_in('{"Backend": {"PSK": "x"}, "users": [{"token": "y"}]}')) == ["x", "y"]


@pytest.mark.parametrize(
    "part",
    ["passw.", "token-", "a.", "-", "://", "://@", "eyJ-", "bearer ", "psk ", 'token="\\', "secret '", "="],
)
def test_the_time_is_linear_in_the_length_of_a_hostile_text(part: str) -> None:
    """A peer or a writer of the store can cause a log line with a hostile text."""
    text = part * (60_000 // len(part))
    started = time.process_time()

    Redactor([]).clean(text)
    list(named_secrets(text))

    assert time.process_time() - started < 3.0


def test_many_known_values_are_removed_in_a_short_time() -> None:
    secrets = [f"secret-{number:06}" for number in range(200)]
    text = f"{' '.join(secrets)} {'secret-' * 30_000}"
    started = time.process_time()

    cleaned = Redactor(secrets).clean(text)

    assert time.process_time() - started < 3.0
    assert not any(secret in cleaned for secret in secrets)


@pytest.mark.parametrize("character", [0xDC94, 0xD800], ids=["byte", "escape"])
def test_a_secret_that_is_no_valid_text_is_removed(character: int) -> None:
    """A key file may contain any bytes, and a JSON document may contain escapes of lone surrogates."""
    secret = f"h1dden{chr(character)}key"
    text = f"{secret} {json.dumps(secret)}"

    cleaned = Redactor([secret]).clean(text)

    assert cleaned == f'{REMOVED} "{REMOVED}"'


def test_the_longer_of_two_known_values_is_removed_first() -> None:
    redactor = Redactor(["hidden", "hidden-word"])

    assert redactor.clean("a hidden-word") == f"a {REMOVED}"
    assert redactor.removed == 1
