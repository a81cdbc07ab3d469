"""Which requests are metered, whatever their bodies look like.

Rows T1 to T11 and T13 to T15 of the table of bad input. Two limits stand in the configuration: a
readable body that names the model of the second one is metered there, and what can't be read is
metered under the first one, on its own route. So how a request was sent tells how it was read.
"""

import gzip
import hashlib
import json
import zlib

import pytest

from harness.gate import Gate, running_gate
from harness.http2 import Http2
from harness.nimgate import chat, configuration, encode, limit
from harness.shipped import Options, keep_limit_header

READ = "nvidia"
UNREADABLE = "first"
PASSED = None


@pytest.fixture(scope="module")
def gate():
    plugin = configuration(limit("first"), limit("nvidia", ["nvidia/*", "nvidia_nim/*"]))
    with running_gate(Options(plugin=plugin, listeners=[keep_limit_header])) as gate:
        yield gate


def limit_taken(gate: Gate, body: bytes, **headers: str | None) -> str | None:
    """Sends a body and says under which limit it went to the upstream: `UNREADABLE` if it was
    metered on its own route, None if it passed."""
    gate.fake.reset()
    answer = gate.client.post(body, "/v1/echo", **headers)
    assert answer.status == 200, answer
    (record,) = gate.fake.requests()
    assert record.body_len == len(body)
    taken = record.header("x-nimgate-limit")
    if taken is None and answer.waited_ms is not None:
        return UNREADABLE
    gate.passed += taken is None
    return taken


def nested(levels: int, opening: str, closing: str) -> bytes:
    return ('{"model":"nvidia/a","x":' + opening * levels + closing * levels + "}").encode()


def utf(encoding: str, mark: bytes = b"") -> bytes:
    return mark + '{"model":"nvidia/a"}'.encode(encoding)


READABLE_BODIES = {
    "plain": b'{"model":"nvidia/a"}',
    "second pattern": b'{"model":"nvidia_nim/meta/llama"}',
    "model last of many keys": b'{"a":1,"b":[{}],"c":"}","model":"nvidia/a"}',
    "white space around": b' \r\n\t{"model" : "nvidia/a"} \n',
    "T1 equal duplicates": b'{"model":"nvidia/a","model":"nvidia/a"}',
    "T2 first matches": b'{"model":"nvidia/a","model":"gpt"}',
    "T2 last matches": b'{"model":"gpt","model":"nvidia/a"}',
    "T2 one of three": b'{"model":"gpt","model":"nvidia/a","model":"claude"}',
    "T2 by an escaped key": b'{"model":"gpt","mod\\u0065l":"nvidia/a"}',
    "T3 Model": b'{"Model":"nvidia/a"}',
    "T3 MODEL beside model": b'{"model":"gpt","MODEL":"nvidia/a"}',
    "T3 mOdEl before model": b'{"mOdEl":"nvidia/a","model":"gpt"}',
    "T3 escaped and in capitals": b'{"\\u004dODEL":"nvidia/a"}',
    "T4 escaped key": b'{"mod\\u0065l":"nvidia/a"}',
    "T4 all of the key escaped": b'{"\\u006d\\u006f\\u0064\\u0065\\u006c":"nvidia/a"}',
    "T4 escaped value": b'{"model":"\\u006evidia/a"}',
    "T4 escaped solidus": b'{"model":"nvidia\\/a"}',
    "T4 surrogate pair in the value": b'{"model":"nvidia/\\ud83d\\ude00"}',
    "T4 raw UTF-8 in the value": '{"model":"nvidia/é😀"}'.encode(),
    "T5 nested beside the real one": b'{"nvext":{"model":"gpt"},"model":"nvidia/a"}',
    "T7 byte order mark": b'\xef\xbb\xbf{"model":"nvidia/a"}',
    "T9 NaN": b'{"x":NaN,"model":"nvidia/a"}',
    "T9 Infinity": b'{"x":[Infinity,-Infinity],"model":"nvidia/a"}',
    "T9 bare control characters": b'{"x":"a\x01\n\tb","model":"nvidia/a"}',
    "T9 invalid UTF-8 elsewhere": b'{"x":"\xff\xfe\xc3(","model":"nvidia/a"}',
    "T9 lone surrogate elsewhere": b'{"x":"\\ud800","model":"nvidia/a"}',
    "T11 a number of 5000 digits": b'{"x":' + b"7" * 5000 + b',"model":"nvidia/a"}',
    "T11 a string of 10 MB": b'{"x":"' + b"z" * 10_000_000 + b'","model":"nvidia/a"}',
    "T11 a million keys": b"{"
    + b",".join(b'"k%d":0' % number for number in range(1_000_000))
    + b',"model":"nvidia/a"}',
}


@pytest.mark.parametrize("name", READABLE_BODIES)
def test_body_that_names_the_model_is_metered_under_its_limit(gate: Gate, name: str):
    assert limit_taken(gate, READABLE_BODIES[name]) == READ


# Broken after a model that was still legible: metered under the limit of that model, because
# an upstream that stops reading before the fault would serve it.
BROKEN_BEHIND_THE_MODEL = {
    "cut off": b'{"model":"nvidia/a"',
    "cut off in a later value": b'{"model":"nvidia/a","x":"',
    "missing comma": b'{"model":"nvidia/a" "x":1}',
    "deeply nested and never closed": b'{"model":"nvidia/a","x":' + b"[" * 1_000_000,
    "T10 trailing bytes": b'{"model":"nvidia/a"}x',
    "T10 trailing bracket": b'{"model":"nvidia/a"}}',
    "T10 trailing NUL": b'{"model":"nvidia/a"}\x00',
    "T10 second document": b'{"model":"nvidia/a"}{"model":"gpt"}',
}


@pytest.mark.parametrize("name", BROKEN_BEHIND_THE_MODEL)
def test_body_broken_behind_a_legible_model_is_metered_under_its_limit(gate: Gate, name: str):
    before = gate.envoy.metric("nimgate_unclassifiable_total")
    assert limit_taken(gate, BROKEN_BEHIND_THE_MODEL[name]) == READ
    assert gate.envoy.metric("nimgate_unclassifiable_total") == before + 1


# T6: JSON that names no model is nobody's but its sender's.
NO_MODEL = {
    "T6 array": b'[{"model":"nvidia/a"}]',
    "T6 string": b'"nvidia/a"',
    "T6 number": b"42",
    "T6 null": b"null",
    "T6 model is a number": b'{"model":5}',
    "T6 model is null": b'{"model":null}',
    "T6 model is true": b'{"model":true}',
    "T6 model is an array": b'{"model":["nvidia/a"]}',
    "T6 model is an object": b'{"model":{"name":"nvidia/a"}}',
    "T6 MODEL is a number": b'{"MODEL":5}',
}


@pytest.mark.parametrize("name", NO_MODEL)
def test_json_without_a_model_passes(gate: Gate, name: str):
    before = gate.envoy.metric("nimgate_unclassifiable_total")
    assert limit_taken(gate, NO_MODEL[name]) is PASSED
    assert gate.envoy.metric("nimgate_unclassifiable_total") == before


UNREADABLE_BODIES = {
    "cut off inside the model": b'{"model":"nvid',
    "no quotes": b"{model:nvidia}",
    "single quotes": b"{'model':'nvidia/a'}",
    "missing comma": b'{"a":1 "model":"nvidia/a"}',
    "not json at all": b"model=nvidia/a",
    "T6 half an array": b'[{"model":"nvidia/a"}',
    "T8 UTF-16 LE": utf("utf-16-le"),
    "T8 UTF-16 BE": utf("utf-16-be"),
    "T8 UTF-16 LE with a mark": utf("utf-16-le", b"\xff\xfe"),
    "T8 UTF-16 BE with a mark": utf("utf-16-be", b"\xfe\xff"),
    "T8 UTF-32 LE": utf("utf-32-le"),
    "T8 UTF-32 BE": utf("utf-32-be"),
    "T8 UTF-32 LE with a mark": utf("utf-32-le", b"\xff\xfe\x00\x00"),
    "T8 UTF-32 BE with a mark": utf("utf-32-be", b"\x00\x00\xfe\xff"),
    "T9 invalid UTF-8 in the model": b'{"model":"nvidia/\xff"}',
    "T9 lone surrogate in the model": b'{"model":"nvidia/\\ud800"}',
    "T10 trailing bytes": b'{"model":"gpt"}x',
    "T10 second document": b'{"model":"gpt"}{"model":"nvidia/a"}',
    "T10 second document on a new line": b'{"model":"gpt"}\n{"model":"nvidia/a"}',
    "T10 trailing NUL": b'{"model":"gpt"}\x00',
}


@pytest.mark.parametrize("name", UNREADABLE_BODIES)
def test_unreadable_body_is_metered_under_the_first_limit(gate: Gate, name: str):
    before = gate.envoy.metric("nimgate_unclassifiable_total")
    assert limit_taken(gate, UNREADABLE_BODIES[name]) == UNREADABLE
    assert gate.envoy.metric("nimgate_unclassifiable_total") == before + 1


@pytest.mark.parametrize("brackets", ["[]", '{"a":}'], ids=["arrays", "objects"])
@pytest.mark.parametrize("levels", [1_000, 100_000, 1_000_000])
def test_deep_nesting_is_metered_and_harms_nobody(gate: Gate, levels: int, brackets: str):
    body = nested(levels, brackets[:-1], brackets[-1]).replace(b":}", b":0}", 1)
    assert limit_taken(gate, body) in (READ, UNREADABLE)
    assert limit_taken(gate, READABLE_BODIES["plain"]) == READ


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"nvidia/a","model":null}',
        b'{"model":null,"model":"nvidia/a"}',
        b'{"model":"nvidia/a","Model":7}',
    ],
)
def test_duplicate_model_of_which_one_is_no_string_is_metered(gate: Gate, body: bytes):
    assert limit_taken(gate, body) in (READ, UNREADABLE)


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"gpt-5"}',
        b'{"model":"xnvidia/a"}',
        b'{"model":" nvidia/a"}',
        b'{"model":"nvidia"}',
        b"{}",
        b'{"models":"nvidia/a","mode":"nvidia/b"}',
        # T5: only the top level counts.
        b'{"messages":[{"role":"user","model":"nvidia/a"}],"model":"gpt"}',
        b'{"nvext":{"model":"nvidia/a"}}',
        b'{"a":{"b":{"model":"nvidia/a"}},"c":[{"model":"nvidia/a"}]}',
        # Text that looks like a key is none.
        b'{"prompt":"\\"model\\":\\"nvidia/a\\"","model":"gpt"}',
        b'{"x":"model","y":"nvidia/a"}',
    ],
)
def test_body_that_names_no_matching_model_passes(gate: Gate, body: bytes):
    assert limit_taken(gate, body) is PASSED


def test_duplicates_are_counted(gate: Gate):
    def counts() -> tuple[int, int]:
        return (
            gate.envoy.metric("nimgate_duplicate_model_total"),
            gate.envoy.metric("nimgate_ambiguous_model_total"),
        )

    equal, ambiguous = counts()
    limit_taken(gate, b'{"model":"nvidia/a","mod\\u0065l":"nvidi\\u0061/a"}')
    assert counts() == (equal + 1, ambiguous)
    limit_taken(gate, b'{"model":"nvidia/a","MODEL":"gpt"}')
    assert counts() == (equal + 1, ambiguous + 1)
    limit_taken(gate, b'{"model":"nvidia/a"}')
    assert counts() == (equal + 1, ambiguous + 1)


# T13: gzip and deflate are decoded to be read; of other codings nothing is known, and the upstream
# may well read them.


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("gzip", READ),
        ("GZIP", READ),
        ("identity, gzip", READ),
        ("deflate", READ),
        ("br", UNREADABLE),
        ("zstd, gzip", UNREADABLE),
        ("made-up", UNREADABLE),
        ("identity", READ),
        ("Identity", READ),
        ("utf-8", READ),
    ],
)
def test_known_content_encodings_are_decoded(gate: Gate, encoding: str, expected: str):
    body = b'{"model":"nvidia/a"}'
    packed = {"deflate": zlib.compress(body), "identity": body, "utf-8": body}
    sent = packed.get(encoding.lower(), gzip.compress(body))
    assert limit_taken(gate, sent, content_encoding=encoding) == expected


@pytest.mark.parametrize("size", [10, 300_000])
def test_compressed_body_of_another_model_passes_as_it_is(gate: Gate, size: int):
    body = gzip.compress(encode(chat("gpt", pad="words " * (size // 6))))
    assert limit_taken(gate, body, content_encoding="gzip") is PASSED
    assert gate.fake.requests()[0].body_sha256 == hashlib.sha256(body).hexdigest()


def test_body_that_becomes_far_too_large_is_unreadable(gate: Gate):
    bomb = gzip.compress(encode(chat("gpt", pad="x" * (17 << 20))))
    assert limit_taken(gate, bomb, content_encoding="gzip") == UNREADABLE


def test_compressed_body_under_a_readable_disguise_is_unreadable(gate: Gate):
    """The bytes name another model, but the header says that they are not what they seem."""
    assert limit_taken(gate, b'{"model":"gpt"}', content_encoding="gzip") == UNREADABLE


# T14: the content type is the client's claim; upstreams read JSON whatever it says.


@pytest.mark.parametrize(
    ("content_type", "body", "expected"),
    [
        ("text/plain", b'{"model":"nvidia/a"}', READ),
        ("text/plain; charset=utf-8", b'  {"model":"nvidia/a"}', READ),
        ("application/x-www-form-urlencoded", b'{"model":"nvidia/a"}', READ),
        ("application/vnd.api+json", b'{"model":"nvidia/a"}', READ),
        ("APPLICATION/JSON; charset=UTF-8", b'{"model":"nvidia/a"}', READ),
        ("nonsense", b'{"model":"nvidia/a"}', READ),
        ("", b'{"model":"nvidia/a"}', READ),
        (None, b'{"model":"nvidia/a"}', READ),
        (None, b'\xef\xbb\xbf{"model":"nvidia/a"}', READ),
        ("text/plain", b'{"model":"gpt"}', PASSED),
        ("text/plain", b"just words", PASSED),
        (None, b"just words", PASSED),
        ("text/plain", b'{"model":"nvidia/a"', READ),
        ("text/plain", b'{"model":"gpt"', UNREADABLE),
        (None, b'{"model":"gpt"}}', UNREADABLE),
        ("text/plain", utf("utf-16-le", b"\xff\xfe"), UNREADABLE),
        ("text/plain", utf("utf-16-be"), UNREADABLE),
        ("application/octet-stream", b'{"model":"nvidia/a"}', PASSED),
        ("multipart/form-data; boundary=x", b'{"model":"nvidia/a"}', PASSED),
    ],
)
def test_content_type_decides_only_for_forms_and_octets(
    gate: Gate, content_type: str | None, body: bytes, expected: str | None
):
    assert limit_taken(gate, body, content_type=content_type) == expected


# T15: how the body is cut into chunks makes no difference.


@pytest.mark.parametrize("name", ["plain", "T4 escaped key", "T7 byte order mark"])
def test_one_byte_per_chunk_reads_the_same(gate: Gate, name: str):
    gate.fake.reset()
    body = READABLE_BODIES[name]
    with gate.raw() as connection:
        connection.head([("Content-Type", "application/json"), ("Transfer-Encoding", "chunked")])
        for byte in body:
            connection.chunk(bytes([byte]))
        connection.send(b"0\r\n\r\n")
        assert connection.answer().status == 200
    (record,) = gate.fake.requests()
    assert record.header("x-nimgate-limit") == READ
    assert record.body == body


def test_one_byte_per_frame_costs_time_in_proportion_to_its_length(gate: Gate):
    """A scan that restarted with each frame would cost the square of the length."""

    def cpu_seconds(size: int) -> float:
        padding = "p" * size
        body = json.dumps({"padding": padding, "model": "nvidia/a"}).encode()
        gate.fake.reset()
        before = gate.envoy.cpu_seconds()
        with Http2(gate.envoy.ports.data) as connection:
            stream = connection.start(body_follows=True)
            connection.send_in_frames_of_one_byte(stream, body)
            assert connection.status(stream) == 200
        (record,) = gate.fake.requests()
        assert record.header("x-nimgate-limit") == READ
        return gate.envoy.cpu_seconds() - before

    cpu_seconds(16_384)
    short, long = cpu_seconds(65_536), cpu_seconds(524_288)
    assert long <= 24 * max(short, 0.05), f"8 times the bytes took {long:.2f} s after {short:.2f} s"


def test_http2_body_reads_the_same(gate: Gate):
    gate.fake.reset()
    with Http2(gate.envoy.ports.data) as connection:
        stream = connection.start(encode(chat("nvidia/h2")))
        assert connection.status(stream) == 200
    assert gate.fake.only("nvidia/h2").header("x-nimgate-limit") == READ
