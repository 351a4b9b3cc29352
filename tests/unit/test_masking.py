"""What Marketing Cloud quotes of a request's secrets is masked, whole or cut."""

import json
from datetime import UTC, datetime

import pytest

from worker.marketing_cloud.answer import MESSAGE_LIMIT, read_answer, without

SECRET = "a-secret-of-some-length"


def masked(message: str) -> str:
    body = json.dumps(
        {"message": message, "documentation": message, "validationErrors": [{"message": message}]}
    )
    answer = without(read_answer(400, None, body.encode(), datetime.now(UTC)), (SECRET,))
    assert answer.message == answer.documentation == answer.errors[0].message
    return answer.message


def test_a_quoted_secret_is_masked() -> None:
    assert masked(f"Wrong: {SECRET}, {SECRET}!") == "Wrong: ***, ***!"


@pytest.mark.parametrize("left", range(3, len(SECRET)))
def test_a_secret_that_was_cut_off_with_a_long_message_is_masked(left: int) -> None:
    message = masked("x" * (MESSAGE_LIMIT - left) + SECRET)
    assert SECRET[:left] not in message
    assert message.endswith("x***")


def test_the_end_of_a_short_message_is_left_alone() -> None:
    assert masked(f"It ends with {SECRET[:5]}") == f"It ends with {SECRET[:5]}"
