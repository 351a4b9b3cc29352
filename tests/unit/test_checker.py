"""The checker of the fault tests allows no step back but a redelivered run that is repeated whole."""

import pytest

from tests.faults.checker import Evidence, check
from tests.faults.load import Reply, Sent
from worker.sandbox.faults import Call


def call(seq: int, version: int) -> Call:
    body = b'{"ottPlatformAttributes": {"pageName": "version %d"}}' % version
    return Call(seq, seq, "/", "registration", resource_id="p", masked=body, finished_at=seq, status=201)


@pytest.mark.parametrize(
    ("versions", "violations"),
    [
        ([1, 2, 3], 0),
        ([1, 2, 3, 2, 3, 4], 0),  # redelivered, repeated whole
        ([1, 2, 3, 1, 2, 1, 2, 3, 4], 0),  # and interrupted once more
        ([1, 2, 3, 3, 4], 0),
        ([1, 2, 3, 2], 1),  # a stale call won
        ([1, 2, 3, 2, 4], 2),  # the newest did not follow again, and a version was skipped
        ([1, 2, 4], 1),
        ([3, 2, 1], 2),
    ],
)
def test_order_violations(versions, violations):
    calls = [call(seq, version) for seq, version in enumerate(versions)]
    evidence = Evidence(calls, strikes=9, prefetch=200, attempts=9)
    assert check(evidence).order_violations == violations


@pytest.mark.parametrize(
    ("publishes", "is_dated", "violations"),
    [(2, False, 0), (1, False, 2), (2, True, 2)],  # a redelivery is none, and a dated one must be superseded
)
def test_a_copy_that_rabbitmq_enqueued_late_is_the_newest_unless_it_is_dated(publishes, is_dated, violations):
    versions = [1, 2, 3, 1]
    sent = [
        Sent(f"r{n}", b"", "p", n, True, publishes if n == 1 else 1, is_dated=is_dated) for n in (1, 2, 3)
    ]
    replies = [
        Reply(f"r{version}", str(place), place, str(place), place, "registered", 1, b"", "")
        for place, version in enumerate(versions)
    ]
    calls = [call(seq, version) for seq, version in enumerate(versions)]
    evidence = Evidence(
        calls, strikes=9, prefetch=200, attempts=9, sent=sent, replies=replies, registered={"p": 1}
    )
    assert check(evidence).order_violations == violations
