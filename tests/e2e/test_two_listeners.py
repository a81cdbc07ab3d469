"""Two listeners with configurations of their own on one `vm_id`: what has the same name is one."""

import copy

import pytest

from harness import shipped
from harness.client import Client, RawConnection
from harness.envoy import free_ports
from harness.gate import running_gate
from harness.nimgate import chat, configuration, encode, limit, one_token
from harness.order import is_order
from harness.shipped import Options, Tree
from harness.waiting import wait_until

SECONDS_PER_TOKEN = 3


@pytest.fixture(scope="module", params=[1, 4], ids="{} workers".format)
def pair(request):
    (port,) = free_ports(1)
    other = configuration(
        one_token("shared", SECONDS_PER_TOKEN),
        limit("second", models=["mine/*"]),
        priority={"header": "x-urgency", "default": "low"},
    )

    def add_listener(tree: Tree) -> None:
        first = shipped.data_listener(tree)
        second = copy.deepcopy(first)
        second["name"] = "second"
        second["address"]["socket_address"]["port_value"] = port
        for plugin in shipped.wasm_plugins(second):
            shipped.set_plugin_configuration(plugin, other)
        tree["resources"].append(second)

    plugin = configuration(
        one_token("shared", SECONDS_PER_TOKEN), limit("first", models=["mine/*"])
    )
    options = Options(plugin=plugin, concurrency=request.param, listeners=[add_listener])
    with running_gate(options) as gate:
        gate.second_port = port
        gate.second = Client(port)
        yield gate
        gate.second.close()


def test_each_listener_has_its_own_limits(pair):
    model = pair.model("mine")
    assert pair.client.chat(model).status == 200
    assert pair.second.chat(model).status == 200
    wait_until(
        lambda: [pair.envoy.requests_total(name) for name in ("first", "second")] == [1, 1],
        "one request under each limit",
    )


def test_limit_of_the_same_name_is_one_bucket_and_one_queue(pair):
    def order_is_one() -> bool:
        models = [pair.model("shared") for _ in range(5)]
        # The first takes the only token.
        answers = {models[0]: pair.client.chat(models[0])}
        waiting = {}
        # By turns at both listeners; the second reads another header and takes the rest for low.
        for number, priority in enumerate(("normal", "urgent", "high", "urgent")):
            client = pair.second if number % 2 else pair.client
            header = "x-urgency" if number % 2 else "x-priority"
            model = models[number + 1]
            waiting[model] = client.start_chat(model, headers={header: priority})
            pair.wait_for_queue("shared", number + 1)
        answers |= {model: future.result() for model, future in waiting.items()}
        assert {answer.status for answer in answers.values()} == {200}
        arrived = [record for record in pair.fake.requests() if record.model in answers]
        expected = [models[number] for number in (0, 2, 4, 3, 1)]
        return is_order(arrived, expected, answers, SECONDS_PER_TOKEN)

    # Only a worker that stalled may be passed over, and not in round after round.
    rounds = 5 if pair.envoy.options.concurrency > 1 else 1
    assert any(order_is_one() for _ in range(rounds))


def test_priority_header_is_each_listeners_own(pair):
    pair.empty_bucket("shared")
    with RawConnection(pair.second_port) as connection:
        connection.request(encode(chat(pair.model("shared"))), [("x-priority", "urgent")])
        wait_until(
            lambda: pair.envoy.queue_length("shared", priority="low") == 1,
            "it waits as low, since the second listener reads another header",
        )
        assert connection.answer().status == 200
