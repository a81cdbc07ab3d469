"""OpenAI's own Python SDK, as clients of NVIDIA's API use it."""

import openai
import pytest

from harness.gate import Gate, running_gate
from harness.nimgate import configuration, limit, one_token
from harness.shipped import Options, body_limit

MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def gate():
    plugin = configuration(
        limit("nvidia"),
        one_token("tight", low_priority_timeout_s=1, queue_max_size=1),
        on_unclassifiable="reject",
    )
    with running_gate(Options(plugin=plugin, listeners=[body_limit(100_000)])) as gate:
        yield gate


@pytest.fixture(scope="module")
def sdk(gate: Gate):
    with openai.OpenAI(
        base_url=f"http://127.0.0.1:{gate.envoy.ports.data}/v1", api_key="sk-theirs", max_retries=0
    ) as client:
        yield client


def test_chat(sdk: openai.OpenAI, gate: Gate):
    model = gate.model("nvidia")
    completion = sdk.chat.completions.create(model=model, messages=MESSAGES)
    assert completion.model == model
    assert completion.choices[0].message.content
    assert gate.fake.only(model).header("authorization") == "Bearer sk-theirs"


def test_chat_of_another_model(sdk: openai.OpenAI, gate: Gate):
    completion = sdk.chat.completions.create(model="gpt-5", messages=MESSAGES)
    assert completion.model == "gpt-5"
    assert gate.fake.only("gpt-5").header("authorization") == "Bearer sk-theirs"


def test_stream(sdk: openai.OpenAI, gate: Gate):
    model = gate.model("nvidia")
    chunks = list(sdk.chat.completions.create(model=model, messages=MESSAGES, stream=True))
    assert len(chunks) > 2
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def test_embeddings(sdk: openai.OpenAI, gate: Gate):
    answer = sdk.embeddings.create(model=gate.model("nvidia"), input=["one", "two"])
    assert len(answer.data) == 2
    assert answer.data[0].embedding


def test_models(sdk: openai.OpenAI):
    assert list(sdk.models.list())


def test_no_token_in_time_is_a_rate_limit_error(sdk: openai.OpenAI, gate: Gate):
    gate.empty_bucket("tight")
    with pytest.raises(openai.RateLimitError) as caught:
        sdk.chat.completions.create(
            model=gate.model("tight"), messages=MESSAGES, extra_headers={"X-Priority": "low"}
        )
    error = caught.value
    assert error.status_code == 429
    assert (error.type, error.code, error.param) == ("RateLimitedError", "rate_limited", None)
    assert error.body["message"]
    assert int(error.response.headers["retry-after"]) >= 1


def test_full_queue_is_an_internal_server_error(sdk: openai.OpenAI, gate: Gate):
    gate.empty_bucket("tight")
    with gate.holding("tight", 1), pytest.raises(openai.InternalServerError) as caught:
        sdk.chat.completions.create(model=gate.model("tight"), messages=MESSAGES)
    error = caught.value
    assert error.status_code == 503
    assert (error.type, error.code, error.param) == ("QueueFullError", "queue_full", None)
    assert error.body["message"]


def test_too_large_a_body_is_an_api_status_error(sdk: openai.OpenAI, gate: Gate):
    with pytest.raises(openai.APIStatusError) as caught:
        sdk.embeddings.create(model=gate.model("nvidia"), input=["x" * 1_000_000])
    assert caught.value.status_code == 413
    assert caught.value.code == "payload_too_large"


def test_sdk_waits_for_its_turn(sdk: openai.OpenAI, gate: Gate):
    """With its retries on, the SDK never notices that it had to wait."""
    assert gate.envoy.reload(
        configuration(limit("nvidia"), one_token("tight", 1.0), on_unclassifiable="reject")
    )
    for _ in range(3):
        completion = sdk.chat.completions.create(model=gate.model("tight"), messages=MESSAGES)
        assert completion.choices[0].message.content


def test_upstreams_own_429_is_a_rate_limit_error(sdk: openai.OpenAI, gate: Gate):
    with pytest.raises(openai.RateLimitError) as caught:
        sdk.chat.completions.create(
            model=gate.model("nvidia"), messages=MESSAGES, extra_headers={"x-fake-status": "429"}
        )
    assert caught.value.response.json() == {"status": 429, "title": "Too Many Requests"}
