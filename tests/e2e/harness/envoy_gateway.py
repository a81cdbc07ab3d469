"""Makes of the manifests in `envoy/gateway/` what Envoy Gateway makes of them for Envoy.

As `harness/istio.py` does for Istio: read in Envoy Gateway's source (`internal/xds/translator`,
after 1.9) and done over as far as nimgate's manifests need it. Extension filters stand in the
listener, switched off, and each route switches them on. The module's image, which Envoy Gateway
fetches and serves, is a local file here; the upstream speaks no TLS.
"""

import json
import re
from pathlib import Path
from typing import Any

import jsonpath_rfc9535
import yaml

from .programs import REPOSITORY

Tree = dict[str, Any]

MANIFESTS = REPOSITORY / "envoy/gateway"
WAYS = ["by-host", "by-model", "by-model-with-buffer"]

TYPE = "type.googleapis.com/"
FILTERS = f"{TYPE}envoy.extensions.filters.http"
WASM = "envoy.filters.http.wasm"
BUFFER = "envoy.filters.http.buffer"
# The places of the filters that are used here, in Envoy Gateway's own order.
ORDER = [BUFFER, WASM, "envoy.filters.http.router"]
# What Envoy Gateway itself has among the rules for stat names, where they could meet nimgate's.
OWN_TAGS = [
    {"tag_name": "from_zone", "regex": r"\.zone(\.(([^\.]+)\.))"},
    {"tag_name": "to_zone", "regex": r"\.zone\.[^\.]+\.(([^\.]+)\.)"},
    {"tag_name": "socket_match_name", "regex": r"^cluster(\..+\.(.+))\.total_match_count$"},
    {"tag_name": "priority", "regex": r"circuit_breakers\.((.+?)\.).+"},
]


def documents(way: str) -> dict[str, Tree]:
    """The resources that are applied for one way, by kind; there is one of each."""
    texts = [(MANIFESTS / name).read_text() for name in ("gateway.yaml", f"{way}.yaml")]
    found = [one for text in texts for one in yaml.safe_load_all(text) if one]
    by_kind = {one["kind"]: one for one in found}
    assert len(by_kind) == len(found), "one resource of each kind was expected"
    return by_kind


def translate(resources: dict[str, Tree], module: Path) -> Tree:
    """Envoy's listener and the names of its clusters."""
    name = _name(resources["Gateway"])
    filters = [_wasm_filter(resources["EnvoyExtensionPolicy"], module), _router()]
    per_route: Tree = {filters[0]["name"]: {"@type": f"{TYPE}envoy.config.route.v3.FilterConfig"}}
    per_route[filters[0]["name"]]["config"] = {}
    if "BackendTrafficPolicy" in resources:
        size = _bytes(resources["BackendTrafficPolicy"]["spec"]["requestBuffer"]["limit"])
        kind = f"{FILTERS}.buffer.v3.Buffer"
        config = {"@type": kind, "max_request_bytes": size}
        filters.append({"name": BUFFER, "disabled": True, "typed_config": config})
        per_route[BUFFER] = {"@type": f"{kind}PerRoute", "buffer": {"max_request_bytes": size}}
    order = _order(resources["EnvoyProxy"]["spec"].get("filterOrder", []))
    filters.sort(key=lambda one: order.index(one["name"].split("/")[0]))
    rules = resources["HTTPRoute"]["spec"]["rules"]
    routes = [_route(f"{name}/rule/{at}", rule, per_route) for at, rule in enumerate(rules)]
    listener = _listener(f"{name}/http", filters, routes)
    if "ClientTrafficPolicy" in resources:
        connection = resources["ClientTrafficPolicy"]["spec"]["connection"]
        listener["per_connection_buffer_limit_bytes"] = _bytes(connection["bufferLimit"])
    for patch in resources.get("EnvoyPatchPolicy", {}).get("spec", {}).get("jsonPatches", []):
        _patch(listener, patch)
    return {"listener": listener, "clusters": sorted({one["route"]["cluster"] for one in routes})}


def stats_tags(resources: dict[str, Tree]) -> list[Tree]:
    """The rules for stat names in the bootstrap."""
    tags = list(OWN_TAGS)
    for patch in resources["EnvoyProxy"]["spec"]["bootstrap"]["jsonPatches"]:
        assert (patch["op"], patch["path"]) == ("add", "/stats_config/stats_tags/-")
        tags.append(patch["value"])
    return tags


def _name(resource: Tree) -> str:
    return f"{resource['metadata']['namespace']}/{resource['metadata']['name']}"


def _wasm_filter(policy: Tree, module: Path) -> Tree:
    (wasm,) = policy["spec"]["wasm"]
    unique = f"envoyextensionpolicy/{_name(policy)}/wasm/0"
    vm = {
        "vm_id": unique,
        "runtime": "envoy.wasm.runtime.v8",
        "code": {"local": {"filename": str(module)}},
    }
    if "env" in wasm:
        vm["environment_variables"] = {"host_env_keys": wasm["env"]["hostKeys"]}
    text = json.dumps(wasm["config"]) if "config" in wasm else ""
    assert wasm["failOpen"] is False
    config = {
        "name": wasm["name"],
        "root_id": wasm["rootID"],
        "vm_config": vm,
        "configuration": {"@type": f"{TYPE}google.protobuf.StringValue", "value": text},
    }
    return {
        "name": f"{WASM}/{unique}",
        "disabled": True,
        "typed_config": {"@type": f"{FILTERS}.wasm.v3.Wasm", "config": config},
    }


def _router() -> Tree:
    config = {"@type": f"{FILTERS}.router.v3.Router", "suppress_envoy_headers": True}
    return {"name": "envoy.filters.http.router", "typed_config": config}


def _order(positions: list[Tree]) -> list[str]:
    order = list(ORDER)
    for one in positions:
        order.remove(one["name"])
        order.insert(order.index(one["after"]) + 1, one["name"])
    return order


def _route(name: str, rule: Tree, per_route: Tree) -> Tree:
    match: Tree = {"prefix": "/"}
    for condition in rule.get("matches", []):
        match["headers"] = [
            {"name": one["name"], "string_match": {"exact": one["value"]}}
            for one in condition["headers"]
        ]
    filters = {one["type"]: one for one in rule["filters"]}
    removed = filters["RequestHeaderModifier"]["requestHeaderModifier"]["remove"]
    host = filters["URLRewrite"]["urlRewrite"]["hostname"]
    action = {"cluster": name, "host_rewrite_literal": host}
    action["timeout"] = rule["timeouts"]["request"]
    return {
        "name": name,
        "match": match,
        "route": action,
        "request_headers_to_remove": removed,
        "typed_per_filter_config": per_route,
    }


def _listener(name: str, filters: list[Tree], routes: list[Tree]) -> Tree:
    kind = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
    manager = {
        "@type": f"{TYPE}{kind}",
        "stat_prefix": "http-10080",
        "common_http_protocol_options": {"headers_with_underscores_action": "REJECT_REQUEST"},
        "http2_protocol_options": {
            "initial_connection_window_size": 1048576,
            "initial_stream_window_size": 65536,
            "max_concurrent_streams": 100,
        },
        "merge_slashes": True,
        "normalize_path": True,
        "path_with_escaped_slashes_action": "UNESCAPE_AND_REDIRECT",
        "server_header_transformation": "PASS_THROUGH",
        "use_remote_address": True,
        "route_config": {
            "name": name,
            "ignore_port_in_host_matching": True,
            "virtual_hosts": [{"name": f"{name}/*", "domains": ["*"], "routes": routes}],
        },
        "http_filters": filters,
    }
    chain = "envoy.filters.network.http_connection_manager"
    return {
        "@type": f"{TYPE}envoy.config.listener.v3.Listener",
        "name": name,
        "address": {"socket_address": {"address": "0.0.0.0", "port_value": 10080}},
        "per_connection_buffer_limit_bytes": 32768,
        "default_filter_chain": {
            "name": name,
            "filters": [{"name": chain, "typed_config": manager}],
        },
    }


def _patch(listener: Tree, patch: Tree) -> None:
    """An EnvoyPatchPolicy's addition of a field. As there, it is an error if nothing is found."""
    assert (patch["type"], patch["name"]) == (listener["@type"], listener["name"])
    operation = patch["operation"]
    assert operation["op"] == "add"
    found = jsonpath_rfc9535.find(operation["jsonPath"], listener)
    assert found, f"nothing is at {operation['jsonPath']}"
    for node in found:
        node.value[operation["path"]] = operation["value"]


def _bytes(quantity: str | int) -> int:
    number, unit = re.fullmatch(r"(\d+)(Ki|Mi|Gi)?", str(quantity)).groups()
    return int(number) * {None: 1, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}[unit]
