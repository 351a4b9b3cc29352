"""Lines of text from bytes in any encoding (contract §12)."""

import codecs
import io
from collections.abc import Iterable, Iterator

from worker.tables.source import Unreadable

LONGEST_LINE = 1024 * 1024  # characters

_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


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
    and for an endless line."""
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
        if isinstance(error, UnicodeDecodeError):
            number += error.object.count(b"\n", 0, error.start)
        raise Unreadable(
            f"line {number + 1} is not {encoding} text: save the file as UTF-8, or name its --encoding"
        ) from None
    if pending:
        yield pending
