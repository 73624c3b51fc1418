"""No text form of a secret object contains the secret."""

from dataclasses import dataclass

from pyflannel.model.store_record import Secret


@dataclass
class Holder:
    password: Secret


def test_no_text_contains_a_secret() -> None:
    secret = Secret("hunter2")

    texts = [str(secret), repr(secret), f"{secret} {secret!r}", repr([secret]), repr(Holder(secret))]

    assert "hunter2" not in " ".join(texts)
    assert str(secret) == "***"


def test_a_secret_reveals_and_compares_its_text() -> None:
    assert Secret("a").reveal() == "a"
    assert Secret("a") == Secret("a") != Secret("b")
    assert [bool(Secret("")), bool(Secret("a"))] == [False, True]
