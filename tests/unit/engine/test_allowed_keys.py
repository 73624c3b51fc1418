"""The allow-list of keys: a file, or a list in the store that an operator signed."""

import logging
from collections.abc import Iterable

import pytest

from doubles.signing_bench import PREFIX, Bench, known, make_key, own, run, running, signed_by_eve
from pyflannel.engine.pacing import LINES_A_MINUTE
from pyflannel.model.lease import LARGEST_COUNTER
from pyflannel.model.store_record import Put
from pyflannel.wire.lease_record import ALLOW_LIST, lease_key, lease_value
from pyflannel.wire.lease_signature import format_signed_list, sign_list


def test_a_key_that_is_added_to_the_file_is_accepted_without_a_restart() -> None:
    async def check(bench: Bench) -> None:
        a, b = bench.keeper("a"), bench.keeper("b")
        async with running(bench, a, b):
            lease = signed_by_eve(bench, "10.100.9.0/24")
            await bench.put(lease_key(lease), lease_value(lease))
            before = own(a).subnet
            assert known(a, lease.subnet) is None

            bench.allow("a", "b", "eve")
            await bench.clock.advance(10)

            assert known(a, lease.subnet) is not None
            assert known(a, own(b).subnet) is not None
            assert own(a).subnet == before
            (refused,) = bench.signings["a"].status().refused
            assert not refused.is_in_store

    run(check)


def test_a_key_that_is_removed_from_the_file_gets_no_more_traffic() -> None:
    async def check(bench: Bench) -> None:
        a, b = bench.keeper("a"), bench.keeper("b")
        async with running(bench, a, b):
            bench.allow("a")
            await bench.clock.advance(10)

            assert known(a, own(b).subnet) is None
            assert known(a, own(a).subnet) is not None
            (refused,) = bench.signings["a"].status().refused
            assert (refused.fault, refused.is_in_store) == ("not_allowed", True)
            assert bench.signings["b"].status().is_own_key_allowed is False
            assert known(b, own(b).subnet) is not None  # a host does not need its own permission
            # A renewal, or a host that joins later, does not change the refusal of the key.
            await bench.clock.advance(3600)
            assert known(a, own(b).subnet) is None

    run(check)


@pytest.mark.parametrize("text", [None, "", "# nothing\n", "rubbish\n"])
def test_a_broken_file_keeps_the_last_valid_list(text: str | None, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def check(bench: Bench) -> None:
        a, b = bench.keeper("a"), bench.keeper("b")
        async with running(bench, a, b):
            bench.file.write(text)
            await bench.clock.advance(200)

            status = bench.signings["a"].status()
            assert status.allowed == 2
            assert status.trouble is not None
            assert status.trouble.text.startswith("/etc/flannel/lease-keys: ")
            assert caplog.text.count("Kept the last valid list of 2 allowed keys: /etc/flannel/lease") == 2
            assert known(a, own(b).subnet) is not None

            bench.allow("a", "b")
            await bench.clock.advance(10)

            assert bench.signings["a"].status().trouble is None

    run(check)


def test_a_file_is_read_when_it_has_been_written_completely() -> None:
    async def check(bench: Bench) -> None:
        a, b = bench.keeper("a"), bench.keeper("b")
        async with running(bench, a, b):
            for names in (("a",), ("a", "b")):
                bench.allow(*names)
                await bench.clock.advance(0.1)

            assert known(a, own(b).subnet) is not None
            await bench.clock.advance(10)
            assert known(a, own(b).subnet) is not None

    run(check)


def test_without_an_announcement_the_file_is_read_every_minute_and_on_request() -> None:
    async def check(bench: Bench) -> None:
        a, b = bench.keeper("a"), bench.keeper("b")
        async with running(bench, a, b):
            text = bench.file.text
            bench.file.text = f"{bench.keys['a'].public.hex()}\n"
            assert bench.signings["a"].reload()
            await bench.clock.advance(5)
            assert known(a, own(b).subnet) is None
            bench.file.text = text
            await bench.clock.advance(65)
            assert known(a, own(b).subnet) is not None

    run(check)


def test_a_list_that_changes_while_the_leases_are_listed_takes_effect(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The leases that were checked by the old list are checked again."""

    async def check(bench: Bench) -> None:
        b = bench.keeper("b")
        async with running(bench, b):
            a = bench.keeper("a")
            save, first = bench.memories["a"].save, [True]

            async def slow_save(parts: Iterable[bytes]) -> bool:
                if first and first.pop():
                    bench.allow("a")
                    bench.signings["a"].reload()
                    await bench.clock.sleep(5)
                return await save(parts)

            monkeypatch.setattr(bench.memories["a"], "save", slow_save)
            async with running(bench, a):
                assert known(a, own(b).subnet) is None

    run(check)


# The hosts are copies, and have the same key.


def test_hosts_follow_the_list_that_an_operator_signed() -> None:
    async def check(bench: Bench) -> None:
        a, b = bench.keeper("a", operated=True), bench.keeper("b", operated=True)
        async with running(bench, a, b):
            assert known(a, own(b).subnet) is None
            assert bench.trouble("a") == "the store contains no allow-list"
            assert bench.signings["a"].status().allowed == 0

            await bench.publish(1, "a", "b")

            assert known(a, own(b).subnet) is not None
            assert known(b, own(a).subnet) is not None
            status = bench.signings["a"].status()
            assert (status.allowed, status.counter, status.trouble) == (2, 1, None)

            await bench.publish(2, "a")

            assert known(a, own(b).subnet) is None

            await bench.publish(1, "a", "b")

            assert known(a, own(b).subnet) is None
            assert bench.trouble("a").endswith(
                "the counter 1 of the list is not higher than 2, the counter of the last list"
            )
        # After a restart, the older list is refused too.
        again = bench.keeper("a", operated=True, previous=str(own(a).subnet))
        async with running(bench, again, b):
            assert known(again, own(b).subnet) is None
            assert bench.trouble("a").endswith(
                "the counter 1 of the list is not higher than 2, the counter of the last list"
            )

    run(check)


def test_a_deleted_list_stays_in_force_after_a_restart_too() -> None:
    async def check(bench: Bench) -> None:
        a, b = bench.keeper("a", operated=True), bench.keeper("b", operated=True)
        async with running(bench, a, b):
            await bench.publish(3, "a", "b")
            await bench.delete(ALLOW_LIST)
            await bench.clock.advance(5)

            assert known(a, own(b).subnet) is not None
            assert bench.trouble("a") == "the store does not contain the allow-list any more"
        again = bench.keeper("a", operated=True, previous=str(own(a).subnet))
        async with running(bench, again, b):
            assert known(again, own(b).subnet) is not None
            status = bench.signings["a"].status()
            assert (status.allowed, status.counter) == (2, 3)

    run(check)


@pytest.mark.parametrize("how", ["other key", "other prefix", "forged", "rubbish", "no keys", "same counter"])
def test_a_list_that_no_operator_signed_for_this_network_changes_nothing(how: str) -> None:
    async def check(bench: Bench) -> None:
        a, b = bench.keeper("a", operated=True), bench.keeper("b", operated=True)
        async with running(bench, a, b):
            await bench.publish(1, "a", "b")
            match how:
                case "other key":
                    await bench.publish(2, "a", "b", "eve", key=bench.keys["eve"])
                    signer = bench.keys["eve"].public.hex()
                    text = f"the list is signed by the key {signer}, which belongs to no operator"
                case "other prefix":
                    await bench.publish(2, "eve", prefix="/other")
                    text = "the signature of the list does not match its key and this prefix of the store"
                case "forged":
                    signed = sign_list(PREFIX, bench.list_of("a", "b"), 2, bench.operator)
                    forged = signed._replace(text=bench.list_of("a", "b", "eve"))
                    await bench.put(ALLOW_LIST, format_signed_list(forged))
                    text = "the signature of the list does not match its key and this prefix of the store"
                case "rubbish":
                    await bench.put(ALLOW_LIST, b"rubbish")
                    text = "it is not a signed allow-list: JSON is malformed: invalid character (byte 0)"
                case "no keys":
                    await bench.publish(2)
                    text = "the file contains no key"
                case _:
                    await bench.publish(1, "a", "b", "eve")
                    text = "the counter 1 of the list is not higher than 1, the counter of the last list"

            assert bench.trouble("a") == f"the list in the store is not used: {text}"
            assert bench.signings["a"].rules == {bench.keys["a"].public, bench.keys["b"].public}
            assert known(a, own(b).subnet) is not None

    run(check)


def test_lists_that_strangers_sign_do_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def check(bench: Bench) -> None:
        a = bench.keeper("a", operated=True)
        async with running(bench, a):
            signed = sign_list(PREFIX, bench.list_of("eve"), 1, bench.keys["eve"])
            for number in range(200):
                value = format_signed_list(signed._replace(operator=bytes([number]) * 32))
                await bench.store.write(Put(key=ALLOW_LIST, value=value, ttl_s=None, expected=None))
            await bench.clock.advance(1)

            assert bench.trouble("a").endswith(", which belongs to no operator")

    run(check)
    assert caplog.text.count("which belongs to no operator") == LINES_A_MINUTE


def test_an_operator_whose_key_was_stolen_is_replaced() -> None:
    async def check(bench: Bench) -> None:
        a, b = bench.keeper("a", operated=True), bench.keeper("b", operated=True)
        async with running(bench, a, b):
            new = make_key()
            await bench.publish(1, "a", "b")
            await bench.publish(LARGEST_COUNTER, "a", "b", "eve")  # by the attacker

            bench.operator_file.write(new.public.hex())
            await bench.clock.advance(5)
            assert len(bench.signings["a"].rules or ()) == 3  # until there is another list
            await bench.publish(2, "a", "b", key=new)

            assert bench.signings["a"].rules == {bench.keys["a"].public, bench.keys["b"].public}
            await bench.publish(LARGEST_COUNTER, "a", "b", "eve")
            assert bench.trouble("a").endswith(", which belongs to no operator")

    run(check)


def test_a_list_of_an_operator_who_is_added_later_takes_effect() -> None:
    async def check(bench: Bench) -> None:
        a, b, new = bench.keeper("a", operated=True), bench.keeper("b", operated=True), make_key()
        async with running(bench, a, b):
            await bench.publish(1, "a", "b", key=new)
            assert known(a, own(b).subnet) is None

            bench.operator_file.write(f"{bench.operator.public.hex()}\n{new.public.hex()}\n")
            await bench.clock.advance(5)

            assert known(a, own(b).subnet) is not None

    run(check)


def test_a_list_that_cannot_be_saved_is_used_and_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check(bench: Bench) -> None:
        a, b = bench.keeper("a", operated=True), bench.keeper("b", operated=True)

        async def full(parts: object) -> bool:
            return False

        monkeypatch.setattr(bench.lists["a"], "save", full)
        async with running(bench, a, b):
            await bench.publish(1, "a", "b")

            assert known(a, own(b).subnet) is not None
            assert bench.trouble("a") == "could not save the list for the next start"
            monkeypatch.undo()
            await bench.publish(1, "a", "b")
            assert bench.trouble("a") == ""
            assert bench.lists["a"].content is not None

    run(check)
