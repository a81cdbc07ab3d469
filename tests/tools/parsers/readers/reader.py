"""Reads bodies as a Python server would, with the parser named on the command line.

Standard input holds batches: how many bodies, how many bytes they take, and the bodies, each after its length; all
numbers have 32 bits, little-endian. For each body one byte is answered: 1 where a metered model is read, 0 where not.
"""

import json
import struct
import sys


def main() -> None:
    parse = {"json": lambda: json.loads, "orjson": orjson, "ujson": ujson}[sys.argv[1]]()
    bodies, answers = sys.stdin.buffer, sys.stdout.buffer
    while head := bodies.read(8):
        count, size = struct.unpack("<II", head)
        batch, at = bodies.read(size), 0
        verdicts = bytearray()
        for _ in range(count):
            (length,) = struct.unpack_from("<I", batch, at)
            verdicts.append(is_metered(parse, batch[at + 4 : at + 4 + length]))
            at += 4 + length
        answers.write(verdicts)
        answers.flush()


def orjson():
    import orjson

    return orjson.loads


def ujson():
    import ujson

    return ujson.loads


def is_metered(parse, body: bytes) -> bool:
    try:
        document = parse(body)
    except (ValueError, RecursionError):
        return False
    model = document.get("model") if isinstance(document, dict) else None
    if not isinstance(model, str):
        return False
    # The case of bytes is ASCII's alone, as it is to the patterns of a limit.
    return model.encode(errors="surrogatepass").lower().startswith((b"nvidia/", b"nvidia_nim/"))


if __name__ == "__main__":
    main()
