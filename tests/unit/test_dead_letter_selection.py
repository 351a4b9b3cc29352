"""Filters, times and patches of the dead-letters command, as pure functions."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.rig import LINE, MESSENGER, messenger
from worker.contract.timestamps import moment
from worker.dead_letters.patch import InvalidPatch, Patched, parse
from worker.errors import UsageError

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
MICROSECOND = 1_000_000


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90s", datetime(2026, 11, 23, 11, 58, 30, tzinfo=UTC)),
        ("15m", datetime(2026, 11, 23, 11, 45, tzinfo=UTC)),
        ("1.5h", datetime(2026, 11, 23, 10, 30, tzinfo=UTC)),
        ("3d", datetime(2026, 11, 20, 12, tzinfo=UTC)),
        ("1w", datetime(2026, 11, 16, 12, tzinfo=UTC)),
        ("2026-11-23", datetime(2026, 11, 23, tzinfo=UTC)),
        ("2026-11-23T10:00:00.25Z", datetime(2026, 11, 23, 10, 0, 0, 250_000, tzinfo=UTC)),
        ("2026-11-23T10:00:00+02:00", datetime(2026, 11, 23, 8, tzinfo=UTC)),
    ],
)
def test_a_time_is_absolute_in_utc_or_a_while_ago(text: str, expected: datetime) -> None:
    assert moment(text, "--since", lambda: NOON) == int(expected.timestamp() * MICROSECOND)


@pytest.mark.parametrize("text", ["", "yesterday", "2x", "-1h", "2026-13-01"])
def test_another_time_is_wrong_usage(text: str) -> None:
    with pytest.raises(UsageError, match="--until must be a time"):
        moment(text, "--until")


def test_a_patch_sets_attributes_the_platform_and_flags() -> None:
    patch = parse(["ottPlatformName=messenger", "pageName=a=b", "isActive=false"], str)
    assert patch.fields == {"ottPlatformName": "messenger", "pageName": "a=b", "isActive": False}
    patched = patch.apply(messenger("p", "old"), 10_000)
    assert isinstance(patched, Patched)
    assert (patched.platform, patched.resource_id) == ("messenger", "p")
    assert b'"pageName":"a=b"' in patched.body


def test_a_patch_keeps_unknown_fields_and_the_order_of_the_rest() -> None:
    body = b'{"zebra":1,"ottPlatformName":"messenger","ottPlatformAttributes":' + (
        str(MESSENGER["ottPlatformAttributes"]).replace("'", '"').replace("True", "true").encode() + b"}"
    )
    patched = parse(["pageName=new"], str).apply(body, 10_000)
    assert isinstance(patched, Patched)
    assert patched.body.startswith(b'{"zebra":1,"ottPlatformName":"messenger"')


@pytest.mark.parametrize(
    ("body", "problems"),
    [
        (b"no json", ("The body is not valid JSON.",)),
        (b"{}", None),
        (b'{"ottPlatformAttributes": 5, "ottPlatformName": "messenger"}', None),
        (b'{"ottPlatformAttributes": 5, "ottPlatformName": "line"}', ("line has no pageName",)),
        (messenger("x" * 500), ("The body is larger than 500 bytes",)),
    ],
)
def test_what_is_still_wrong_is_told_in_the_words_of_the_api(
    body: bytes, problems: tuple[str, ...] | None
) -> None:
    unfit = parse(["pageName=new"], str).apply(body, 500)
    assert isinstance(unfit, InvalidPatch)
    if problems is None:
        assert "EndpointUrl must be provided" in unfit.problems
    else:
        assert unfit.problems == problems


def test_a_value_comes_from_a_file_or_from_standard_input_once(tmp_path: Path) -> None:
    Path(tmp_path / "token").write_text("secret\n")
    patch = parse([f"pageAccessToken=@{tmp_path / 'token'}", "applicationSecret=-"], lambda _: "typed\r\n")
    assert patch.fields == {"pageAccessToken": "secret", "applicationSecret": "typed"}
    with pytest.raises(UsageError, match="is read for pageName already"):
        parse(["pageName=-", "pageId=-"], lambda _: "typed")


def test_an_error_never_holds_a_value() -> None:
    with pytest.raises(UsageError) as error:
        parse([f"accessToken={LINE['ottPlatformAttributes']['channelSecret']}"], str)
    assert LINE["ottPlatformAttributes"]["channelSecret"] not in str(error.value)
