"""Dead letters encrypted at rest: sealed with the newest key, opened with each, and only in their place."""

import base64
import os
from pathlib import Path

import pytest

from worker.amqp.properties import Properties, build
from worker.broker.encryption import CannotOpen, Seals
from worker.contract.words import ENCRYPTION_KEY_HEADER
from worker.errors import SettingsError
from worker.settings import load_settings

BODY = b'{"ottPlatformAttributes": {"channelSecret": "the-secret"}}'


def key(name: str) -> str:
    return f"{name}:{base64.b64encode(os.urandom(32)).decode()}"


def seals(keys: str | None, prefix: str = "ott.registration") -> Seals:
    return Seals(load_settings(dead_letter_keys=keys, prefix=prefix))


def letter(request_id: str = "request-1") -> Properties:
    return build(headers={"x-ott-request-id": request_id, "x-ott-reason": "invalid"})


def test_a_sealed_body_shows_nothing_and_opens_again() -> None:
    with_keys = seals(key("one"))
    properties, sealed = with_keys.seal(letter(), BODY)
    assert b"secret" not in sealed
    assert properties.header(ENCRYPTION_KEY_HEADER) == "one"
    assert properties.header("x-ott-reason") == "invalid"
    assert with_keys.open_body(properties, sealed) == BODY


def test_the_same_body_is_never_sealed_twice_alike() -> None:
    with_keys = seals(key("one"))
    assert with_keys.seal(letter(), BODY)[1] != with_keys.seal(letter(), BODY)[1]


def test_without_keys_nothing_is_sealed() -> None:
    properties, body = seals(None).seal(letter(), BODY)
    assert body == BODY
    assert not properties.has_header(ENCRYPTION_KEY_HEADER)
    assert seals(None).open_body(properties, body) == BODY


def test_what_was_never_sealed_opens_with_keys_too() -> None:
    assert seals(key("one")).open_body(letter(), BODY) == BODY


def test_what_is_sealed_already_is_not_sealed_again() -> None:
    with_keys = seals(key("one"))
    once = with_keys.seal(letter(), BODY)
    assert with_keys.seal(*once)[1] == once[1]


def test_after_a_rotation_the_new_key_seals_and_the_old_one_still_opens() -> None:
    old, new = key("old"), key("new")
    before = seals(old).seal(letter(), BODY)
    rotated = seals(f"{new}\n{old}")
    assert rotated.open_body(*before) == BODY
    properties, sealed = rotated.seal(letter(), BODY)
    assert properties.header(ENCRYPTION_KEY_HEADER) == "new"
    with pytest.raises(CannotOpen, match="encrypted with the key new: add it to OTT_DEAD_LETTER_KEYS"):
        seals(old).open_body(properties, sealed)


def test_a_rotation_by_file_needs_no_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, old, new = tmp_path / "keys", key("old"), key("new")
    file.write_text(old)
    monkeypatch.setenv("OTT_DEAD_LETTER_KEYS_FILE", str(file))
    running = Seals(load_settings())
    before = running.seal(letter(), BODY)
    file.write_text(f"{new},{old}\n")
    assert running.seal(letter(), BODY)[0].header(ENCRYPTION_KEY_HEADER) == "new"
    assert running.open_body(*before) == BODY


def test_a_key_file_that_is_broken_while_running_leaves_the_keys_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "keys"
    file.write_text(key("old"))
    monkeypatch.setenv("OTT_DEAD_LETTER_KEYS_FILE", str(file))
    running = Seals(load_settings())
    running.seal(letter(), BODY)
    file.write_text("half-written")
    assert running.seal(letter(), BODY)[0].header(ENCRYPTION_KEY_HEADER) == "old"


@pytest.mark.parametrize("change", ["request id", "queue", "text", "cut", "head only"])
def test_a_sealed_body_opens_only_as_it_was_and_where_it_was(change: str) -> None:
    keys = key("one")
    properties, sealed = seals(keys).seal(letter(), BODY)
    opener = seals(keys, "another.prefix") if change == "queue" else seals(keys)
    if change == "request id":
        properties = properties.changed({"x-ott-request-id": "request-2"})
    changed = {"text": sealed[:-1] + bytes([sealed[-1] ^ 1]), "cut": sealed[:-20], "head only": sealed[:15]}
    with pytest.raises(CannotOpen) as caught:
        opener.open_body(properties, changed.get(change, sealed))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "keys",
    ["no-colon", "id:short", f"id:{'A' * 43}=,id:{'A' * 43}=", f"bad id!:{'A' * 43}=", f":{'A' * 43}="],
)
def test_wrong_keys_stop_the_start_in_one_line_that_shows_no_key(keys: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(dead_letter_keys=keys)
    assert str(caught.value).startswith("OTT_DEAD_LETTER_KEYS must be ID:KEY")
    assert "AAAA" not in str(caught.value)
    assert "short" not in str(caught.value)


def test_a_keys_file_that_breaks_leaves_the_keys_of_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "keys"
    file.write_text(key("one"))
    monkeypatch.setenv("OTT_DEAD_LETTER_KEYS_FILE", str(file))
    with_keys = Seals(load_settings())
    file.write_text("half of a ")
    properties, sealed = with_keys.seal(letter(), BODY)
    assert with_keys.open_body(properties, sealed) == BODY


def test_headers_that_must_go_are_never_those_that_a_sealed_body_needs_to_open() -> None:
    with_keys = seals(key("one"))
    many = {f"h{n}": True for n in range(15_000)}
    properties, sealed = with_keys.seal(letter().changed(many), BODY)
    fitting = properties.without_large_headers(100_000)
    assert fitting.header("x-ott-reason") == "invalid"
    assert with_keys.open_body(fitting, sealed) == BODY
