"""Makes of the manifests in `envoy/istio/` what Istio makes of them for Envoy.

There is no Istio here. What it does with each resource was read in its source (istiod's
`pilot/pkg/model/extensions.go`, `pilot/pkg/networking/core`, and the agent's `pkg/wasm/convert.go`,
as of 1.32's development) and is done over below, as far as nimgate's manifests need it; anything
else in them is an error. The results stand in `tests/data/istio/`, one file for each way, so that
they can be read and compared; `python -m harness.istio`, from `tests/e2e`, writes them again.

What differs from a cluster: discovery reads a file instead of asking istiod; the upstream speaks no
TLS; and filters that only Istio's build of Envoy has (metadata exchange, ALPN, stats) are left out.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from .programs import REPOSITORY

Tree = dict[str, Any]

MANIFESTS = REPOSITORY / "envoy/istio"
WRITTEN = REPOSITORY / "tests/data/istio"

# For each way, the files of `envoy/istio/` that are applied together.
WAYS = {
    "wasmplugin": ["gateway.yaml", "wasmplugin.yaml"],
    "trafficextension": ["gateway.yaml", "trafficextension.yaml"],
    "envoyfilter": ["gateway.yaml", "envoyfilter.yaml"],
    "wasmplugin-and-buffer": ["gateway.yaml", "wasmplugin-and-buffer.yaml"],
    "sidecar": ["sidecar.yaml"],
}

TYPE = "type.googleapis.com/"
WASM_FILTER = f"{TYPE}envoy.extensions.filters.http.wasm.v3.Wasm"
RBAC_FILTER = f"{TYPE}envoy.extensions.filters.http.rbac.v3.RBAC"
ROUTER = "envoy.filters.http.router"
CONNECTION_MANAGER = "envoy.filters.network.http_connection_manager"
MODULE_PATH = "MODULE_PATH"


def documents(way: str) -> list[Tree]:
    """The resources that are applied for one way."""
    texts = [(MANIFESTS / name).read_text() for name in WAYS[way]]
    return [one for text in texts for one in yaml.safe_load_all(text) if one]


def translate(resources: list[Tree]) -> Tree:
    """Envoy's listener, extension configurations and clusters for a set of Istio's resources."""
    context = "GATEWAY" if any(_kind(one, "Gateway") for one in resources) else "SIDECAR_OUTBOUND"
    extensions: list[Tree] = []
    filters = [*_wasm_filters(resources, extensions), *_own_filters()]
    listener = _listener(resources, context, filters)
    for one in resources:
        if _kind(one, "EnvoyFilter"):
            _patch(one["spec"], context, listener, extensions)
    clusters = sorted(_cluster_names(resources))
    return {"listener": listener, "extension_configs": extensions, "clusters": clusters}


def _kind(resource: Tree, kind: str) -> bool:
    return resource["kind"] == kind


def _wasm_filters(resources: list[Tree], extensions: list[Tree]) -> Iterator[Tree]:
    """Istio's own place for plugins without a phase: after its authentication, before the rest."""
    for resource in resources:
        spec = resource.get("spec", {})
        if _kind(resource, "TrafficExtension"):
            wasm = spec["wasm"]
        elif _kind(resource, "WasmPlugin"):
            wasm = spec
        else:
            continue
        assert "phase" not in spec, "only plugins without a phase are understood"
        # Gateways and what a sidecar sends count as the client's side.
        for match in spec.get("match", []):
            assert match.get("mode") in (None, "CLIENT", "CLIENT_AND_SERVER"), match
        metadata = resource["metadata"]
        plain_name = f"{metadata['namespace']}.{metadata['name']}"
        name = f"extensions.istio.io/trafficextension/{plain_name}"
        extensions.append(_extension(name, _wasm_config(plain_name, wasm)))
        source = {"ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3"}
        yield {
            "name": name,
            "config_discovery": {
                "config_source": source,
                "type_urls": [WASM_FILTER, RBAC_FILTER],
            },
        }


def _wasm_config(name: str, wasm: Tree) -> Tree:
    """istiod's translation, when the agent has fetched the image and taken out what is its own."""
    vm: Tree = {"runtime": "envoy.wasm.runtime.v8", "code": {"remote": {}}}
    environment = wasm.get("vmConfig", {}).get("env", [])
    keys = [one["name"] for one in environment if one["valueFrom"] == "HOST"]
    values = {one["name"]: one["value"] for one in environment if one["valueFrom"] == "INLINE"}
    if keys:
        vm.setdefault("environment_variables", {})["host_env_keys"] = keys
    if values:
        vm.setdefault("environment_variables", {})["key_values"] = values
    configuration: Tree = {}
    if wasm.get("pluginConfig"):
        text = json.dumps(wasm["pluginConfig"], separators=(",", ":"))
        configuration = {"@type": f"{TYPE}google.protobuf.StringValue", "value": text}
    policies = {"FAIL_CLOSE": "FAIL_CLOSED"}
    policy = wasm.get("failStrategy", "FAIL_CLOSE")
    return {
        "name": name,
        "root_id": wasm.get("pluginName", ""),
        "configuration": configuration,
        "failure_policy": policies.get(policy, policy),
        "vm_config": vm,
    }


def _extension(name: str, config: Tree) -> Tree:
    local = {"local": {"filename": MODULE_PATH}}
    assert "remote" in config["vm_config"]["code"], "the image is fetched by Istio's agent"
    config["vm_config"]["code"] = local
    return {
        "@type": f"{TYPE}envoy.config.core.v3.TypedExtensionConfig",
        "name": name,
        "typed_config": {"@type": WASM_FILTER, "config": config},
    }


def _own_filters() -> list[Tree]:
    """Those that every HTTP listener of Istio's has and that every Envoy knows."""
    http = f"{TYPE}envoy.extensions.filters.http"
    return [
        {
            "name": "envoy.filters.http.grpc_stats",
            "typed_config": {
                "@type": f"{http}.grpc_stats.v3.FilterConfig",
                "emit_filter_state": True,
                "stats_for_all_methods": False,
            },
        },
        {
            "name": "envoy.filters.http.fault",
            "typed_config": {"@type": f"{http}.fault.v3.HTTPFault"},
        },
        {"name": "envoy.filters.http.cors", "typed_config": {"@type": f"{http}.cors.v3.Cors"}},
        {"name": ROUTER, "typed_config": {"@type": f"{http}.router.v3.Router"}},
    ]


def _listener(resources: list[Tree], context: str, filters: list[Tree]) -> Tree:
    is_gateway = context == "GATEWAY"
    (virtual_service,) = [one["spec"] for one in resources if _kind(one, "VirtualService")]
    hosts = virtual_service["hosts"]
    domains = hosts if is_gateway else [name for host in hosts for name in (host, f"{host}:80")]
    kind = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
    port = 8080 if is_gateway else 80
    manager = {
        "@type": f"{TYPE}{kind}",
        "stat_prefix": f"outbound_0.0.0.0_{port}",
        "codec_type": "AUTO",
        "use_remote_address": is_gateway,
        "normalize_path": True,
        "upgrade_configs": [{"upgrade_type": "websocket"}],
        # No silence ends a stream.
        "stream_idle_timeout": "0s",
        "route_config": {
            "name": f"http.{port}" if is_gateway else str(port),
            "virtual_hosts": [
                {
                    "name": f"{hosts[0]}:{port}",
                    "domains": domains,
                    "include_request_attempt_count": True,
                    "routes": [_route(route) for route in virtual_service["http"]],
                }
            ],
        },
        "http_filters": filters,
    }
    return {
        "@type": f"{TYPE}envoy.config.listener.v3.Listener",
        "name": f"0.0.0.0_{port}",
        "address": {"socket_address": {"address": "0.0.0.0", "port_value": port}},
        "traffic_direction": "OUTBOUND",
        "filter_chains": [{"filters": [{"name": CONNECTION_MANAGER, "typed_config": manager}]}],
    }


def _route(http: Tree) -> Tree:
    """One entry of a VirtualService. It has no timeout, and its retries must not be Istio's."""
    unknown = http.keys() - {"name", "match", "route", "rewrite", "retries"}
    assert not unknown, f"not understood: {unknown}"
    assert http["retries"] == {"attempts": 0}
    (destination,) = http["route"]
    match: Tree = {"prefix": "/"}
    for condition in http.get("match", []):
        match["headers"] = [
            {"name": name, "string_match": value} for name, value in condition["headers"].items()
        ]
    action: Tree = {"cluster": _cluster_name(destination), "timeout": "0s"}
    if "rewrite" in http:
        action["host_rewrite_literal"] = http["rewrite"]["authority"]
    return {
        "name": http.get("name", "default"),
        "match": match,
        "route": action,
        "request_headers_to_remove": destination["headers"]["request"]["remove"],
    }


def _cluster_name(destination: Tree) -> str:
    to = destination["destination"]
    return f"outbound|{to['port']['number']}||{to['host']}"


def _cluster_names(resources: list[Tree]) -> set[str]:
    return {
        _cluster_name(destination)
        for one in resources
        if _kind(one, "VirtualService")
        for http in one["spec"]["http"]
        for destination in http["route"]
    }


def _patch(spec: Tree, context: str, listener: Tree, extensions: list[Tree]) -> None:
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    for one in spec["configPatches"]:
        match, patch = one["match"], one["patch"]
        if match["context"] != context:
            continue
        wanted = (one["applyTo"], patch["operation"])
        value = json.loads(json.dumps(patch["value"]))
        if wanted == ("EXTENSION_CONFIG", "ADD"):
            extensions.append(_extension(value["name"], value["typed_config"]["config"]))
        elif wanted == ("LISTENER", "MERGE"):
            assert all(not isinstance(field, dict | list) for field in value.values())
            listener.update(value)
        elif wanted == ("HTTP_FILTER", "INSERT_BEFORE"):
            chain = match["listener"]["filterChain"]["filter"]
            assert chain["name"] == CONNECTION_MANAGER
            names = [entry["name"] for entry in manager["http_filters"]]
            manager["http_filters"].insert(names.index(chain["subFilter"]["name"]), value)
        else:
            raise AssertionError(f"not understood: {wanted}")


def for_envoy(tree: Tree, ecds: Path, module: Path) -> Tree:
    """Puts a file of this machine in the place of what a cluster would provide."""
    text = json.dumps(tree).replace(MODULE_PATH, str(module))
    source = {"path_config_source": {"path": str(ecds)}}
    return json.loads(text.replace('"ads": {}', json.dumps(source)[1:-1]))


def main() -> None:
    for way in WAYS:
        text = yaml.safe_dump(translate(documents(way)), sort_keys=False, width=120)
        head = f"# What Istio makes of {', '.join(WAYS[way])}; see tests/e2e/harness/istio.py.\n"
        (WRITTEN / f"{way}.yaml").write_text(head + text)


if __name__ == "__main__":
    main()
