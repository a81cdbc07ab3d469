"""Makes the files of this directory: of published custom resource definitions what a validator needs, without descriptions
and without the versions that v1 has replaced.

    strip.py FILE...      FILE: YAML, one or several definitions in it
"""

import sys
from pathlib import Path

import yaml

HERE = Path(__file__).parent


def main() -> None:
    for name in sys.argv[1:]:
        for document in yaml.safe_load_all(Path(name).read_text()):
            if document and document["kind"] == "CustomResourceDefinition":
                write(document)


def write(definition: dict) -> None:
    spec = definition["spec"]
    served = [version for version in spec["versions"] if version["served"]]
    stable = [version for version in served if version["name"] == "v1"]
    kept = {
        "group": spec["group"],
        "kind": spec["names"]["kind"],
        "versions": {
            version["name"]: without_descriptions(version["schema"]["openAPIV3Schema"])
            for version in stable or served
        },
    }
    text = yaml.safe_dump(kept, sort_keys=False, width=120)
    (HERE / f"{definition['metadata']['name']}.yaml").write_text(text)


def without_descriptions(schema):
    """A field may be called `description` too; it is a mapping then, and stays."""
    if isinstance(schema, dict):
        return {
            key: without_descriptions(value)
            for key, value in schema.items()
            if key != "description" or not isinstance(value, str)
        }
    if isinstance(schema, list):
        return [without_descriptions(one) for one in schema]
    return schema


if __name__ == "__main__":
    main()
