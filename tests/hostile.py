"""Hostile files: for the tests, the long fuzz (`make fuzz`) and the soak (`benchmarks.soak`)."""

import os
import random
import struct
import zlib
from pathlib import Path

LONGER = int(os.environ.get("E4E_FUZZ", "1"))  # how many times as many examples as in the suite
ASTRONAUT = Path(__file__).resolve().parents[1] / "examples" / "astronaut.png"


def png_of(width: int, height: int) -> bytes:
    """A PNG that promises so many pixels and holds none."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


HOSTILE = {
    "empty.jpg": b"",
    "svg.png": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "page.jpg": b"<!doctype html><script>alert(1)</script>",
    "postscript.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "truncated.png": ASTRONAUT.read_bytes()[:5000],
    "bomb.png": png_of(60_000, 60_000),
    "thin.png": png_of(1, 10_000),
}


def damaged(data: bytes, chance: random.Random) -> bytes:
    """A file with some bytes changed, cut out, doubled or taken from elsewhere in it; never its first two."""
    data = bytearray(data)
    for _ in range(chance.randint(1, 8)):
        at, length = chance.randrange(2, max(3, len(data))), chance.randint(1, 64)
        kind = chance.randrange(5)
        if kind == 0:
            data[at : at + length] = chance.randbytes(length)
        elif kind == 1:
            del data[at : at + length]
        elif kind == 2:
            data[at:at] = data[at : at + length]
        elif kind == 3:
            data[at : at + 4] = struct.pack(">I", chance.choice([0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]))
        else:
            data[at:] = b""
    return bytes(data)
