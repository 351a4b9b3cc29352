"""Reading one HTTP response: a whole head is an answer, and every doubt costs only the connection."""

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.marketing_cloud.response import BODY_LIMIT, HEAD_LIMIT, ResponseReader

CREATED = b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n"
CHUNKED = b"HTTP/1.1 400 Bad\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nan \r\n4;x=y\r\nbody\r\n0\r\n\r\n"


def read(*parts: bytes) -> ResponseReader:
    reader = ResponseReader()
    for part in parts:
        reader.feed(part)
    return reader


@pytest.mark.parametrize(
    ("response", "status", "body"),
    [
        (CREATED, 201, b""),
        (b"HTTP/1.1 201\r\nContent-Length: 0\r\n\r\n", 201, b""),
        (b"HTTP/1.1 400 Bad\r\nCONTENT-LENGTH : 7\r\n\r\nan body", 400, b"an body"),
        (b"HTTP/1.1 400 Bad\r\nContent-Length: 7, 7\r\n\r\nan body", 400, b"an body"),
        (CHUNKED, 400, b"an body"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nLink: x\r\n\r\n" + CREATED, 201, b""),
        (b"\r\n" + CREATED, 201, b""),
    ],
)
def test_a_sound_response_keeps_its_connection_however_it_is_cut_into_pieces(response, status, body):
    for reader in (read(response), read(*(response[i : i + 1] for i in range(len(response))))):
        assert reader.is_done
        assert reader.keeps_connection
        assert (reader.response.status, reader.response.body) == (status, body)


@pytest.mark.parametrize(
    ("response", "status", "body"),
    [
        (CREATED + b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n", 201, b""),
        (CREATED + b"x", 201, b"x"),
        (b"HTTP/1.1 201 Created\nContent-Length: 0\nConnection: close\n\n", 201, b""),
        (b"HTTP/1.0 201 Created\r\nContent-Length: 0\r\n\r\n", 201, b""),
        (b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\nConnection: x, Close\r\n\r\n", 201, b""),
        (b"HTTP/1.1 204 No Content\r\nContent-Length: 4\r\n\r\nbody", 204, b"body"),
        (b"HTTP/1.1 400 Bad\r\nContent-Length: 4\r\n\r\n\xe2\x82\xac body", 400, b"\xe2\x82\xac body"),
        (CHUNKED + b"rest", 400, b"an body"),
        (CHUNKED.replace(b"\r\n0\r\n", b"\r\n0\r\nX-Trailer: yes\r\n"), 400, b"an body"),
        (CHUNKED.replace(b"4;x=y", b"zz"), 400, b"an "),
        (CHUNKED.replace(b"chunked\r\n", b"chunked\r\nContent-Length: 7\r\n"), 400, b"an body"),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", 101, b""),
    ],
)
def test_a_doubtful_response_is_an_answer_all_the_same_and_ends_its_connection(response, status, body):
    reader = read(response)
    assert reader.is_done
    assert not reader.keeps_connection
    assert (reader.response.status, reader.response.body) == (status, body)


@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.1 400 Bad\r\n\r\nan body",
        b"HTTP/1.1 400 Bad\r\nContent-Length: 100\r\n\r\nan body",
        b"HTTP/1.1 400 Bad\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nan body",
        b"HTTP/1.1 400 Bad\r\nContent-Length: seven\r\n\r\nan body",
        b"HTTP/1.1 400 Bad\r\nTransfer-Encoding: unknown\r\n\r\nan body",
    ],
)
def test_a_body_without_a_known_end_is_what_came_until_the_connection_ended(response):
    reader = read(response)
    assert not reader.is_done
    reader.end()
    assert not reader.keeps_connection
    assert (reader.response.status, reader.response.body) == (400, b"an body")


@pytest.mark.parametrize(
    "beginning", [b"\x15\x03\x03", b"220 mail\r\n", b"HTTP/2 200 OK\r\n\r\n", b"HTTP/1.1 2 X\r\n\r\n"]
)
def test_what_is_not_http_is_no_answer(beginning):
    reader = read(beginning)
    assert reader.is_done
    assert not reader.has_head


@pytest.mark.parametrize(
    "framing",
    [b"Content-Length: 999999999\r\n\r\n", b"\r\n", b"Transfer-Encoding: chunked\r\n\r\nfffffff\r\n"],
)
def test_a_huge_body_is_cut(framing):
    reader = read(b"HTTP/1.1 400 Bad\r\n" + framing, b"x" * (3 * BODY_LIMIT))
    assert reader.is_done
    assert not reader.keeps_connection
    assert len(reader.response.body) == BODY_LIMIT


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        (b"gzip", gzip.compress(b"an body", mtime=0)),
        (b"x-gzip", gzip.compress(b"an body", mtime=0)),
        (b"deflate", zlib.compress(b"an body")),
        (b"br", b"an body"),
        (b"zstd", b"an body"),
        (b"gzip", b"an body"),
    ],
)
def test_a_body_is_decoded_as_far_as_possible(encoding, body):
    head = b"HTTP/1.1 400 Bad\r\nContent-Encoding: %b\r\nContent-Length: %d\r\n\r\n" % (encoding, len(body))
    assert read(head + body).response.body == b"an body"


def test_a_small_body_does_not_unpack_into_a_huge_one():
    body = gzip.compress(b"x" * 100 * BODY_LIMIT)
    head = b"HTTP/1.1 400 Bad\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body)
    assert len(read(head + body).response.body) == BODY_LIMIT


@given(st.lists(st.binary(max_size=60), max_size=8))
def test_no_bytes_are_a_defect(parts):
    for beginning in (b"", b"HTTP/1.1 ", CREATED[:-2], CHUNKED[:40]):
        reader = read(beginning, *parts)
        reader.end()
        assert not reader.keeps_connection
        assert 0 <= reader.response.status < 1000


def test_a_head_that_never_ends_is_given_up():
    reader = read(b"HTTP/1.1 201 Created\r\nX: " + b"x" * HEAD_LIMIT)
    assert reader.is_done
    assert not reader.has_head
