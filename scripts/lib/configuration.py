"""What nimgate's configuration takes, as the code that reads it says."""

import functools
import json
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@functools.cache
def fields() -> frozenset[str]:
    """The paths of all fields, such as `limits[].retreat.floor_rpm`."""
    command = ["cargo", "run", "--locked", "-q", "-p", "nimgate-config", "--example", "knobs"]
    printed = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout
    return frozenset(json.loads(printed)["fields"])


def unknown(value: object, path: str = "") -> list[str]:
    """The paths in a configuration that are no field's, and no object's or list's that holds fields."""
    if isinstance(value, dict):
        return [found for name, one in value.items() for found in unknown(one, f"{path}.{name}".lstrip("."))]
    if isinstance(value, list) and any(field.startswith(f"{path}[].") for field in fields()):
        return [found for one in value for found in unknown(one, f"{path}[]")]
    is_known = path in fields() or any(field.startswith((f"{path}.", f"{path}[")) for field in fields())
    return [] if is_known or path.endswith("[]") else [path]
