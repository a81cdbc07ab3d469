"""Prints the local Envoy configuration as one static whole, for `envoy --mode validate`.

    static_config.py CLUSTERS      CLUSTERS: the file of clusters to take, such as envoy/clusters.yaml

Envoy's validation reads the bootstrap and stops there: files that discovery would bring are not even opened, so a
listener full of mistakes passes. Here their resources stand in the bootstrap itself, where every field is checked, the
clusters' TLS settings are loaded, and the filter judges its own configuration.
"""

import json
import sys
from pathlib import Path

import yaml

ENVOY = Path(__file__).resolve().parents[2] / "envoy"


def main() -> None:
    bootstrap = read(ENVOY / "envoy.yaml")
    del bootstrap["dynamic_resources"]
    bootstrap["static_resources"] = {
        "listeners": resources(ENVOY / "listeners.yaml"),
        "clusters": resources(Path(sys.argv[1])),
    }
    json.dump(bootstrap, sys.stdout)


def resources(path: Path) -> list[dict]:
    """The resources of a discovery file; in the bootstrap their type goes without saying."""
    return [
        {name: value for name, value in resource.items() if name != "@type"} for resource in read(path)["resources"]
    ]


def read(path: Path) -> dict:
    return yaml.safe_load(path.read_text())


if __name__ == "__main__":
    main()
