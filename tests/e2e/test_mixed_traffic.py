"""Ten thousand requests of all kinds through one Envoy before three upstreams, half hostile.

What passes arrives byte for byte at its own upstream, with its own credentials; NVIDIA's sees
nothing that is not metered; nothing is left hanging, and memory does not grow with the traffic.
"""

import contextlib
import gzip
import hashlib
import http.client
import itertools
import json
import random
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.client import CHAT, RawConnection
from harness.fake import Fake
from harness.gate import Gate, running_gate
from harness.http2 import Http2
from harness.nimgate import chat, configuration, encode, limit
from harness.shipped import Options, Tree, keep_limit_header, plain_cluster, route_by_header
from harness.waiting import wait_for_equal, wait_until

COUNT = 10_000
CLIENTS = 8
HOSTED = "hosted.test"
THEIRS = "Bearer theirs"
# Resident memory may grow by what a few hundred requests at once need, not by what all need.
GROWTH_MAX_BYTES = 80_000_000

NVIDIA, OTHER, AT_HOST, EITHER = "nvidia", "other", "hosted", "nvidia or other"


@dataclass(frozen=True)
class Kind:
    """Requests of one kind, and which upstream gets them; None if Envoy or nimgate refuses them."""

    body: bytes
    upstream: str | None
    headers: tuple[tuple[str, str], ...] = (("content-type", "application/json"),)
    method: str = "POST"
    path: str = CHAT
    host: str = "localhost"


def typed(content_type: str, *more: tuple[str, str]) -> tuple[tuple[str, str], ...]:
    return (("content-type", content_type), *more)


def coded(coding: str) -> tuple[tuple[str, str], ...]:
    return typed("application/json", ("content-encoding", coding))


OURS, OTHERS = encode(chat("nvidia/a")), encode(chat("gpt-4o"))
LARGE = encode(chat("gpt-4o", pad="x" * 100_000))

FRIENDLY = [
    Kind(OURS, NVIDIA),
    Kind(
        encode(chat("nvidia/b", pad="ü" * 3000)), NVIDIA, typed("application/json; charset=utf-8")
    ),
    Kind(gzip.compress(OURS), NVIDIA, coded("gzip")),
    Kind(zlib.compress(OURS), NVIDIA, coded("deflate")),
    Kind(OURS, NVIDIA, typed("text/plain")),
    Kind(OURS, NVIDIA, ()),
    Kind(OTHERS, OTHER),
    Kind(LARGE, OTHER),
    Kind(gzip.compress(OTHERS), OTHER, coded("gzip")),
    Kind(OTHERS, OTHER, coded("UTF-8")),
    Kind(b"[1,2,3]", OTHER),
    Kind(b"7", OTHER),
    Kind(b"", OTHER),
    Kind(b"", OTHER, (), "GET", "/somewhere%2Felse?model=nvidia/a"),
    Kind(b"", OTHER, (), "DELETE", "/v1/files/nvidia"),
    Kind(b'{"input":"x"}', OTHER),
    Kind(bytes(range(256)) * 20, OTHER, typed("application/octet-stream")),
    Kind(b"{\x05model", OTHER, typed("application/protobuf")),
    Kind(b"\0\0\0\0\x03abc", OTHER, typed("application/grpc", ("te", "trailers"))),
    Kind(
        gzip.compress(b"\n\x05hello"),
        OTHER,
        typed("application/x-protobuf", ("content-encoding", "gzip")),
    ),
    Kind(b'{"model":"nvidia/a"}\n{"model":"nvidia/a"}\n', OTHER, typed("application/x-ndjson")),
    Kind(b"--b\r\n\r\n" + OURS + b"\r\n--b--", OTHER, typed("multipart/form-data; boundary=b")),
    Kind(b"whatever", AT_HOST, typed("text/csv"), host=HOSTED),
    Kind(OTHERS, AT_HOST, host=HOSTED),
    Kind(b"", AT_HOST, (), "GET", "/models", HOSTED),
]

HOSTILE = [
    # They claim to be JSON and can't be read: metered, with their own route and credentials.
    Kind(OURS[:-3], NVIDIA),
    Kind(OTHERS[:-3], OTHER),
    Kind(OURS * 2, NVIDIA),
    Kind(b"{" * 3000, OTHER),
    Kind(gzip.compress(OURS)[:-9], EITHER, coded("gzip")),
    Kind(b"\x28\xb5\x2f\xfd", OTHER, coded("zstd")),
    Kind(OURS, OTHER, coded("made-up")),
    Kind(json.dumps(chat("nvidia/a")).encode("utf-16"), OTHER),
    # Any of their models may be the one that counts.
    Kind(b'{"model":"gpt-4o","model":"nvidia/a"}', NVIDIA),
    Kind(b'{"MODEL":"nvidia/a","model":"gpt-4o"}', NVIDIA),
    Kind(b'{"mod\\u0065l":"nvidia/a"}', NVIDIA),
    Kind(b'{"a":{"model":"nvidia/a"},"model":"gpt-4o"}', OTHER),
    # They say that they are metered already, or whose they are.
    Kind(OTHERS, OTHER, typed("application/json", ("x-nimgate-limit", "nvidia"))),
    Kind(OURS, NVIDIA, typed("application/json", ("x-nimgate-limit", "none"))),
    Kind(b"x", OTHER, typed("image/png", ("x-nimgate-limit", "nvidia"), ("x-nimgate-key", "1"))),
    Kind(OURS, NVIDIA, typed("application/json", ("x-priority", "urgent, low"))),
]


def others_go_to(port: int) -> Callable[[Tree], None]:
    def patch(tree: Tree) -> None:
        (cluster,) = [one for one in tree["resources"] if one["name"] == "default_upstream"]
        (endpoint,) = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
        endpoint["endpoint"]["address"]["socket_address"]["port_value"] = port

    return patch


@pytest.fixture(scope="module", params=[True, False], ids=["flag", "no flag"])
def gate(request: pytest.FixtureRequest) -> Iterator[Gate]:
    with Fake() as other, Fake() as hosted:
        options = Options(
            plugin=configuration(
                limit(
                    "by-host", models=[], hosts=[HOSTED], rate_rpm=600_000, bucket_capacity=60_000
                ),
                limit("nvidia", rate_rpm=600_000, bucket_capacity=60_000),
            ),
            stop_iteration_flag=request.param,
            listeners=[keep_limit_header, route_by_header(":authority", HOSTED, "hosted")],
            clusters=[others_go_to(other.port), plain_cluster("hosted", hosted.port)],
        )
        with running_gate(options) as gate:
            gate.upstreams = {NVIDIA: gate.fake, OTHER: other, AT_HOST: hosted}
            gate.has_flag = request.param
            yield gate


class Sender:
    """One client: a connection of HTTP/1.1 and one of HTTP/2, both used again and again."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.http1 = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self.http2 = Http2(port)

    def close(self) -> None:
        self.http1.close()
        self.http2.close()

    def send(self, kind: Kind, number: int, way: int) -> int | None:
        headers = [("authorization", THEIRS), ("x-number", str(number)), *kind.headers]
        if way % 3 == 0 and self.http2.is_closed:
            self.http2 = Http2(self.port)
        if way % 3 == 0:
            names = dict(headers)
            content_type = names.pop("content-type", None)
            stream = self.http2.start(
                kind.body,
                list(names.items()),
                path=kind.path,
                content_type=content_type,
                host=kind.host,
                method=kind.method,
            )
            return self.http2.status(stream)
        pieces = [kind.body[at : at + 700] for at in range(0, len(kind.body), 700)]
        is_chunked = way % 3 == 1 and bool(kind.body)
        self.http1.request(
            kind.method,
            kind.path,
            iter(pieces) if is_chunked else kind.body,
            {"Host": kind.host, **dict(headers)},
            encode_chunked=is_chunked,
        )
        answer = self.http1.getresponse()
        answer.read()
        return answer.status

    def break_off(self, kind: Kind) -> None:
        """Sends half of a request, and is gone."""
        with RawConnection(self.port) as client:
            client.head(
                [("Content-Length", str(len(kind.body) + 9)), *kind.headers], host=kind.host
            )
            with contextlib.suppress(OSError):
                client.send(kind.body[: len(kind.body) // 2])
                client.abort()


def send_all(gate: Gate, numbers: range, seed: int) -> dict[int, tuple[Kind, int | None]]:
    """Sends requests of all kinds; what was sent under each number, and the status it got."""
    counter = iter(numbers)

    def work(client: int) -> dict[int, tuple[Kind, int | None]]:
        random_ = random.Random(seed * CLIENTS + client)
        sender = Sender(gate.envoy.ports.data)
        sent = {}
        for number in itertools.islice(counter, len(numbers) // CLIENTS):
            kind = random_.choice(random_.choice([FRIENDLY, HOSTILE]))
            if random_.random() < 0.05:
                sender.break_off(kind)
            else:
                sent[number] = (kind, sender.send(kind, number, random_.randrange(3)))
        sender.close()
        return sent

    with ThreadPoolExecutor(CLIENTS) as pool:
        parts = list(pool.map(work, range(CLIENTS)))
    return {number: one for part in parts for number, one in part.items()}


def resident_bytes(gate: Gate) -> int:
    pages = Path(f"/proc/{gate.envoy.pid}/statm").read_text().split()[1]
    return int(pages) * 4096


def metered(gate: Gate, name: str) -> int:
    return gate.envoy.requests_total(name, outcome="forwarded")


@pytest.mark.timeout(900)
def test_each_request_gets_where_it_belongs_and_nowhere_else(gate: Gate):
    warm = send_all(gate, range(COUNT // 10), seed=1)
    assert warm
    before = resident_bytes(gate)
    sent = send_all(gate, range(COUNT // 10, COUNT), seed=2)
    assert {status for _, status in sent.values()} == {200}
    everything = {**warm, **sent}

    arrived: dict[int, str] = {}
    marked = 0
    for name, upstream in gate.upstreams.items():
        for request in upstream.requests():
            number = request.header("x-number")
            is_marked = request.header("x-nimgate-limit")
            marked += is_marked == "nvidia"
            if name == NVIDIA:
                assert is_marked == "nvidia", "nothing comes to NVIDIA's unmetered"
            if number is None:
                continue  # It was broken off by its client.
            kind, _ = everything[int(number)]
            assert int(number) not in arrived
            arrived[int(number)] = name
            assert request.body_sha256 == hashlib.sha256(kind.body).hexdigest(), kind
            assert request.path == kind.path
            assert request.header("authorization") == THEIRS, kind
            expected = kind.upstream
            if not gate.has_flag and expected in (NVIDIA, EITHER):
                # No body is shown, so it is metered, and keeps its own route.
                expected = OTHER
            assert name == expected or (expected == EITHER and name in (NVIDIA, OTHER)), kind
    assert arrived.keys() == everything.keys()

    hosted = len(gate.upstreams[AT_HOST].requests())
    # Of those whose clients broke off some have gone on and not arrived.
    wait_until(lambda: metered(gate, "by-host") >= hosted, "all for the host are metered")
    wait_until(lambda: metered(gate, "nvidia") >= marked, "all for NVIDIA are metered")
    wait_for_equal(lambda: busy(gate), {}, "what is left hanging")
    grown = resident_bytes(gate) - before
    assert grown < GROWTH_MAX_BYTES, f"{grown} bytes more than after the first tenth"


def busy(gate: Gate) -> dict[str, int]:
    """What is still going on, by the stat that says so."""
    stats = gate.envoy.stats("http.data.downstream_(rq|cx)_active|nimgate_(queue_length|in_flight)")
    return {name: value for name, value in stats.items() if value}
