"""Checks Kubernetes manifests as strictly as an API server would, and more so: unknown fields are refused.

    check_manifests.py FILE...            every document in these files
    check_manifests.py --self-test        that each planted mistake in copies of the real manifests is found

Custom resources are checked against the definitions in tests/data/crds: their schemas with jsonschema, their CEL rules
with cel-python. Kubernetes' own kinds are checked with kubernetes-validate. What no definition is known of is a mistake.
Beyond the schemas, nimgate's own configuration is checked: it must be an object whose fields nimgate has.

kubectl-validate does the first part with the API server's own code, but neither PyPI, npm nor Debian carries it, so that
it can't be had from where the checks get all else.
"""

import copy
import functools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import celpy
import celpy.celtypes
import jsonschema
import kubernetes_validate
import yaml
from configuration import unknown

ROOT = Path(__file__).resolve().parents[2]
CRDS = ROOT / "tests/data/crds"
MANIFESTS = [*sorted((ROOT / "envoy/istio").glob("*.yaml")), *sorted((ROOT / "envoy/gateway").glob("*.yaml"))]
KUBERNETES_VERSION = "1.31"


def main() -> None:
    if sys.argv[1:] == ["--self-test"]:
        self_test()
        return
    files = [Path(name) for name in sys.argv[1:]] or MANIFESTS
    found = [(file, document) for file in files for document in read(file)]
    problems = [f"{file}: {problem}" for file, document in found for problem in check(document)]
    for problem in problems:
        print(problem)
    if problems or not found:
        sys.exit(f"{len(problems)} problems in {len(found)} resources of {len(files)} files")
    print(f"{len(found)} resources in {len(files)} files: all valid")


def read(file: Path) -> list[dict]:
    return [one for one in yaml.safe_load_all(file.read_text()) if one]


def check(resource: dict) -> Iterator[str]:
    name = f"{resource.get('kind')} {resource.get('metadata', {}).get('name')}"
    version = resource.get("apiVersion", "")
    definition = definitions().get((version, resource.get("kind")))
    if definition is not None:
        problems = custom_problems(resource, definition)
    elif "." in version.partition("/")[0]:
        problems = [f"no definition of {version} is known"]
    else:
        problems = core_problems(resource)
    for problem in [*problems, *configuration_problems(resource)]:
        yield f"{name}: {problem}"


@functools.cache
def definitions() -> dict[tuple[str, str], dict]:
    found = {}
    for file in CRDS.glob("*.yaml"):
        definition = yaml.safe_load(file.read_text())
        for version, schema in definition["versions"].items():
            found[f"{definition['group']}/{version}", definition["kind"]] = schema
    return found


def core_problems(resource: dict) -> Iterator[str]:
    try:
        kubernetes_validate.validate(resource, KUBERNETES_VERSION, strict=True)
    except kubernetes_validate.ValidationError as error:
        yield f"{'.'.join(map(str, error.path)) or 'document'}: {error.message}"
    except (kubernetes_validate.InvalidSchemaError, kubernetes_validate.SchemaNotFoundError) as error:
        yield f"no schema is known: {error}"


def custom_problems(resource: dict, definition: dict) -> Iterator[str]:
    schema = strict(definition, is_root=True)
    errors = list(jsonschema.Draft202012Validator(schema).iter_errors(resource))
    for error in errors:
        yield f"{'.'.join(map(str, error.absolute_path)) or 'document'}: {error.message}"
    if not errors:
        yield from rule_problems(with_defaults(resource, definition), definition, "")


def strict(schema: dict, is_root: bool = False) -> dict:
    """A definition's schema in the words of JSON Schema, with all unknown fields refused."""
    result = {}
    for key, value in schema.items():
        if key in ("properties", "patternProperties"):
            result[key] = {name: strict(one) for name, one in value.items()}
        elif key in ("items", "not") or (key == "additionalProperties" and isinstance(value, dict)):
            result[key] = strict(value)
        elif key in ("oneOf", "anyOf", "allOf"):
            # These only ever narrow what stands beside them, and name a part of its fields.
            result[key] = value
        elif not key.startswith("x-kubernetes-") and key not in ("default", "format", "nullable", "example"):
            result[key] = value
    if is_root:
        # The definition leaves these to Kubernetes.
        own = {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": METADATA}
        result["properties"] = {**result["properties"], **own}
        result["required"] = sorted({*result.get("required", []), "apiVersion", "kind", "metadata"})
    open_to_all = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if schema.get("type") == "object" and "properties" in schema and not open_to_all:
        result["additionalProperties"] = False
    if schema.get("x-kubernetes-int-or-string"):
        result.pop("type", None)
        result["type"] = ["integer", "string"]
    if schema.get("nullable"):
        result = {"anyOf": [{"type": "null"}, result]}
    return result


NAME = {"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", "maxLength": 253}
METADATA = {
    "type": "object",
    "required": ["name"],
    "additionalProperties": False,
    "properties": {
        "name": NAME,
        "namespace": NAME,
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}


# The rules in CEL.


def with_defaults(value: object, schema: dict) -> object:
    """The value as the API server stores it: what is left out and has a default is there."""
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        missing = {name: one["default"] for name, one in properties.items() if "default" in one and name not in value}
        filled = {**value, **copy.deepcopy(missing)}
        inner = {name: properties.get(name) or schema.get("additionalProperties") for name in filled}
        return {name: with_defaults(one, inner[name]) if isinstance(inner[name], dict) else one for name, one in filled.items()}
    if isinstance(value, list) and "items" in schema:
        return [with_defaults(one, schema["items"]) for one in value]
    return value


def rule_problems(value: object, schema: dict, path: str) -> Iterator[str]:
    for rule in schema.get("x-kubernetes-validations", []):
        if "oldSelf" not in rule["rule"] and not holds(rule["rule"], value):
            yield f"{path or 'document'}: {rule.get('message', rule['rule'])}"
    if isinstance(value, dict):
        for key, one in value.items():
            inner = schema.get("properties", {}).get(key) or schema.get("additionalProperties")
            if isinstance(inner, dict):
                yield from rule_problems(one, inner, f"{path}.{key}".lstrip("."))
    elif isinstance(value, list) and "items" in schema:
        for at, one in enumerate(value):
            yield from rule_problems(one, schema["items"], f"{path}[{at}]")


def holds(rule: str, value: object) -> bool:
    return bool(program(rule).evaluate({"self": celpy.json_to_cel(value)}))


@functools.cache
def program(rule: str) -> celpy.Runner:
    environment = celpy.Environment()
    return environment.program(environment.compile(rule), functions=FUNCTIONS)


def is_url(text: str) -> celpy.celtypes.BoolType:
    parts = urlsplit(text)
    return celpy.celtypes.BoolType(bool(parts.scheme) and (bool(parts.netloc) or parts.path.startswith("/")))


def scheme_of(text: str) -> celpy.celtypes.StringType:
    return celpy.celtypes.StringType(urlsplit(text).scheme)


# Kubernetes' own additions to CEL, as far as the definitions use them.
FUNCTIONS: dict[str, Callable] = {"isURL": is_url, "url": lambda text: text, "getScheme": scheme_of}


# What the schemas leave open.


def configuration_problems(resource: dict) -> Iterator[str]:
    for configuration in configurations(resource):
        if not isinstance(configuration, dict):
            yield "nimgate's configuration must be an object"
            continue
        for path in unknown(configuration):
            yield f"nimgate has no configuration field {path}"


def configurations(node: object) -> Iterator[object]:
    """nimgate's configuration wherever a manifest holds one."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "pluginConfig" or (key == "config" and "code" in node):
                yield value
            elif key == "configuration" and isinstance(value, dict) and "value" in value:
                yield json.loads(value["value"])
            else:
                yield from configurations(value)
    elif isinstance(node, list):
        for one in node:
            yield from configurations(one)


# The check of the check.


def self_test() -> None:
    """Each mistake is planted into every resource that has the place for it, and must be found there."""
    resources = [document for file in MANIFESTS for document in read(file)]
    assert not [problem for one in resources for problem in check(one)], "the manifests themselves are not valid"
    for mistake, (kind, plant) in MISTAKES.items():
        spoilt = [copy.deepcopy(one) for one in resources if one["kind"] == kind]
        assert spoilt, f"no {kind} to plant {mistake} into"
        for one in spoilt:
            plant(one)
            if not list(check(one)):
                sys.exit(f"{mistake} in {kind} {one['metadata']['name']} was not found")
    print(f"{len(MISTAKES)} planted mistakes: all found")


def put(*path: str | int, value: object) -> Callable[[dict], None]:
    def plant(resource: dict) -> None:
        node = resource
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = value

    return plant


MISTAKES = {
    "an unknown field": ("WasmPlugin", put("spec", "allowOnHeadersStopIteration", value=True)),
    "an unknown field deep inside": ("DestinationRule", put("spec", "trafficPolicy", "tls", "hostname", value="x")),
    "a word that is none of the choices": ("WasmPlugin", put("spec", "failStrategy", value="FAIL_LOUDLY")),
    "a wrong type": ("WasmPlugin", put("spec", "url", value=7)),
    "a URL of an unknown scheme (a rule)": ("WasmPlugin", put("spec", "url", value="ftp://a/b")),
    "two ways to select at once (a rule)": (
        "WasmPlugin",
        put("spec", "targetRefs", value=[{"kind": "Gateway", "name": "x"}]),
    ),
    "a misspelt field of nimgate's": ("WasmPlugin", put("spec", "pluginConfig", value={"limit": []})),
    "neither of two that exclude each other": ("TrafficExtension", lambda one: one["spec"].pop("wasm")),
    "an operation that does not exist": (
        "EnvoyFilter",
        put("spec", "configPatches", 0, "patch", "operation", value="APPEND"),
    ),
    "a missing field": ("EnvoyPatchPolicy", lambda one: one["spec"].pop("targetRef")),
    "an image without its URL": (
        "EnvoyExtensionPolicy",
        lambda one: one["spec"]["wasm"][0]["code"]["image"].pop("url"),
    ),
    "a source that is not the one named (a rule)": (
        "EnvoyExtensionPolicy",
        put("spec", "wasm", 0, "code", "type", value="HTTP"),
    ),
    "a place both before and after (a rule)": (
        "EnvoyProxy",
        put("spec", "filterOrder", 0, "before", value="envoy.filters.http.wasm"),
    ),
    "an amount that is none": ("ClientTrafficPolicy", put("spec", "connection", "bufferLimit", value="much")),
    "a port out of range": ("HTTPRoute", put("spec", "rules", 0, "backendRefs", 0, "port", value=70000)),
    "an unknown field of Kubernetes": ("Deployment", put("spec", "replica", value=1)),
    "a wrong type in Kubernetes": ("Service", put("spec", "ports", 0, "port", value="http")),
    "a kind that is not known": ("Gateway", put("apiVersion", value="networking.istio.io/v9")),
    "a name that Kubernetes refuses": ("VirtualService", put("metadata", "name", value="Nim_Gate")),
}


if __name__ == "__main__":
    main()
