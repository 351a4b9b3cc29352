"""What is read of AMQP 1.0, whatever a publisher has written."""

import random
import struct

import pytest

from tests.integration.amqp10 import UNDELIVERABLE
from worker.amqp.amqp10 import Unknown, _is_undeliverable, _value

BODY = b"\x00\x53\x75\xa0\x02{}"


@pytest.mark.parametrize("empty", [b"\xd0\x00\x00\x00\x04\x00\x00\x00\x00", b"\xc0\x01\x00", b"\x45"])
def test_an_empty_list_may_be_the_last_of_a_frame(empty):
    assert _value(empty, 0) == ([], len(empty))


@pytest.mark.parametrize("sections", UNDELIVERABLE.values(), ids=UNDELIVERABLE)
def test_what_cannot_be_delivered_is_known(sections):
    assert _is_undeliverable(sections + BODY, {Unknown.KIND})
    assert not _is_undeliverable(BODY + sections, {Unknown.KIND})


def test_nothing_that_is_no_message_stops_the_search():
    chosen = random.Random(5)
    for _ in range(5_000):
        section = (
            b"\x00\x53" + bytes((chosen.randrange(0x70, 0x75),)) + chosen.randbytes(chosen.randrange(1, 60))
        )
        _is_undeliverable(section + BODY, {*Unknown})
    endless = b"\xf0" + struct.pack(">II", 5, 2**32 - 1) + b"\x40"  # so many that have no bytes
    assert not _is_undeliverable(b"\x00\x53\x72" + endless + BODY, {*Unknown})
