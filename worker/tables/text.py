"""Lines of text from bytes in any encoding (contract §12)."""

import codecs
import io
import re
from collections.abc import Iterable, Iterator

from worker.tables.source import Unreadable

LONGEST_LINE = 1024 * 1024  # characters
_BEYOND_ASCII = re.compile(rb"[\x80-\xff]")
GUESSED_FROM = 4096  # bytes around the place that is not in the expected encoding

_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# The encodings that spreadsheets save, and the bytes of their everyday letters. A file's names hold few
# letters beyond ASCII: statistical detectors got a third of such samples wrong.
_EVERYDAY = {
    "cp932": rb"(?:[\x81-\x97\xfa-\xfc][\x40-\x7e\x80-\xfc]|[\xa6-\xdf]{2,})",
    "cp949": rb"[\xa1-\xa3\xb0-\xc8][\xa1-\xfe]",
    "euc_jp": rb"[\xa1-\xcf][\xa1-\xfe]",
    "gb18030": rb"[\xa1-\xa3\xb0-\xd7][\xa1-\xfe]",
    "big5": rb"[\xa1-\xc6][\x40-\x7e\xa1-\xfe]",
    "cp1251": rb"[\xc0-\xff\xa8\xb8]{2,}",
    "cp1252": rb"(?<=[ -~\t])[\xc0-\xff\x80\x8a\x8c\x8e\x91-\x9f](?=[ -~\t]|$)",
    "cp1250": rb"[\x8a-\x9f\xa3\xa5\xaa\xaf\xb3\xb9-\xff]",
}


def encoding_of(sample: bytes) -> str:
    """The encoding that the byte order mark tells, or the zero bytes of UTF-16 without a mark, else UTF-8."""
    for mark, name in _BYTE_ORDER_MARKS:
        if sample.startswith(mark):
            return name
    zeros = (sample[0::2].count(0), sample[1::2].count(0))
    if max(zeros) * 5 > len(sample) > 1:
        return "utf-16-be" if zeros[0] > zeros[1] else "utf-16-le"
    return "utf-8"


def decode_sample(sample: bytes, encoding: str) -> str:
    """The sample with replacement characters where it is not in this encoding; its last character may be
    missing."""
    try:
        return codecs.getincrementaldecoder(encoding)(errors="replace").decode(sample)
    except UnicodeError:  # of UTF-16 and UTF-32 without a mark; reading reports it
        return ""


def lines(chunks: Iterable[bytes], encoding: str) -> Iterator[str]:
    """Each line with its end, which is always a line feed. Raises Unreadable for text in another encoding,
    naming the likely one, and for an endless line."""
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder(encoding)(), translate=True)
    pending, number = "", 0
    try:
        for chunk in chunks:
            *complete, pending = (pending + decoder.decode(chunk)).split("\n")
            for line in complete:
                number += 1
                yield line + "\n"
            if len(pending) > LONGEST_LINE:
                raise Unreadable(f"line {number + 1} is longer than {LONGEST_LINE:,} characters")
        pending += decoder.decode(b"", final=True)
    except UnicodeError as error:
        advice = "save the file as UTF-8, or name its --encoding"
        if isinstance(error, UnicodeDecodeError):
            number += error.object.count(b"\n", 0, error.start)
            if likely := guess(error.object[max(0, error.start - 256) : error.start + GUESSED_FROM]):
                advice = f"it looks like {likely}: give --encoding {likely}, or save the file as UTF-8"
        raise Unreadable(f"line {number + 1} is not {encoding} text: {advice}") from None
    if pending:
        yield pending


def guess(sample: bytes) -> str | None:
    """The encoding that text most likely has, for a message only: the one in which most of what is not ASCII
    is everyday letters."""
    text = b"\n".join(line for line in sample.splitlines() if not line.isascii())
    best = max(_EVERYDAY, key=lambda name: _everyday(text, name))
    return best if _everyday(text, best) > 0.5 else None


def _everyday(text: bytes, encoding: str) -> float:
    """The share of the bytes beyond ASCII that are everyday letters of an encoding, 0 for text in another."""
    try:
        codecs.getincrementaldecoder(encoding)().decode(text)
    except UnicodeError:
        return 0.0
    letters = b"".join(re.findall(_EVERYDAY[encoding], text, re.MULTILINE))
    return len(_BEYOND_ASCII.findall(letters)) / max(1, len(_BEYOND_ASCII.findall(text)))
