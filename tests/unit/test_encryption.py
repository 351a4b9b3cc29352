"""Dead letters encrypted at rest: sealed with the newest key, opened with each, and only in their place."""

import base64
import os

import pytest

from worker.amqp.properties import Properties, build
from worker.broker.encryption import DecryptionError, Encryptor
from worker.contract.words import ENCRYPTION_KEY_HEADER
from worker.errors import SettingsError
from worker.settings import load_settings

BODY = b'{"ottPlatformAttributes": {"channelSecret": "the-secret"}}'


def key(name: str) -> str:
    return f"{name}:{base64.b64encode(os.urandom(32)).decode()}"


def encryptor(keys: str | None, prefix: str = "ott.registration") -> Encryptor:
    return Encryptor(load_settings(dead_letter_keys=keys, prefix=prefix))


def letter(**headers: str) -> Properties:
    about = {"x-ott-request-id": "request-1", "x-ott-received-at": "2026-11-23T12:00:00.000000Z"}
    return build(headers={**about, "x-ott-account-id": "7", "x-ott-reason": "invalid", **headers})


def test_a_sealed_body_shows_nothing_and_opens_again():
    with_keys = encryptor(key("one"))
    properties, sealed = with_keys.encrypt(letter(), BODY)
    assert b"secret" not in sealed
    assert properties.header(ENCRYPTION_KEY_HEADER) == "one"
    assert properties.header("x-ott-reason") == "invalid"
    assert with_keys.decrypt(properties, sealed) == BODY


def test_without_keys_nothing_is_sealed():
    properties, body = encryptor(None).encrypt(letter(), BODY)
    assert body == BODY
    assert not properties.has_header(ENCRYPTION_KEY_HEADER)
    assert encryptor(None).decrypt(properties, body) == BODY


def test_what_looks_sealed_is_sealed_like_any_other_body():
    with_keys = encryptor(key("one"))
    properties, looks_sealed = with_keys.encrypt(letter(), BODY)
    again = with_keys.encrypt(properties, looks_sealed)[1]
    assert again != looks_sealed
    assert with_keys.decrypt(properties, again) == looks_sealed


def test_after_a_rotation_the_new_key_seals_and_the_old_one_still_opens():
    old, new = key("old"), key("new")
    before = encryptor(old).encrypt(letter(), BODY)
    rotated = encryptor(f"{new}\n{old}")
    assert rotated.decrypt(*before) == BODY
    properties, sealed = rotated.encrypt(letter(), BODY)
    assert properties.header(ENCRYPTION_KEY_HEADER) == "new"
    with pytest.raises(DecryptionError, match="encrypted with the key new: add it to OTT_DEAD_LETTER_KEYS"):
        encryptor(old).decrypt(properties, sealed)


def test_a_rotation_by_file_needs_no_restart(tmp_path, monkeypatch):
    file, old, new = tmp_path / "keys", key("old"), key("new")
    file.write_text(old)
    monkeypatch.setenv("OTT_DEAD_LETTER_KEYS_FILE", str(file))
    running = Encryptor(load_settings())
    before = running.encrypt(letter(), BODY)
    file.write_text(f"{new},{old}\n")
    assert running.encrypt(letter(), BODY)[0].header(ENCRYPTION_KEY_HEADER) == "new"
    assert running.decrypt(*before) == BODY


WHY = {
    "request id": "does not belong here",
    "account": "does not belong here",
    "time of arrival": "does not belong here",
    "queue": "does not belong here",
    "key": "another key one",
    "text": "damaged: its encrypted body was changed",
    "cut": "damaged",
    "head only": "damaged: its encrypted body was cut off",
    "mark only": "damaged: its encrypted body was cut off",
}


@pytest.mark.parametrize("change", WHY)
def test_a_sealed_body_opens_only_as_it_was_and_where_it_was_and_says_why_not(change):
    keys = key("one")
    properties, sealed = encryptor(keys).encrypt(letter(), BODY)
    headers = {
        "request id": {"x-ott-request-id": "request-2"},
        "account": {"x-ott-account-id": "8"},
        "time of arrival": {"x-ott-received-at": "2026-11-23T12:00:00.000001Z"},
    }
    bodies = {
        "text": sealed[:-1] + bytes([sealed[-1] ^ 1]),
        "cut": sealed[:-20],
        "head only": sealed[:15],
        "mark only": sealed[:14],
    }
    opener = encryptor(
        key("one") if change == "key" else keys, "another.prefix" if change == "queue" else "ott.registration"
    )
    with pytest.raises(DecryptionError, match=WHY[change]) as caught:
        opener.decrypt(properties.changed(headers.get(change, {})), bodies.get(change, sealed))
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "keys",
    ["no-colon", "id:short", f"id:{'A' * 43}=,id:{'A' * 43}=", f"bad id!:{'A' * 43}=", f":{'A' * 43}="],
)
def test_wrong_keys_stop_the_start_in_one_line_that_shows_no_key(keys):
    with pytest.raises(SettingsError) as caught:
        load_settings(dead_letter_keys=keys)
    assert str(caught.value).startswith("OTT_DEAD_LETTER_KEYS must be ID:KEY")
    assert "AAAA" not in str(caught.value)
    assert "short" not in str(caught.value)


def test_headers_that_must_go_are_never_those_that_a_sealed_body_needs_to_open():
    with_keys = encryptor(key("one"))
    many = {f"h{n}": True for n in range(15_000)}
    properties, sealed = with_keys.encrypt(letter().changed(many), BODY)
    fitting = properties.without_large_headers(100_000)
    assert fitting.header("x-ott-reason") == "invalid"
    assert with_keys.decrypt(fitting, sealed) == BODY
