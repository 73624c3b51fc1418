"""Flags are read as Go's flag library reads them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyflannel.errors import UsageError
from pyflannel.wire.go_flags import Flag, Value, default_of, read_environment, read_words

PREFIX = Flag(name="etcd-prefix", default="/coreos.com/network", meaning="where keys begin")
MASQ = Flag(name="ip-masq", kind="boolean", meaning="masquerade")
RESYNC = Flag(name="iptables-resync", kind="integer", default="5", meaning="seconds between checks")
VERSION = Flag(name="version", kind="boolean", meaning="print the version", from_environment=False)
FLAGS = (PREFIX, MASQ, RESYNC, VERSION)


def values(*words: str) -> list[tuple[str, Value]]:
    given, rest = read_words(FLAGS, words)
    assert not rest
    return [(each.flag.name, each.value) for each in given]


@given(name=st.sampled_from(["etcd-prefix"]), value=st.text(), dashes=st.sampled_from(["-", "--"]))
def test_one_dash_equals_two_and_the_next_word_is_the_value(name: str, value: str, dashes: str) -> None:
    assert values(f"{dashes}{name}={value}") == values(f"{dashes}{name}", value) == [(name, value)]


def test_all_values_of_a_flag_are_kept_in_order() -> None:
    assert values("--etcd-prefix=a", "-ip-masq", "--etcd-prefix", "--b") == [
        ("etcd-prefix", "a"),
        ("ip-masq", True),
        ("etcd-prefix", "--b"),
    ]


@pytest.mark.parametrize("text", ["1", "t", "T", "true", "TRUE", "True"])
def test_booleans_that_are_true(text: str) -> None:
    assert values(f"--ip-masq={text}") == [("ip-masq", True)]


@pytest.mark.parametrize("text", ["0", "f", "F", "false", "FALSE", "False"])
def test_booleans_that_are_false(text: str) -> None:
    assert values(f"--ip-masq={text}") == [("ip-masq", False)]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("7", 7),
        ("-5", -5),
        ("+5", 5),
        ("0", 0),
        ("0x10", 16),
        ("0o17", 15),
        ("017", 15),
        ("0b11", 3),
        ("1_000", 1000),
    ],
)
def test_integers_with_any_base(text: str, number: int) -> None:
    assert values("--iptables-resync", text) == [("iptables-resync", number)]


@pytest.mark.parametrize("words", [["foo", "--ip-masq"], ["-", "--ip-masq"]])
def test_flags_end_at_the_first_word_that_is_no_flag(words: list[str]) -> None:
    given, rest = read_words(FLAGS, ["--etcd-prefix=/x", *words])

    assert [each.flag for each in given] == [PREFIX]
    assert rest == words


def test_a_boolean_does_not_consume_the_next_word() -> None:
    _, rest = read_words(FLAGS, ["--ip-masq", "true"])

    assert rest == ["true"]


def test_two_dashes_end_the_flags() -> None:
    assert read_words(FLAGS, ["--", "--ip-masq"]) == ([], ["--ip-masq"])


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (["--ip-mask"], "unknown flag --ip-mask", "Write --ip-masq."),
        (["-VERSION"], "unknown flag --VERSION", "Write --version."),
        (["--nosuch=1"], "unknown flag --nosuch", "See --help for all flags."),
        (["--etcd-prefix"], "--etcd-prefix needs a value", "Write --etcd-prefix=VALUE."),
        (["---version"], "'---version' is not a flag", "Write --NAME=VALUE."),
        (["--=x"], "'--=x' is not a flag", "Write --NAME=VALUE."),
        (["--ip-masq=yes"], "--ip-masq='yes' is not a boolean", "Write --ip-masq=true or --ip-masq=false."),
        (["-ip-masq="], "--ip-masq='' is not a boolean", "Write --ip-masq=true or --ip-masq=false."),
        (
            ["--iptables-resync=1.5"],
            "--iptables-resync='1.5' is not an integer",
            "Write --iptables-resync=5, for example.",
        ),
        *(
            (
                [f"--iptables-resync={text}"],
                f"--iptables-resync={text[:60]!r} is not an integer",
                "Write --iptables-resync=5, for example.",
            )
            for text in ("08", "\u0663", "9" * 5000, "9223372036854775808", "-0x8000000000000001")
        ),
        (
            ["--iptables-resync", " 5"],
            "--iptables-resync=' 5' is not an integer",
            "Write --iptables-resync=5, for example.",
        ),
    ],
)
def test_wrong_use_has_a_remedy(words: list[str], message: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_words(FLAGS, words)

    assert (str(caught.value), caught.value.hint) == (message, hint)


def test_variables_set_flags_and_empty_ones_have_no_effect() -> None:
    environment = {
        "X_ETCD_PREFIX": "/x",
        "X_IP_MASQ": "t",
        "X_IPTABLES_RESYNC": "",
        "X_VERSION": "true",
        "X_NO": "1",
    }

    given = read_environment(FLAGS, environment, "X")

    assert [(each.value, each.origin) for each in given] == [("/x", "X_ETCD_PREFIX"), (True, "X_IP_MASQ")]


def test_a_wrong_variable_is_named() -> None:
    with pytest.raises(UsageError, match=r"^X_IP_MASQ='maybe' is not a boolean$"):
        read_environment(FLAGS, {"X_IP_MASQ": "maybe"}, "X")


def test_defaults_are_read_like_values() -> None:
    assert [default_of(flag).value for flag in FLAGS] == ["/coreos.com/network", False, 5, False]
