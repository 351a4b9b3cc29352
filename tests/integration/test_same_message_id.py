"""Messages are told apart by more than the message id that their publisher gave them."""

import time

from tests.rig import Requester, Rig, messenger, until


async def test_hundreds_of_messages_with_one_message_id_neither_stop_nor_slow_others(rig: Rig) -> None:
    requester = await rig.start()
    started = time.monotonic()
    same = [await requester.publish(b"{}", message_id="the same") for _ in range(400)]
    assert (await requester.ask(messenger()))["status"] == "registered"
    for correlation_id in same:
        assert (await requester.reply(correlation_id))["status"] == "rejected"
    await until(lambda: _has_dead_letters(requester, 400), "all dead letters")
    assert time.monotonic() - started < 20  # one after the other with a pause between took 40 s


async def _has_dead_letters(requester: Requester, count: int) -> bool:
    return await requester.depth("dead") == count
