"""`max_in_flight`: requests at once over all workers."""

import pytest

from harness.client import results
from harness.gate import Gate, running_gate
from harness.nimgate import chat, configuration, encode, limit
from harness.shipped import Options

CAP = 3
LATENCY_MS = 300


@pytest.fixture(scope="module", params=[1, 4], ids="{} workers".format)
def gate(request):
    plugin = configuration(
        limit("capped", max_in_flight=CAP),
        limit("ordered", max_in_flight=1),
        limit("endings", max_in_flight=CAP),
        limit("raised", max_in_flight=1),
    )
    with running_gate(Options(plugin=plugin, concurrency=request.param)) as gate:
        yield gate


def slow(milliseconds: int = LATENCY_MS) -> dict[str, str]:
    return {"x-fake-latency-ms": str(milliseconds)}


def test_no_more_than_the_cap_are_with_the_upstream_at_once(gate: Gate):
    model = gate.model("capped")
    futures = [gate.client.start_chat(model, headers=slow()) for _ in range(4 * CAP)]
    assert [answer.status for answer in results(futures)] == [200] * len(futures)
    arrivals = sorted(received.at_us for received in gate.fake.requests(model))
    # An answer takes this long at least, so a slot is reused no sooner than this.
    for earlier, later in zip(arrivals, arrivals[CAP:], strict=False):
        assert later - earlier >= LATENCY_MS * 1000, arrivals


def test_slots_go_to_the_most_urgent_of_all_workers(gate: Gate):
    first, waiting = gate.model("ordered"), gate.model("ordered")
    with gate.raw() as holder:
        holder.request(encode(chat(first)), [("x-fake-behaviour", "hang")])
        gate.fake.wait_for_requests(1, first)
        futures = []
        for level in ("low", "normal", "high", "urgent") * 2:
            futures.append(gate.client.start_chat(waiting, priority=level, headers=slow(1)))
        gate.wait_for_queue("ordered", len(futures))
    assert [answer.status for answer in results(futures)] == [200] * len(futures)
    levels = [received.header("x-priority") for received in gate.fake.requests(waiting)]
    assert levels == sorted(levels, key=["urgent", "high", "normal", "low"].index)


@pytest.mark.parametrize("ending", ["client", "reset", "close-before-headers", "reset-mid-stream"])
def test_a_slot_comes_back_however_its_stream_ends(gate: Gate, ending: str):
    """If one were lost each time, none would be left after a few."""
    for _ in range(2 * CAP):
        model = gate.model("endings")
        if ending == "client":
            with gate.raw() as connection:
                connection.request(encode(chat(model)), [("x-fake-behaviour", "hang")])
                gate.fake.wait_for_requests(1, model)
        else:
            gate.client.start_chat(
                model, headers={"x-fake-behaviour": ending}, stream=True
            ).exception()
    model = gate.model("endings")
    futures = [gate.client.start_chat(model, headers=slow(1)) for _ in range(CAP)]
    assert [answer.status for answer in results(futures)] == [200] * CAP


def test_a_raised_cap_lets_those_go_who_wait(gate: Gate):
    model = gate.model("raised")
    with gate.raw() as first, gate.raw() as second:
        for connection in (first, second):
            connection.request(encode(chat(model)), [("x-fake-behaviour", "hang")])
        gate.wait_for_queue("raised", 1)
        plugin = gate.envoy.options.plugin
        raised = [
            {**one, "max_in_flight": 2} if one["name"] == "raised" else one
            for one in plugin["limits"]
        ]
        assert gate.envoy.reload(configuration(*raised))
        gate.fake.wait_for_requests(2, model)
