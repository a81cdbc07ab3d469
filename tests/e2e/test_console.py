"""The console: what it says is true of the whole process, what it changes is changed everywhere."""

import json
import threading
import time

import pytest
import yaml

from harness import nimgate
from harness.client import Answer, Client, results
from harness.gate import Gate, running_gate
from harness.nimgate import configuration, limit, one_token, secret
from harness.programs import REPOSITORY
from harness.shipped import Options
from harness.waiting import wait_for_equal, wait_until

TOKEN = secret("nimgate-admin")
SHIPPED_VARIABLE = "NIMGATE_ADMIN_TOKEN"
# For so long the console tells again what the upstream answered.
PROBE_KEPT_S = 5
GET_PATHS = [
    "/",
    "/app.js",
    "/app.css",
    "/icon.svg",
    "/health",
    "/health/ready",
    "/status",
    "/events",
]


def limits() -> dict:
    return configuration(
        limit("counted", bucket_capacity=500),
        one_token("tight", low_priority_timeout_s=1, queue_max_size=2),
        one_token("overridden"),
        one_token("atomic"),
        one_token("restored", rate_rpm=7),
        one_token("raced"),
        one_token("shown"),
    )


@pytest.fixture(scope="module", params=[1, 4], ids="{} workers".format)
def gate(request):
    options = Options(
        plugin=limits(), concurrency=request.param, environment={SHIPPED_VARIABLE: TOKEN}
    )
    with running_gate(options) as gate:
        yield gate


@pytest.fixture(scope="module")
def locked_gate():
    """An Envoy without an admin token."""
    with running_gate(Options(plugin=configuration(limit("nvidia")))) as gate:
        yield gate


def status(gate: Gate) -> dict:
    answer = gate.console.send("GET", "/status")
    assert (answer.status, answer.header("content-type")) == (200, "application/json"), answer
    return answer.json()


def of_limit(gate: Gate, name: str) -> dict:
    (found,) = (one for one in status(gate)["limits"] if one["name"] == name)
    return found


def change(gate: Gate, body: object, **headers: str | None) -> Answer:
    named = {
        "content_type": "application/json",
        "authorization": f"Bearer {TOKEN}",
        **headers,
    }
    sent = {name.replace("_", "-"): value for name, value in named.items() if value is not None}
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return gate.console.send("POST", "/config", raw, sent)


def assert_refused(answer: Answer, code: int, param: str | None = None) -> str:
    assert answer.status == code, answer
    error = answer.error
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param, error
    return error["message"]


# What it says.


def test_counters_are_those_of_the_whole_process(gate: Gate):
    before = status(gate)
    answers = results(gate.client.start_chat(gate.model("counted")) for _ in range(60))
    passed = results(gate.client.start_chat("gpt-5") for _ in range(20))
    assert {answer.status for answer in answers + passed} == {200}
    assert gate.client.chat(gate.model("tight")).status == 200
    with gate.holding("tight", 2):
        full = results(gate.client.start_chat(gate.model("tight")) for _ in range(3))
    late = gate.client.chat(gate.model("tight"), priority="low")
    assert [answer.status for answer in [*full, late]] == [503, 503, 503, 429]

    # Requests are counted when their streams are gone, which may be after their answers.
    # Two held ones left as well.
    nvidia = 60 + 1 + 2 + 3 + 1
    wait_for_equal(
        lambda: grown(before["requests"], status(gate)["requests"]),
        {"total": nvidia + 20, "nvidia": nvidia, "passthrough": 20, "ratelimited": 1},
        "requests as counted",
    )
    # Ask often, so that every worker is likely to be asked: all of them say the same.
    said = [status(gate)["requests"] for _ in range(20)]
    assert all(one == said[0] for one in said)
    assert (
        status(gate)["errors"]["queue_full_rejects"] - before["errors"]["queue_full_rejects"] == 3
    )
    outcomes = of_limit(gate, "tight")["requests"]["outcomes"]
    assert outcomes["client_left"] >= 2
    assert outcomes["queue_full"] >= 3
    counted = of_limit(gate, "counted")
    assert counted["answers"]["2xx"] == counted["requests"]["outcomes"]["forwarded"]


def grown(before: dict, after: dict) -> dict:
    return {name: after[name] - before[name] for name in after}


def test_queue_is_that_of_the_whole_process(gate: Gate):
    gate.empty_bucket("shown")
    with gate.holding("shown", 4, priority="high"), gate.holding("shown", 2, priority="low"):
        for _ in range(10):
            shown = of_limit(gate, "shown")
            assert shown["queue"]["size"] == 6
            assert shown["queue"]["by_priority"] == {"urgent": 0, "high": 4, "normal": 0, "low": 2}
            assert shown["token_bucket"]["tokens"] == 0
            assert shown["waits"]["high"]["oldest_seconds"] >= 0
            assert shown["waits"]["urgent"]["oldest_seconds"] is None
            # One token a minute: after four of its level none is to be had within three.
            assert shown["waits"]["high"]["expected_seconds"] > 180
    gate.wait_for_queue("shown", 0)
    wait_for_equal(lambda: of_limit(gate, "shown")["queue"]["size"], 0, "the queue as shown")


def test_members_of_the_sidecar_are_there(gate: Gate):
    body = status(gate)
    assert set(body["requests"]) == {"total", "nvidia", "passthrough", "ratelimited"}
    assert {"queue_full_rejects", "upstream_errors"} <= set(body["errors"])
    assert {"state", "effective_rpm", "base_rpm", "upstream_429_rate"} <= set(body["retreat"])
    assert {"tokens", "capacity"} <= set(body["token_bucket"])
    assert body["uptime_seconds"] > 0
    assert {one["name"] for one in body["limits"]} >= {"counted", "tight", "overridden"}


def test_history_tells_of_a_retreat(locked_gate: Gate):
    gate = locked_gate
    headers = {"x-fake-status": "429"}
    for _ in range(2):
        gate.client.chat(gate.model("nvidia"), headers=headers)
    wait_until(lambda: of_limit(gate, "nvidia")["retreat"]["state"] == "RETREAT", "the retreat")
    body = of_limit(gate, "nvidia")
    assert body["retreat"]["effective_rpm"] < body["retreat"]["base_rpm"]
    assert body["retreat"]["upstream_429_rate"] > 0
    entry = [one for one in body["history"] if one["what"] == "retreat"][0]
    assert (entry["from"], entry["to"]) == ("NORMAL", "RETREAT")
    assert "429" in entry["reason"]
    assert status(gate)["retreat"]["state"] == "RETREAT"


def test_events_are_one_event_and_a_time_to_come_again(gate: Gate):
    answer = gate.console.send("GET", "/events")
    assert answer.header("content-type") == "text/event-stream"
    lines = answer.body.decode().split("\n")
    assert lines[0].startswith("retry: ")
    assert lines[1] == "event: status"
    assert lines[2].startswith("data: ")
    assert set(json.loads(lines[2][6:])) == set(status(gate))
    assert lines[3:] == ["", ""]


def test_health(gate: Gate):
    assert gate.console.send("GET", "/health").json()["status"] == "ok"


def test_ready_asks_the_upstream_and_remembers(gate: Gate):
    seen, began = len(probes(gate)), time.monotonic()
    answers = results(gate.console.start("GET", "/health/ready") for _ in range(20))
    # The first of all may read that the upstream is being asked; nobody reads that it failed.
    wait_until(lambda: gate.console.send("GET", "/health/ready").status == 200, "readiness")
    assert {answer.status for answer in answers} <= {200, 503}
    # At most one for each worker, and again whenever what they learned has grown old.
    asked = len(probes(gate)) - seen
    spans = 2 + (time.monotonic() - began) // PROBE_KEPT_S
    assert asked <= spans * gate.envoy.options.concurrency
    body = gate.console.send("GET", "/health/ready").json()
    assert body["upstream"]["ok"]
    assert "answered" in body["upstream"]["message"]


def probes(gate: Gate) -> list:
    return [one for one in gate.fake.requests() if one.header("user-agent") == "nimgate"]


def test_not_ready_without_an_upstream():
    """Nobody listens on the upstream's port, or the cluster has no host, or there is none."""

    def nobody_listens(tree: dict) -> None:
        for resource in tree["resources"]:
            if resource["name"] == "nvidia":
                endpoints = resource["load_assignment"]["endpoints"][0]["lb_endpoints"]
                endpoints[0]["endpoint"]["address"]["socket_address"]["port_value"] = 1

    def no_host(tree: dict) -> None:
        for resource in tree["resources"]:
            if resource["name"] == "nvidia":
                resource["load_assignment"]["endpoints"] = []

    elsewhere = {"console": {"upstream": {"cluster": "elsewhere"}}}
    for cluster, changes in [
        ("nvidia", {"clusters": [nobody_listens]}),
        ("nvidia", {"clusters": [no_host]}),
        ("elsewhere", {"console": elsewhere}),
    ]:
        with running_gate(Options(plugin=limits(), **changes)) as gate:
            for _ in range(10):
                answer = gate.console.send("GET", "/health/ready")
                assert answer.status == 503, answer
                body = answer.json()
                assert not body["ready"]
                assert not body["upstream"]["ok"]
                assert answer.header("retry-after")
            assert f"cluster `{cluster}`" in body["upstream"]["message"]
            assert gate.console.send("GET", "/health").status == 200


def test_a_silent_upstream_is_not_waited_for_for_ever():
    console = {"console": {"upstream": {"path": "/v1/models", "timeout_s": 0.3}}}
    options = Options(plugin=configuration(limit("nvidia")), console=console)
    with running_gate(options) as gate:
        gate.fake.configure(latency_ms=60_000)
        answer = gate.console.send("GET", "/health/ready")
        assert answer.status == 503, answer
        assert not answer.json()["upstream"]["ok"]


# Who gets an answer.


@pytest.mark.parametrize("path", GET_PATHS)
def test_head_is_get_without_a_body(gate: Gate, path: str):
    wait_until(lambda: gate.console.send("GET", "/health/ready").status == 200, "readiness")
    got, head = gate.console.send("GET", path), gate.console.send("HEAD", path)
    assert (head.status, head.body) == (got.status, b"")
    assert head.header("content-type") == got.header("content-type")


@pytest.mark.parametrize("path", [*GET_PATHS, "/config"])
def test_other_methods_are_told_which_are_known(gate: Gate, path: str):
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "POST" if path != "/config" else "GET"):
        answer = gate.console.send(method, path)
        assert_refused(answer, 405)
        assert answer.header("allow") == ("POST" if path == "/config" else "GET, HEAD")


def test_security_headers_are_on_every_answer(gate: Gate):
    answers = [gate.console.send("GET", path) for path in [*GET_PATHS, "/nothing"]]
    answers += [
        change(gate, {}),
        change(gate, {}, authorization=None),
        gate.console.send("PUT", "/"),
    ]
    for answer in answers:
        policy = answer.header("content-security-policy")
        assert policy.startswith("default-src 'none'")
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert answer.header("x-content-type-options") == "nosniff"
        assert answer.header("referrer-policy") == "no-referrer"
        assert answer.header("cache-control") == "no-store"
        assert answer.header("access-control-allow-origin") is None


@pytest.mark.parametrize(
    "path", ["/nothing", "/status/", "/health/ready/x", "/.git/config", "/%00"]
)
def test_other_paths_are_not_found(gate: Gate, path: str):
    assert gate.console.send("GET", path).status in (400, 404)


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80"]
)
def test_console_answers_under_no_name_that_a_page_could_own(gate: Gate, host: str):
    for path in ("/status", "/events", "/"):
        assert_refused(gate.console.send("GET", path, headers={"host": host}), 421)
    assert_refused(change(gate, {"limit": "overridden", "rate_rpm": 5}, host=host), 421)


def test_listeners_of_clients_have_no_console(gate: Gate):
    for path in ("/status", "/config", "/health/ready", "/events"):
        seen = len(gate.fake.requests())
        gate.client.send("GET", path)
        assert len(gate.fake.requests()) == seen + 1, "it was passed through"


# Changing limits.


def test_change_is_in_force_at_once_and_everywhere(gate: Gate):
    gate.empty_bucket("overridden")
    with gate.holding("overridden", 5) as held:
        answer = change(gate, {"limit": "overridden", "rate_rpm": nimgate.FAST_RPM})
        assert answer.status == 200, answer
        body = answer.json()
        assert body["changed"] is True
        assert body["rules"]["source"] == "console"
        assert body["rules"]["in_force"]["rate_rpm"] == nimgate.FAST_RPM
        assert body["rules"]["configured"]["rate_rpm"] == 1
        assert "restart" in body["note"]
        assert [connection.answer().status for connection in held] == [200] * 5
    for _ in range(10):
        assert of_limit(gate, "overridden")["rules"] == body["rules"]
    wait_for_equal(
        lambda: gate.envoy.metric("nimgate_configuration_epoch", limit="overridden"),
        body["rules"]["epoch"],
        "the metric",
    )
    gate.envoy.wait_for_log('"nimgate":"rules_changed"')
    assert TOKEN not in gate.envoy.log()
    assert of_limit(gate, "overridden")["history"][-1]["reason"] == "changed through the console"


def another(schema: dict, now: object) -> object:
    """A value that the description of a change allows, and that is not the one there is now."""
    if "properties" in schema:
        return {name: another(one, now[name]) for name, one in schema["properties"].items()}
    if "enum" in schema:
        return next(value for value in schema["enum"] if value not in (None, now))
    if "boolean" in schema["type"]:
        return not now
    return 3 if now != 3 else 4


def test_every_field_can_be_changed_and_given_back(gate: Gate):
    description = yaml.safe_load((REPOSITORY / "envoy/console-openapi.yaml").read_text())
    changeable = dict(description["components"]["schemas"]["Change"]["properties"])
    del changeable["limit"], changeable["epoch"]
    configured = of_limit(gate, "restored")["rules"]["configured"]
    fields = another({"properties": changeable}, configured)
    # Twenty seconds hold three whole requests at this rate.
    fields |= {"rate_rpm": 9, "window_s": 20}
    assert change(gate, {"limit": "restored", **fields}).status == 200
    rules = of_limit(gate, "restored")["rules"]
    assert rules["in_force"] == fields
    assert rules["configured"] == configured
    answer = change(gate, {"limit": "restored", **dict.fromkeys(fields)})
    assert answer.json()["rules"]["source"] == "configuration"
    assert of_limit(gate, "restored")["rules"]["in_force"] == configured


REFUSED = {
    "rate zero": ({"rate_rpm": 0}, "rate_rpm"),
    "rate negative": ({"rate_rpm": -1}, "rate_rpm"),
    "rate a fraction": ({"rate_rpm": 1.5}, "rate_rpm"),
    "rate a string": ({"rate_rpm": "40"}, "rate_rpm"),
    "rate true": ({"rate_rpm": True}, "rate_rpm"),
    "rate enormous": ({"rate_rpm": 10**400}, "rate_rpm"),
    "window too short": ({"rate_rpm": 1, "window_s": 59}, "window_s"),
    "capacity zero": ({"bucket_capacity": 0}, "bucket_capacity"),
    "good and bad": ({"queue_max_size": 5, "rate_rpm": 0}, "rate_rpm"),
    "floor above the rate": ({"retreat": {"floor_rpm": 1000}}, "retreat.floor_rpm"),
    "mode unknown": ({"mode": "off"}, "mode"),
    "policy unknown": ({"queue_full_policy": "drop"}, "queue_full_policy"),
    "epoch zero": ({"epoch": 0, "rate_rpm": 3}, "epoch"),
    "retreat no object": ({"retreat": []}, "retreat"),
    "field unknown": ({"rate_rps": 3}, "rate_rps"),
    "field that can't be changed": ({"models": ["*"]}, "models"),
    "nothing": ({}, None),
}


@pytest.mark.parametrize("name", REFUSED)
def test_impossible_change_is_refused_as_a_whole_with_its_reason(gate: Gate, name: str):
    fields, param = REFUSED[name]
    before = of_limit(gate, "atomic")["rules"]
    message = assert_refused(change(gate, {"limit": "atomic", **fields}), 400, param)
    assert param is None or param in message
    assert of_limit(gate, "atomic")["rules"] == before


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"rate_rpm=3",
        b"[]",
        b"{",
        b'{"limit":"atomic","rate_rpm":3}{}',
        b"\xff\xfe",
        b"null",
        b"[" * 10_000,
    ],
    ids=repr,
)
def test_what_is_no_change_is_refused(gate: Gate, body: bytes):
    before = of_limit(gate, "atomic")["rules"]
    assert change(gate, body).status == 400
    assert of_limit(gate, "atomic")["rules"] == before


def test_unknown_limit_is_refused(gate: Gate):
    assert_refused(change(gate, {"limit": "nobody", "rate_rpm": 3}), 404, "limit")
    assert_refused(change(gate, {"rate_rpm": 3}), 400, "limit")


def test_change_of_what_another_has_changed_is_refused(gate: Gate):
    epoch = of_limit(gate, "raced")["rules"]["epoch"]
    answers = results(
        gate.console.start(
            "POST",
            "/config",
            json.dumps({"limit": "raced", "epoch": epoch, "rate_rpm": 10 + number}).encode(),
            {"content-type": "application/json", "authorization": f"Bearer {TOKEN}"},
        )
        for number in range(20)
    )
    assert sorted(answer.status for answer in answers) == [200] + [409] * 19
    (taken,) = (answer for answer in answers if answer.status == 200)
    assert of_limit(gate, "raced")["rules"] == taken.json()["rules"]


def test_changes_under_load_lose_nothing(gate: Gate):
    stop = threading.Event()
    answers: list[int] = []

    def send() -> None:
        while not stop.is_set():
            answers.append(gate.client.chat(gate.model("counted")).status)

    threads = [threading.Thread(target=send) for _ in range(6)]
    for thread in threads:
        thread.start()
    try:
        for number in range(30):
            fields = {"rate_rpm": 60_000 + number, "bucket_capacity": 100 + number}
            assert change(gate, {"limit": "counted", **fields}).status == 200
            rules = of_limit(gate, "counted")["rules"]["in_force"]
            assert {name: rules[name] for name in fields} == fields
            seen = len(answers)
            wait_until(lambda: len(answers) >= seen + 6, "requests go on")  # noqa: B023
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert set(answers) == {200}


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer x",
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN}0",
        f"Basic {TOKEN}",
        TOKEN,
    ],
)
def test_change_needs_the_token(gate: Gate, authorization: str | None):
    before = of_limit(gate, "atomic")["rules"]
    answer = change(gate, {"limit": "atomic", "rate_rpm": 5}, authorization=authorization)
    assert_refused(answer, 401)
    assert answer.header("www-authenticate").startswith("Bearer")
    assert of_limit(gate, "atomic")["rules"] == before


def test_without_a_token_nothing_can_be_changed(locked_gate: Gate):
    gate = locked_gate
    for method in ("POST", "GET", "PUT"):
        answer = gate.console.send(
            method,
            "/config",
            b'{"rate_rpm": 5}',
            {"content-type": "application/json", "authorization": "Bearer x"},
        )
        assert_refused(answer, 404)
    assert status(gate)["can_change"] is False


@pytest.mark.parametrize(
    "kind",
    [
        None,
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
        "application/json5",
    ],
)
def test_change_is_json_and_says_so(gate: Gate, kind: str | None):
    answer = change(gate, {"limit": "atomic", "rate_rpm": 5}, content_type=kind)
    assert_refused(answer, 415)


def test_page_from_elsewhere_changes_nothing(gate: Gate):
    port = gate.envoy.ports.console
    for origin in ("http://evil.example", "null", f"http://localhost:{port}"):
        answer = change(gate, {"limit": "atomic", "rate_rpm": 5}, origin=origin)
        assert_refused(answer, 403)
    own = change(
        gate, {"limit": "atomic", "queue_max_size": 999}, origin=f"http://127.0.0.1:{port}"
    )
    assert own.status == 200


def test_large_bodies_are_refused(gate: Gate):
    for size in (17_000, 100_000, 5_000_000):
        padded = json.dumps({"limit": "atomic", "rate_rpm": 5}).encode().ljust(size)
        assert_refused(change(gate, padded), 413)

        def pieces(padded: bytes = padded):
            for start in range(0, len(padded), 4096):
                yield padded[start : start + 4096]

        assert (
            gate.console.send(
                "POST",
                "/config",
                pieces(),
                {"content-type": "application/json", "authorization": f"Bearer {TOKEN}"},
            ).status
            == 413
        )


def test_over_http2(gate: Gate):
    with_http2 = Client(gate.envoy.ports.console, http2=True, http1=False)
    try:
        assert with_http2.send("GET", "/status").status == 200
        answer = with_http2.send(
            "POST",
            "/config",
            b'{"limit": "atomic", "queue_max_size": 77}',
            {"content-type": "application/json", "authorization": f"Bearer {TOKEN}"},
        )
        assert answer.status == 200, answer
    finally:
        with_http2.close()


# What was changed, beside what the file says.


def test_a_new_configuration_takes_the_place_of_a_change_to_the_same_limit():
    options = Options(
        plugin=configuration(limit("one", rate_rpm=50), limit("two", rate_rpm=60)),
        environment={SHIPPED_VARIABLE: TOKEN},
        # A configuration that drains is still in use.
        arguments=["--drain-time-s", "1"],
    )
    with running_gate(options) as gate:
        for name in ("one", "two"):
            assert change(gate, {"limit": name, "rate_rpm": 70}).status == 200
        assert gate.envoy.reload(
            configuration(limit("one", rate_rpm=51), limit("two", rate_rpm=60))
        )
        wait_for_equal(lambda: in_force(gate, "one"), ("configuration", 51), "the file's word")
        assert in_force(gate, "two") == ("console", 70)
        # Requests under the configuration as it stands don't undo a change to it.
        for _ in range(10):
            gate.client.chat(gate.model("two"))
        assert in_force(gate, "two") == ("console", 70)

        assert gate.envoy.reload(configuration(limit("two", rate_rpm=60)))
        wait_for_equal(
            lambda: {one["name"]: one["configured"] for one in status(gate)["limits"]},
            {"one": False, "two": True},
            "limits that are still configured",
        )


def in_force(gate: Gate, name: str) -> tuple[str, int]:
    rules = of_limit(gate, name)["rules"]
    return rules["source"], rules["in_force"]["rate_rpm"]


def test_the_token_may_stand_in_the_configuration_and_is_never_shown():
    console = {"console": {"admin_token": TOKEN, "hosts": ["*.ops.example"]}}
    options = Options(plugin=configuration(limit("nvidia")), console=console)
    with running_gate(options) as gate:
        answers = [gate.console.send("GET", path) for path in GET_PATHS]
        answers.append(change(gate, {"rate_rpm": 33}))
        assert answers[-1].status == 200
        for answer in answers:
            assert TOKEN.encode() not in answer.body
            assert all(TOKEN not in value for _, value in answer.headers)
        assert gate.console.send("GET", "/status", headers={"host": "a.ops.example"}).status == 200
        assert TOKEN not in gate.envoy.log()
