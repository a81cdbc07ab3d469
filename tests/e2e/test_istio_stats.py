"""Istio's rules for stat names make the same labels of nimgate's stats as the local configuration.

There is no Istio here, but its bootstrap is a template: what `extraStatTags` and the annotation for
histograms make of a name is written there, and taken over below.
"""

import re

import pytest
import yaml

from harness.gate import Gate, running_gate
from harness.nimgate import configuration, limit
from harness.programs import REPOSITORY
from harness.scrape import labels, scrape, value
from harness.shipped import Options, Tree
from harness.waiting import wait_for_equal

DOCUMENT = (REPOSITORY / "docs/metrics.md").read_text()
# What Istio has in place without being asked.
OWN_TAGS = [
    {"tag_name": "cluster_name", "regex": r"^cluster\.((.+?(\..+?\.svc\.cluster\.local)?)\.)"},
    {"tag_name": "response_code", "regex": r"_rq(_(\d{3}))$"},
    {"tag_name": "cache", "regex": r"(cache\.(.+?)\.)"},
    {"tag_name": "component", "regex": r"(component\.(.+?)\.)"},
    {"tag_name": "tag", "regex": r"(tag\.(.+?);\.)"},
    {"tag_name": "wasm_filter", "regex": r"(wasm_filter\.(.+?)\.)"},
]
# Labels of Istio's own metrics, written into names in the same way.
OWN_LABELS = [
    "reporter",
    *(f"source_{what}" for what in ("workload", "principal", "app", "version", "cluster")),
    *(f"destination_{what}" for what in ("workload", "principal", "app", "version", "cluster")),
    *("source_canonical_service", "source_canonical_revision", "source_workload_namespace"),
    *("destination_canonical_service", "destination_canonical_revision"),
    *("destination_workload_namespace", "destination_service_namespace"),
    *("destination_service", "destination_service_name"),
    *("request_protocol", "response_flags", "response_code", "grpc_response_status"),
    *("connection_security_policy", "cache", "component"),
]


def annotations() -> dict[str, str]:
    """Those of the document's example."""
    block = re.search(r"```yaml\n(.*?sidecar\.istio\.io/extraStatTags.*?)```", DOCUMENT, re.DOTALL)
    assert block, "docs/metrics.md shows no annotations for Istio"
    tree = yaml.safe_load(block[1])
    return tree["spec"]["template"]["metadata"]["annotations"]


def extra_tags() -> list[str]:
    return annotations()["sidecar.istio.io/extraStatTags"].split(",")


def as_istio(tree: Tree) -> None:
    buckets = yaml.safe_load(annotations()["sidecar.istio.io/statsHistogramBuckets"])
    extra = [{"tag_name": tag, "regex": rf"({tag}=\.=(.*?);\.;)"} for tag in extra_tags()]
    tree["stats_config"] = {
        "use_all_default_tags": False,
        "stats_tags": [*OWN_TAGS, *extra],
        "histogram_bucket_settings": [
            {"match": {"prefix": prefix}, "buckets": values} for prefix, values in buckets.items()
        ],
        "stats_matcher": {
            "inclusion_list": {
                "patterns": [
                    {"prefix": prefix}
                    for prefix in ("cluster_manager", "listener_manager", "server", "wasm")
                ]
            }
        },
    }


@pytest.fixture(scope="module")
def gate():
    options = Options(plugin=configuration(limit("nvidia")), bootstrap=[as_istio])
    with running_gate(options) as gate:
        yield gate


def test_labels_and_buckets_are_the_same(gate: Gate):
    for status in (200, 503):
        answer = gate.client.chat("nvidia/llama-3.1", headers={"x-fake-status": str(status)})
        assert answer.status == status
    named = {"limit": "nvidia", "model": "nvidia/llama-3.1"}
    latency = "nimgate_upstream_latency_milliseconds"
    wait_for_equal(
        lambda: value(scrape(gate), f"{latency}_count", **named), 1.0, "the histogram is flushed"
    )
    series = scrape(gate)
    total = "nimgate_requests_total"
    assert value(series, total, limit="nvidia", priority="normal", outcome="forwarded") == 2
    assert labels(series, "nimgate_upstream_errors_total") == [{**named, "error": "503"}]
    assert value(series, f"{latency}_bucket", le="+Inf", **named) == 1
    bounds = {found["le"] for found in labels(series, f"{latency}_bucket")}
    assert "120000" in bounds
    assert all(name.startswith("nimgate_") for name, _ in series)


def test_every_label_is_among_the_extra_tags():
    tags = yaml.safe_load((REPOSITORY / "envoy/envoy.yaml").read_text())["stats_config"][
        "stats_tags"
    ]
    assert sorted(extra_tags()) == sorted(tag["tag_name"] for tag in tags)


def test_no_label_is_the_end_of_one_of_istios():
    # Istio's rules look for a label anywhere in a name, so they would cut such a one in two.
    for tag in extra_tags():
        assert not [own for own in OWN_LABELS if own.endswith(tag)], tag
