"""Reads the shipped Envoy configuration and adapts it to a test.

The suite tests what users get, so it starts from the files in `envoy/` and changes only what a test
must: ports, the module's path, the plugin configuration, and whatever the test is about. Resources
are found by what they are (a wasm filter, a route configuration), not by where they stand, so that
the files can be rearranged without touching the tests.
"""

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from .programs import REPOSITORY, envoy_version, wasm_module

Tree = dict[str, Any]
Patch = Callable[[Tree], None]

# Ports of the shipped local configuration, see envoy/envoy.yaml.
DATA_PORT = 10000
METRICS_PORT = 9191
CONSOLE_PORT = 9190
ADMIN_PORT = 9901
FAKE_PORT = 10080

WASM_TYPE = "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm"
STRING_TYPE = "type.googleapis.com/google.protobuf.StringValue"

# The first Envoy in which a filter that waits for a body goes by the route's
# request_body_buffer_limit. Before it the listener's limit alone counts, as the README says.
ROUTE_BUFFER_LIMIT_SINCE = (1, 37)


@dataclass
class Options:
    """What differs from the shipped configuration."""

    # The plugin configuration: JSON to be, text as it is, or None for an empty one.
    plugin: Tree | str | None = None
    # The same of the console's listener; ... leaves it as it is shipped.
    console: Any = ...
    # Another module than the one under test.
    module: Path | None = None
    concurrency: int = 2
    with_filter: bool = True
    stop_iteration_flag: bool = True
    # The shipped listener serves this machine alone; most tests ask it under names of their own.
    this_machine_only: bool = False
    # The shipped routes retry 429s, which a test of what a 429 does must not have.
    router_retries: bool = False
    environment: dict[str, str] = field(default_factory=dict)
    arguments: list[str] = field(default_factory=list)
    listeners: list[Patch] = field(default_factory=list)
    clusters: list[Patch] = field(default_factory=list)
    bootstrap: list[Patch] = field(default_factory=list)


@dataclass(frozen=True)
class Ports:
    data: int
    metrics: int
    console: int
    admin: int
    fake: int

    def replace_in(self, tree: Any) -> None:
        """Puts these ports where the shipped ones stand."""
        replacements = {
            DATA_PORT: self.data,
            METRICS_PORT: self.metrics,
            CONSOLE_PORT: self.console,
            ADMIN_PORT: self.admin,
            FAKE_PORT: self.fake,
        }
        for node in walk(tree):
            port = node.get("port_value")
            if port in replacements:
                node["port_value"] = replacements[port]


def walk(tree: Any) -> Iterator[Tree]:
    """Every mapping in the tree, outermost first."""
    if isinstance(tree, dict):
        yield tree
        for value in tree.values():
            yield from walk(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from walk(value)


def load(name: str) -> Tree:
    # Through JSON, so that what the file says once and means twice can be changed in one place.
    return json.loads(json.dumps(yaml.safe_load((REPOSITORY / "envoy" / name).read_text())))


def bootstrap(directory: Path, ports: Ports, options: Options) -> Tree:
    """The shipped bootstrap, with its discovery pointed at the files of this test."""
    tree = load("envoy.yaml")
    ports.replace_in(tree)
    resources = tree["dynamic_resources"]
    for kind, name in (("lds_config", "listeners.yaml"), ("cds_config", "clusters.yaml")):
        source = resources[kind]["path_config_source"]
        source["path"] = str(directory / name)
        if "watched_directory" in source:
            source["watched_directory"]["path"] = str(directory)
    # Histograms reach /stats with a flush; the shipped interval would only make the suite slower.
    tree["stats_flush_interval"] = "1s"
    for patch in options.bootstrap:
        patch(tree)
    return tree


def clusters(ports: Ports, options: Options) -> Tree:
    tree = load("clusters-fake.yaml")
    ports.replace_in(tree)
    for patch in options.clusters:
        patch(tree)
    return tree


def listeners(ports: Ports, options: Options) -> Tree:
    tree = load("listeners.yaml")
    ports.replace_in(tree)
    if options.with_filter:
        for plugin in wasm_plugins(tree):
            if not is_console(plugin):
                set_plugin_configuration(plugin, options.plugin)
            elif options.console is not ...:
                set_plugin_configuration(plugin, options.console)
            plugin["vm_config"]["code"]["local"]["filename"] = str(options.module or wasm_module())
            if not options.stop_iteration_flag:
                plugin.pop("allow_on_headers_stop_iteration")
    else:
        remove_wasm_filters(tree)
    if not options.this_machine_only:
        serve_all_names(tree)
    if envoy_version() < ROUTE_BUFFER_LIMIT_SINCE:
        raise_listeners_limit(tree)
    if not options.router_retries:
        for node in walk(tree):
            node.pop("retry_policy", None)
    for patch in options.listeners:
        patch(tree)
    return tree


def wasm_plugins(tree: Tree) -> list[Tree]:
    """The PluginConfig of every wasm filter; a configuration without one is not ours."""
    found = [node["config"] for node in walk(tree) if node.get("@type") == WASM_TYPE]
    assert found, "the shipped listeners.yaml holds no wasm filter"
    return found


def is_console(plugin: Tree) -> bool:
    """Whether a wasm filter, as shipped, is the console and meters nothing."""
    return "console" in json.loads(plugin["configuration"]["value"])


def set_plugin_configuration(plugin: Tree, value: Tree | str | None) -> None:
    if value is None:
        plugin.pop("configuration", None)
        return
    text = value if isinstance(value, str) else json.dumps(value)
    plugin["configuration"] = {"@type": STRING_TYPE, "value": text}


def remove_wasm_filters(tree: Tree) -> None:
    for node in walk(tree):
        if "http_filters" in node:
            node["http_filters"] = [
                entry
                for entry in node["http_filters"]
                if entry.get("typed_config", {}).get("@type") != WASM_TYPE
            ]


def serve_all_names(tree: Tree) -> None:
    manager = connection_manager(tree)
    kept = [one for one in manager["http_filters"] if one["name"] != "this-machine-only"]
    manager["http_filters"] = kept


def raise_listeners_limit(tree: Tree) -> None:
    """What the README tells users of such an Envoy to do."""
    limits = [route.get("request_body_buffer_limit", 0) for route in all_routes(tree)]
    data_listener(tree)["per_connection_buffer_limit_bytes"] = max(limits)


# Patches for listeners.


def data_listener(tree: Tree) -> Tree:
    """The listener that holds the wasm filter, or the first one where it was taken out."""
    for resource in tree["resources"]:
        if any(node.get("@type") == WASM_TYPE for node in walk(resource)):
            return resource
    return tree["resources"][0]


def connection_manager(tree: Tree) -> Tree:
    """The HTTP connection manager of the data listener."""
    return next(node for node in walk(data_listener(tree)) if "http_filters" in node)


def virtual_hosts(tree: Tree) -> list[Tree]:
    return connection_manager(tree)["route_config"]["virtual_hosts"]


def all_routes(tree: Tree) -> Iterator[Tree]:
    """Every route of the data listener that leads to a cluster."""
    for host in virtual_hosts(tree):
        yield from (route for route in host["routes"] if "route" in route)


def keep_limit_header(tree: Tree) -> None:
    """Lets the upstream see `x-nimgate-limit`, so that its record tells which limit was taken."""
    for node in walk(connection_manager(tree)["route_config"]):
        names = node.get("request_headers_to_remove")
        if names:
            node["request_headers_to_remove"] = [n for n in names if n != "x-nimgate-limit"]


def route_timeout(seconds: float) -> Patch:
    """Cuts the time the upstream has for its answer."""

    def patch(tree: Tree) -> None:
        for route in all_routes(tree):
            route["route"]["timeout"] = f"{seconds:g}s"

    return patch


def idle_timeout(seconds: float) -> Patch:
    """Cuts the time for which a stream may be silent."""

    def patch(tree: Tree) -> None:
        connection_manager(tree)["stream_idle_timeout"] = f"{seconds:g}s"
        for route in all_routes(tree):
            route["route"]["idle_timeout"] = f"{seconds:g}s"

    return patch


def route_by_header(name: str, value: str, cluster: str) -> Patch:
    """A route, before all others, for requests that carry a header."""

    def patch(tree: Tree) -> None:
        route = {
            "match": {
                "prefix": "/",
                "headers": [{"name": name, "string_match": {"exact": value}}],
            },
            "route": {"cluster": cluster, "timeout": "60s"},
        }
        for host in virtual_hosts(tree):
            host["routes"].insert(0, copy.deepcopy(route))

    return patch


def body_limit(size: int) -> Patch:
    """Cuts how much of a request's body Envoy will hold."""

    def patch(tree: Tree) -> None:
        data_listener(tree)["per_connection_buffer_limit_bytes"] = size
        for node in walk(data_listener(tree)):
            if "request_body_buffer_limit" in node:
                node["request_body_buffer_limit"] = size

    return patch


# Patches for clusters.


def plain_cluster(name: str, port: int) -> Patch:
    """One more cluster, on a port of this machine."""

    def patch(tree: Tree) -> None:
        address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
        tree["resources"].append(
            {
                "@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster",
                "name": name,
                "type": "STATIC",
                "connect_timeout": "5s",
                "load_assignment": {
                    "cluster_name": name,
                    "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
                },
            }
        )

    return patch
