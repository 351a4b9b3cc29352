"""The ledger of one publishing channel: nothing is lost or reordered, whatever the broker answers."""

import asyncio

import pytest

from worker.amqp.ledger import Ledger, Message, Publish
from worker.amqp.properties import build
from worker.errors import PublishRefused


@pytest.fixture
def loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


def publishes(loop: asyncio.AbstractEventLoop, names: str) -> list[Publish]:
    return [Publish(Message("", name, build(), b""), loop.create_future(), key=name) for name in names]


def names(of: list[Publish]) -> str:
    return "".join(publish.message.queue for publish in of)


def sent(ledger: Ledger, now: float = 0.0) -> str:
    """Send all that waits."""
    gone = []
    while (publish := ledger.next()) is not None:
        ledger.sent(publish, now)
        gone.append(publish)
    return names(gone)


def filled(loop: asyncio.AbstractEventLoop, names: str) -> Ledger:
    ledger = Ledger()
    for publish in publishes(loop, names):
        ledger.add(publish)
    return ledger


@pytest.mark.parametrize(
    ("answers", "taken"),
    [
        ([(1, False), (2, False)], ["a", "b"]),
        ([(3, False), (1, False)], ["c", "a"]),
        ([(3, True)], ["abc"]),
        ([(2, False), (3, True)], ["b", "ac"]),
        ([(2, False), (2, False)], ["b", ""]),
        ([(9, False)], [""]),
        ([(9, True)], ["abcd"]),
    ],
)
def test_an_answer_takes_out_the_publishes_that_it_names(loop, answers, taken):
    ledger = filled(loop, "abcd")
    assert sent(ledger) == "abcd"
    assert [names(ledger.answered(tag, multiple=multiple)) for tag, multiple in answers] == taken
    assert set(names(ledger.lost())) == set("abcd") - set("".join(taken))


def test_a_returned_message_is_known_by_its_key_and_its_confirm_finds_nothing(loop):
    ledger = filled(loop, "ab")
    sent(ledger)
    assert names(ledger.returned("b")) == "b"
    assert ledger.returned("b") == ledger.returned("x") == ledger.answered(2) == []
    assert ledger.is_in_flight("a")
    assert not ledger.is_in_flight("b")


def test_what_was_under_way_goes_first_on_the_next_channel_in_its_order(loop):
    ledger = filled(loop, "abc")
    sent(ledger)
    ledger.answered(2)
    ledger.add(publishes(loop, "d")[0])
    under_way = ledger.lost()
    assert names(under_way) == "ac"
    ledger.put_back(under_way)
    assert sent(ledger) == "acd"
    assert names(ledger.answered(1)) == "a"


def test_what_is_given_up_or_refused_is_not_sent(loop):
    ledger = Ledger()
    a, b, c = publishes(loop, "abc")
    for publish in (a, b, c):
        ledger.add(publish)
    a.future.cancel()
    b.future.set_exception(PublishRefused())
    assert sent(ledger) == "c"
    assert b.future.exception()


def test_the_time_to_wait_for_a_confirm_doubles_up_to_a_limit(loop):
    ledger, now, waited = filled(loop, "a"), 0.0, []
    for _ in range(4):
        sent(ledger, now)
        began = now
        while not (late := ledger.overdue(now, 3, 10)):
            now += 1
        waited.append(now - began)
        ledger.add(late[0])
    assert waited == [3, 6, 10, 10]


def test_a_wait_that_is_put_off_begins_anew(loop):
    ledger = filled(loop, "ab")
    sent(ledger, 0)
    ledger.put_off(5)
    assert ledger.overdue(7, 3, 10) == []
    assert names(ledger.overdue(8, 3, 10)) == "ab"
