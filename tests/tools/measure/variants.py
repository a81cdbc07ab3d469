"""The Envoys that are compared: all on the shipped configuration, apart only in the filter before the router.

The access log is off in all of them, since it would cost all the same and make the ratios look better than they are.
The upstream is one more Envoy that reads the whole body and answers by itself.
"""

import json
import os
from typing import Any

from harness.envoy import Envoy
from harness.nimgate import configuration, limit
from harness.shipped import (
    STRING_TYPE,
    WASM_TYPE,
    Options,
    Patch,
    connection_manager,
    data_listener,
    virtual_hosts,
    walk,
)

Tree = dict[str, Any]

# How much of a body may be held, everywhere.
MAX_BODY = 16 << 20
TYPES = "type.googleapis.com/envoy.extensions.filters.http"
# What the upstream says to everyone.
ANSWER = {
    "id": "chatcmpl-bench",
    "object": "chat.completion",
    "created": 1,
    "model": "bench",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Yes."}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}
NAMES = ("plain", "buffer", "noop", "reader", "nimgate", "json_to_metadata")


def buffer() -> list[Tree]:
    """Envoy's own filter that holds a request until its body is there."""
    return [filter_of("buffer", "buffer.v3.Buffer", max_request_bytes=MAX_BODY)]


def noop(says: str = "") -> list[Tree]:
    """tests/tools/noop-wasm: the least that a Wasm filter can do which must know the body."""
    plugin = {
        "name": "noop",
        "configuration": {"@type": STRING_TYPE, "value": says},
        "root_id": "noop",
        "allow_on_headers_stop_iteration": True,
        "vm_config": {
            "vm_id": "noop",
            "runtime": "envoy.wasm.runtime.v8",
            "code": {"local": {"filename": os.environ["NIMGATE_NOOP"]}},
        },
    }
    return [{"name": "noop", "typed_config": {"@type": WASM_TYPE, "config": plugin}}]


def reader() -> list[Tree]:
    """The same, but it is handed headers and body and counts the request, as nimgate must."""
    return noop("read")


def json_to_metadata() -> list[Tree]:
    """What Envoy has of its own to limit by a model: it parses the body, and a bucket is chosen by what it found."""
    found = {"metadata_namespace": "bench", "key": "model"}
    rule = {"selectors": [{"key": "model"}], "on_present": found, "on_missing": {**found, "value": "none"}}
    bucket = {"max_tokens": 40, "tokens_per_fill": 40, "fill_interval": "60s"}
    everything = {"max_tokens": 1_000_000_000, "tokens_per_fill": 1_000_000_000, "fill_interval": "60s"}
    share = {"default_value": {"numerator": 100, "denominator": "HUNDRED"}}
    return [
        filter_of("json_to_metadata", "json_to_metadata.v3.JsonToMetadata", request_rules={"rules": [rule]}),
        filter_of(
            "local_ratelimit",
            "local_ratelimit.v3.LocalRateLimit",
            stat_prefix="bench",
            token_bucket=everything,
            filter_enabled=share,
            filter_enforced=share,
            descriptors=[{"entries": [{"key": "model", "value": "nvidia/bench"}], "token_bucket": bucket}],
        ),
    ]


def filter_of(name: str, kind: str, **fields: Any) -> Tree:
    return {"name": f"envoy.filters.http.{name}", "typed_config": {"@type": f"{TYPES}.{kind}", **fields}}


def without_access_log(tree: Tree) -> None:
    for node in walk(tree):
        node.pop("access_log", None)


def balanced(tree: Tree) -> None:
    """Each worker gets as many connections as the other; by chance one could have all."""
    data_listener(tree)["connection_balance_config"] = {"exact_balance": {}}


def before_router(filters: list[Tree]) -> Patch:
    def patch(tree: Tree) -> None:
        connection_manager(tree)["http_filters"][:0] = filters

    return patch


def limited_by_model(tree: Tree) -> None:
    """Tells local_ratelimit which descriptor a request has."""
    key = {"key": "bench", "path": [{"key": "model"}]}
    action = {"metadata": {"descriptor_key": "model", "metadata_key": key}}
    for host in virtual_hosts(tree):
        host["rate_limits"] = [{"actions": [action]}]


def answering(tree: Tree) -> None:
    """Makes an upstream of a listener: the answer comes when the whole body has been read."""
    before_router(buffer())(tree)
    answer = {"status": 200, "body": {"inline_string": json.dumps(ANSWER)}}
    header = {"key": "content-type", "value": "application/json"}
    added = {"header": header, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
    for host in virtual_hosts(tree):
        host["routes"] = [
            {"match": {"prefix": "/"}, "direct_response": answer, "response_headers_to_add": [added]},
        ]


def upstream() -> Envoy:
    options = Options(with_filter=False, concurrency=2, listeners=[without_access_log, answering])
    return Envoy(1, options).start()


def envoy(name: str, workers: int, upstream_port: int, plugin: Tree | None = None) -> Envoy:
    """A running Envoy with this filter."""
    if name == "nimgate":
        plugin = plugin or configuration(limit("nvidia"))
        options = Options(plugin=plugin, concurrency=workers, listeners=[without_access_log, balanced])
        return Envoy(upstream_port, options).start()
    kinds = {"plain": list, "buffer": buffer, "noop": noop, "reader": reader, "json_to_metadata": json_to_metadata}
    filters = kinds[name]()
    patches = [without_access_log, balanced, before_router(filters)]
    if name == "json_to_metadata":
        patches.append(limited_by_model)
    return Envoy(upstream_port, Options(with_filter=False, concurrency=workers, listeners=patches)).start()
