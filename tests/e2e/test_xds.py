"""Configurations that a control plane pushes: active at once for those who wait, or refused.

The control plane here speaks xDS over REST, which Envoy polls; to the filter it makes no difference
how a listener comes. It hands out the listeners.yaml that the other tests let Envoy read itself.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import yaml

from harness.client import results
from harness.gate import running_gate
from harness.nimgate import configuration, limit
from harness.shipped import Options, Tree, plain_cluster
from harness.waiting import wait_for_equal, wait_until

LISTENER = "type.googleapis.com/envoy.config.listener.v3.Listener"


class ControlPlane:
    """Answers discovery requests for listeners with what a file says."""

    def __init__(self) -> None:
        plane = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                body = plane.response()
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Its own log is of no use to a test."""

        self.file: Path | None = None
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def response(self) -> bytes:
        text = self.file.read_text()
        resources = yaml.safe_load(text)["resources"]
        version = str(hash(text))
        return json.dumps(
            {"version_info": version, "resources": resources, "type_url": LISTENER}
        ).encode()

    def take_over(self, tree: Tree) -> None:
        """Patches a bootstrap: listeners come from here instead of the file."""
        resources = tree["dynamic_resources"]
        self.file = Path(resources["lds_config"]["path_config_source"]["path"])
        resources["lds_config"] = {
            "resource_api_version": "V3",
            "api_config_source": {
                "api_type": "REST",
                "transport_api_version": "V3",
                "cluster_names": ["control-plane"],
                "refresh_delay": "0.1s",
                "request_timeout": "10s",
            },
        }
        clusters: Tree = {"resources": []}
        plain_cluster("control-plane", self.server.server_port)(clusters)
        (cluster,) = clusters["resources"]
        del cluster["@type"]
        tree["static_resources"] = {"clusters": [cluster]}


@contextmanager
def control_plane() -> Iterator[ControlPlane]:
    plane = ControlPlane()
    thread = threading.Thread(target=plane.server.serve_forever)
    thread.start()
    try:
        yield plane
    finally:
        plane.server.shutdown()
        thread.join()
        plane.server.server_close()


def plugin(**fields) -> dict:
    return configuration(limit("nvidia", bucket_capacity=1, **fields))


def test_pushed_configuration_holds_for_those_who_wait_and_a_bad_one_for_nobody():
    with control_plane() as plane:
        options = Options(plugin=plugin(rate_rpm=1), concurrency=4, bootstrap=[plane.take_over])
        with running_gate(options) as gate:
            epoch = gate.envoy.metric("nimgate_configuration_epoch", limit="nvidia")
            asked = [gate.client.start_chat("nvidia/m") for _ in range(40)]
            gate.wait_for_queue("nvidia", 39)

            gate.envoy.reload(plugin(rate_rpm=6000))
            # At one a minute these would take forty minutes.
            assert {answer.status for answer in results(asked)} == {200}
            assert len(gate.fake.requests("nvidia/m")) == 40
            wait_for_equal(
                lambda: gate.envoy.metric("nimgate_configuration_epoch", limit="nvidia"),
                epoch + 1,
                "the epoch of the rules",
            )
            assert gate.envoy.metric("nimgate_configured_rpm", limit="nvidia") == 6000
            (seen,) = gate.console.send("GET", "/status").json()["limits"]
            assert seen["rules"]["epoch"] == epoch + 1
            gate.envoy.wait_for_log('"epoch":2.*rules_in_force|rules_in_force.*"epoch":2')

            gate.envoy.reload(plugin(rate_rpm=0))
            wait_until(
                lambda: gate.envoy.metric("nimgate_configuration_refused_total"), "a refusal"
            )
            assert gate.client.chat("nvidia/m").status == 200
            assert gate.envoy.metric("nimgate_configured_rpm", limit="nvidia") == 6000
            assert gate.envoy.metric("nimgate_configuration_epoch", limit="nvidia") == epoch + 1
