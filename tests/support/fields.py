"""AMQP field tables, encoded by hand: also what no client library writes."""

import random
import struct

from worker.amqp.properties import short_string

Field = tuple[bytes, object]  # its type and encoding, and its value


def sized(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data


def table(entries: dict[str, bytes]) -> bytes:
    """A field table of encoded values."""
    return sized(b"".join(short_string(name) + value for name, value in entries.items()))


# Every type of RabbitMQ's own table.
SCALARS: dict[str, Field] = {
    "t": (b"t\1", True),
    "b": (b"b\xfe", -2),
    "B": (b"B\xfe", 254),
    "s": (b"s\xff\xfe", -2),
    "u": (b"u\xff\xfe", 65534),
    "I": (b"I\xff\xff\xff\xfe", -2),
    "i": (b"i\xff\xff\xff\xfe", 4294967294),
    "l": (b"l" + b"\xff" * 7 + b"\xfe", -2),
    "L": (b"L" + b"\0" * 7 + b"\2", 2),  # RabbitMQ 4.3 writes it as l
    "f": (b"f" + struct.pack(">f", 1.5), 1.5),
    "d": (b"d" + struct.pack(">d", 1.5), 1.5),
    "D": (b"D\2" + struct.pack(">I", 150), 1.5),
    "S": (b"S" + sized(b"text"), "text"),
    "x": (b"x" + sized(b"\0\xff"), b"\0\xff"),
    "T": (b"T" + struct.pack(">Q", 0), None),
    "V": (b"V", None),
}


def mixture(rng: random.Random, depth: int = 0) -> bytes:
    """A random value; its numbers and texts are random too."""
    kind = rng.choice([*SCALARS, "A", "F"] if depth < 4 else [*SCALARS])
    inner = [mixture(rng, depth + 1) for _ in range(rng.randrange(4))] if kind in "AF" else []
    if kind == "A":
        return b"A" + sized(b"".join(inner))
    if kind == "F":
        return b"F" + table({f"k{number}": field for number, field in enumerate(inner)})
    if kind in "Sx":
        return kind.encode() + sized(rng.randbytes(rng.choice([0, 1, 30, 3_000])))
    if kind == "t":
        return rng.choice([b"t\0", b"t\1"])
    return kind.encode() + rng.randbytes(len(SCALARS[kind][0]) - 1)
