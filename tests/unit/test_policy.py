"""What an answer means: the table of contract §6 as pure decisions."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.backoff import Backoff
from worker.marketing_cloud.answer import Answer, read_answer
from worker.marketing_cloud.response import Response
from worker.pipeline.policy import Verdict, judge, outcome, retry_wait, why

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)

TABLE = [
    (200, None, Verdict.REGISTERED),
    (201, None, Verdict.REGISTERED),
    (204, None, Verdict.REGISTERED),
    (400, 10006, Verdict.REJECTED),
    (401, 0, Verdict.CREDENTIALS),
    *((403, code, Verdict.CREDENTIALS) for code in range(40000, 40004)),
    (403, 20002, Verdict.FORBIDDEN),
    (403, None, Verdict.FORBIDDEN),
    (403, 40004, Verdict.FORBIDDEN),
    *((status, None, Verdict.FAILED) for status in (402, 404, 405, 409, 413, 415, 422, 451)),
    *((status, None, Verdict.RETRY) for status in (301, 307, 408, 425, 500, 501, 505, 599)),
    (429, 50100, Verdict.THROTTLED),
    (429, None, Verdict.THROTTLED),
    (429, 50200, Verdict.BLOCKED),
    *((status, None, Verdict.OUTAGE) for status in (502, 503, 504)),
    (None, None, Verdict.OUTAGE),
]


@pytest.mark.parametrize(("status", "code", "verdict"), TABLE)
def test_each_answer_has_its_row(status, code, verdict):
    assert judge(Answer(status, errorcode=code))[0] is verdict


def test_an_outcome_has_marketing_clouds_words_or_a_plain_sentence_and_10000():
    quoted = outcome(Verdict.FORBIDDEN, Answer(403, "Insufficient privileges", 20002, "https://docs"))
    assert (quoted.status, quoted.reason) == ("failed", "forbidden")
    assert (quoted.message, quoted.errorcode, quoted.documentation) == (
        "Insufficient privileges",
        20002,
        "https://docs",
    )
    plain = outcome(Verdict.OUTAGE, read_answer(Response(503, {}, b"<html>"), NOW))
    assert plain.reason == "exhausted"
    assert (plain.message, plain.errorcode) == ("Marketing Cloud answered 503.", 10000)


@given(
    failures=st.integers(0, 10_000),
    base=st.floats(0.001, 1000),
    hint=st.none() | st.floats(0, 1e12),
    remaining=st.floats(-10, 1e6),
)
def test_the_wait_before_a_retry_stays_within_the_budget_and_honours_the_hint(
    failures, base, hint, remaining
):
    wait = retry_wait(failures, base, hint, remaining)
    assert 0 <= wait <= max(remaining, 0)
    assert wait >= min(hint or 0, max(remaining, 0))


@pytest.mark.parametrize(
    ("header", "body", "seconds"),
    [
        ("7", b"", 7),
        ("0", b"", 0),
        ("1.5", b"", 1.5),
        ("Mon, 23 Nov 2026 12:00:30 GMT", b"", 30),
        ("Mon, 23 Nov 2026 11:00:00 GMT", b"", 0),
        (None, b'{"retryAfter": 9}', 9),
        (None, b'{"retryAfter": "9"}', 9),
        ("3", b'{"retryAfter": 9}', 9),
        ("-1", b"", None),
        ("soon", b"", None),
        ("nan", b"", None),
        ("inf", b"", None),
        ("9" * 400, b"", None),
        (None, b'{"retryAfter": true}', None),
        (None, b'{"retryAfter": {}}', None),
        (None, b"", None),
    ],
)
def test_the_retry_hint_is_the_longest_believable_one(header, body, seconds):
    assert (
        read_answer(Response(429, {"retry-after": header} if header else {}, body), NOW).retry_after
        == seconds
    )


@given(st.binary(max_size=300), st.text(max_size=40))
def test_any_body_and_header_make_an_answer(body, header):
    answer = read_answer(Response(500, {"retry-after": header, "date": header}, body), NOW)
    assert answer.message
    assert answer.retry_after is None or answer.retry_after >= 0


def test_a_retry_after_date_is_counted_from_the_answers_own_date():
    ahead = "Mon, 23 Nov 2026 12:10:{} GMT"
    headers = {"date": ahead.format("00"), "retry-after": ahead.format("05")}
    assert read_answer(Response(503, headers, b""), NOW).retry_after == 5


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"content-type": "text/html; charset=utf-8"}, b"Sorry"),
        ({"content-type": "Application/XHTML+xml"}, b"Sorry"),
        ({}, b"\xef\xbb\xbf \r\n<html>"),
        ({"content-type": "application/json"}, b"<?xml"),
    ],
)
def test_a_page_counts_like_a_500_whatever_its_status_but_for_those_that_say_what_to_do(headers, body):
    for status in range(200, 500):
        answer = read_answer(Response(status, headers, body), NOW)
        assert answer.is_page is (status not in {401, 407, 408, 425, 429})
        if answer.is_page:
            assert judge(answer)[0] is Verdict.RETRY
    assert not read_answer(Response(503, headers, body), NOW).is_page


@pytest.mark.parametrize("status", [200, 201, 299])
def test_what_a_2xx_is_depends_on_its_body_only_where_it_is_an_error(status):
    error = Response(status, {}, b'{"message": "No", "errorcode": 10006}')
    assert judge(read_answer(error, NOW))[0] is Verdict.REJECTED
    for body in (b"", b"null", b'{"message": "OK", "errorcode": 0}', b'{"errorcode": 5}'):
        assert judge(read_answer(Response(status, {}, body), NOW))[0] is Verdict.REGISTERED


@given(st.text(), st.integers(100, 599), st.none() | st.integers())
def test_why_a_gate_closes_is_told_in_words_of_our_own(text, status, code):
    answer = Answer(status, text, code)
    said = why(answer, judge(answer)[1])
    assert said.startswith(f"Marketing Cloud answered {status}: ")
    assert text not in said or text in why(Answer(status, "other", code), judge(answer)[1])


def test_the_ceiling_doubles_with_each_failure_up_to_the_longest_wait():
    assert [Backoff(0.5, 30).ceiling(failures) for failures in range(1, 9)] == [0.5, 1, 2, 4, 8, 16, 30, 30]


def test_no_back_off_between_calls_is_longer_than_a_minute():
    waits = [retry_wait(30, 0.5, None, 300) for _ in range(200)]
    assert 30 < max(waits) <= 60


def test_waits_spread_over_the_whole_time_so_that_many_do_not_come_back_at_once():
    waits = [Backoff(1, 30).draw(3) for _ in range(100)]
    assert min(waits) < 1 < 3 < max(waits)
