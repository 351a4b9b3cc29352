"""What the journal proves about a replay, as a pure decision (contract §4)."""

from typing import Any

from tests.unit.test_replies import REGISTERED
from worker.amqp.stream_reader import Entry
from worker.broker import journal_index
from worker.broker.journal_index import JournalIndex, covers
from worker.contract.settlement import Resource, recorded_id
from worker.contract.timestamps import text_of

PAGE = Resource(None, "messenger", "p")
OTHER = Resource(None, "messenger", "q")


def record(request_id: str, received_at: int, *, status: str = "registered", **more: Any) -> dict[str, Any]:
    return {
        "id": request_id,
        "status": status,
        "accountId": None,
        "ottPlatformName": "messenger",
        "resourceId": "p",
        "receivedAt": text_of(received_at),
        **more,
    }


def read(*entries: Entry, since: int = 0, first: Entry | None = None) -> JournalIndex:
    newest = JournalIndex(since)
    for entry in entries:
        newest.read(entry, first or entries[0])
    newest.first = first or entries[0]
    return newest


def test_the_newest_registration_counts_whatever_the_order_of_the_records():
    newest = read(Entry(0, 50, [record("late", 40), record("early", 20)]))
    assert newest.newer_than(PAGE, 39) == "late"
    assert newest.newer_than(PAGE, 40) is None
    assert newest.newer_than(OTHER, 0) is None
    assert newest.newer_than(Resource("7", "messenger", "p"), 0) is None


def test_what_was_not_registered_supersedes_nothing():
    newest = read(
        Entry(0, 50, [record("a", 40, status="failed"), record("b", 41, status="superseded"), {"junk": 1}])
    )
    assert newest.newer_than(PAGE, 0) is None


def test_an_entry_written_before_the_request_came_proves_that_the_journal_reaches_back():
    newest = read(Entry(9, 30, []), Entry(10, 50, []))
    assert newest.reaches_back_to("x", PAGE, 30)
    assert not newest.reaches_back_to("x", PAGE, 29)


def test_its_own_record_proves_it_where_nothing_was_trimmed_whatever_the_resource():
    newest = read(Entry(0, 30, [record("x", 20, status="rejected", resourceId=None)]))
    assert newest.reaches_back_to("x", PAGE, 20)
    assert not newest.reaches_back_to("x", PAGE, 19)
    assert not newest.reaches_back_to("y", PAGE, 20)


def test_in_a_trimmed_journal_only_its_own_record_of_this_resource_proves_it():
    newest = read(Entry(5, 30, [record("x", 20, status="failed")]))
    assert newest.reaches_back_to("x", PAGE, 20)
    assert not newest.reaches_back_to("x", OTHER, 20)


def test_a_record_that_was_trimmed_while_reading_proves_nothing():
    newest = read(Entry(0, 30, [record("x", 20, status="failed")]), first=Entry(1, 40, []))
    assert not newest.reaches_back_to("x", PAGE, 20)


def test_reading_goes_on_only_where_the_stream_is_the_same_and_has_no_gap():
    newest = read(Entry(0, 10, []), Entry(1, 20, []))
    assert newest.continues(Entry(0, 10, []))
    assert newest.continues(Entry(1, 20, []))
    assert not newest.continues(Entry(0, 99, []))
    assert not newest.continues(Entry(3, 40, []))
    assert not newest.continues(None)


def test_reading_began_early_enough_at_the_beginning_or_before_the_time_in_question():
    first = Entry(0, 10, [])
    assert covers(first, first, since=5)
    assert covers(Entry(7, 40, []), first, since=40)
    assert not covers(Entry(7, 41, []), first, since=40)
    assert not covers(None, first, since=0)
    assert covers(None, None, since=0)


def test_a_resource_whose_id_was_cut_is_found_by_its_whole_id():
    page = Resource(None, "messenger", "7" * 1000)
    newest = read(Entry(0, 50, [record("x" * 300, 40, resourceId=recorded_id(page.id))]))
    assert newest.newer_than(page, 39) == "x" * 300
    assert newest.newer_than(Resource(None, "messenger", "7" * 1001), 39) is None


def test_the_time_at_which_it_was_true_counts_where_a_record_tells_it():
    newest = read(
        Entry(0, 50, [record("dated", 40, asOf=text_of(10)), record("not", 20), record("bad", 5, asOf="?")])
    )
    assert newest.newer_than(PAGE, 19) == "not"
    assert newest.newer_than(PAGE, 20) is None


def test_what_this_worker_settles_counts_by_the_time_at_which_it_was_true():
    newest = read(Entry(0, 50, []))
    settled = REGISTERED._replace(request_id="dated", resource_id="p", received_at=99, as_of=30)
    newest.settled(settled)
    assert (newest.newer_than(PAGE, 29), newest.newer_than(PAGE, 30)) == ("dated", None)


def test_a_full_index_keeps_up_with_what_it_knows_and_proves_nothing_else(monkeypatch):
    newest = read(Entry(0, 50, [record("a", 10)]))
    monkeypatch.setattr(journal_index, "LIMIT", 1)
    newest.read(Entry(1, 60, [record("b", 55), record("c", 56, resourceId="q")]), Entry(0, 50, []))
    assert newest.newer_than(PAGE, 50) == "b"
    assert newest.reaches_back_to("x", PAGE, 55)
    assert newest.newer_than(OTHER, 50) is None
    assert not newest.reaches_back_to("x", OTHER, 55)


def test_the_record_of_an_earlier_replay_proves_nothing():
    newest = read(Entry(5, 30, [record("x", 20, status="failed", replay=True)]))
    assert not newest.reaches_back_to("x", PAGE, 20)


def test_entries_that_do_not_tell_the_clock_and_an_empty_journal_prove_nothing():
    assert not read(Entry(0, None, [record("x", 20)])).reaches_back_to("y", PAGE, 30)
    assert not JournalIndex(0).reaches_back_to("y", PAGE, 30)
