"""Checks the Prometheus rules and the Grafana dashboard without a running Envoy.

    check_observability.py PROMTOOL

Every expression of the dashboard is PromQL that promtool parses, every metric that rules and dashboard name is one of
docs/metrics.md, every alert says what it means and what to do, and every rule has a unit test. What the expressions give
on a live Envoy is for the end-to-end tests.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
DASHBOARD = ROOT / "envoy/grafana/nimgate.json"
RULES = ROOT / "envoy/prometheus/rules.yaml"
TESTS = ROOT / "tests/data/prometheus/rules_test.yaml"
METRICS = ROOT / "docs/metrics.md"


def main() -> None:
    promtool = sys.argv[1]
    for command in (["check", "rules", RULES], ["test", "rules", TESTS]):
        if subprocess.run([promtool, *command], check=False).returncode:
            sys.exit(f"promtool {command[0]} {command[1]} failed; its own words are above")
    dashboard = json.loads(DASHBOARD.read_text())
    rules = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    asked = expressions(dashboard) | page_expressions()
    parse(promtool, asked)
    problems = [
        *unknown_metrics(asked | {f"rule {name(rule)}": rule["expr"] for rule in rules}, rules),
        *rule_problems(rules),
        *dashboard_problems(dashboard),
    ]
    for problem in problems:
        print(problem)
    if problems:
        sys.exit(1)
    print(f"{len(rules)} rules and {len(asked)} expressions, all as they should be")


def name(rule: dict) -> str:
    return rule.get("record") or rule["alert"]


def expressions(dashboard: dict) -> dict[str, str]:
    """Every expression of the dashboard by where it stands, with Grafana's own variables filled in."""
    found = {
        f"panel {panel['title']}, {target['refId']}": target["expr"]
        for panel in dashboard["panels"]
        for target in panel.get("targets", [])
    }
    found |= {f"annotation {one['name']}": one["expr"] for one in dashboard["annotations"]["list"]}
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            query = re.fullmatch(r"label_values\((.*), \w+\)", variable["query"]["query"])
            if not query:
                sys.exit(f"variable {variable['name']}: not of the form label_values(metric, label)")
            found[f"variable {variable['name']}"] = query[1]
    return {where: filled(expression) for where, expression in found.items()}


def filled(expression: str) -> str:
    return expression.replace("$__rate_interval", "1m").replace("$limit", ".*").replace("$instance", ".*")


def page_expressions() -> dict[str, str]:
    """The questions of docs/metrics.md."""
    section = METRICS.read_text().partition("## What to ask")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([^|]+) \| `(.+)` \|$", section, re.MULTILINE)
    if not rows:
        sys.exit("docs/metrics.md has no questions that this check understands")
    return {f"docs/metrics.md, {question}": expression.replace("\\|", "|") for question, expression in rows}


def parse(promtool: str, expressions: dict[str, str]) -> None:
    """Lets promtool parse expressions, as rules that record them."""
    rules = [{"record": f"parsed:{at}", "expr": expression} for at, expression in enumerate(expressions.values())]
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump({"groups": [{"name": "parsed", "rules": rules}]}, file)
        file.flush()
        command = [promtool, "check", "rules", file.name]
        result = subprocess.run(command, check=False, capture_output=True, text=True)
    if result.returncode:
        listed = "\n".join(f"{at}: {where}: {text}" for at, (where, text) in enumerate(expressions.items()))
        sys.exit(f"an expression is no PromQL:\n{result.stdout}{result.stderr}\n{listed}")


def unknown_metrics(expressions: dict[str, str], rules: list[dict]):
    known = set(re.findall(r"^\| `(nimgate_\w+)`", METRICS.read_text(), re.MULTILINE))
    histograms = set(re.findall(r"^\| `(nimgate_\w+)` \| histogram", METRICS.read_text(), re.MULTILINE))
    known |= {f"{one}_{part}" for one in histograms for part in ("bucket", "sum", "count")}
    recorded = {name(rule) for rule in rules if "record" in rule}
    for where, expression in expressions.items():
        for metric in re.findall(r"[a-zA-Z_:]*nimgate_[a-zA-Z0-9_:]+", expression):
            if metric not in known | recorded:
                yield f"{where}: the metric {metric} is not in docs/metrics.md"


def rule_problems(rules: list[dict]):
    tests = TESTS.read_text()
    for rule in rules:
        if name(rule) not in tests:
            yield f"{TESTS.relative_to(ROOT)} does not test {name(rule)}"
        if "alert" in rule:
            for field in ("summary", "description"):
                if not rule.get("annotations", {}).get(field, "").strip():
                    yield f"{name(rule)} has no {field}"
            if rule.get("labels", {}).get("severity") not in ("warning", "critical"):
                yield f"{name(rule)} has no severity that is warning or critical"


def dashboard_problems(dashboard: dict):
    ids = [panel["id"] for panel in dashboard["panels"]]
    if len(ids) != len(set(ids)):
        yield "two panels of the dashboard have one id"
    taken: dict[tuple[int, int], str] = {}
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        if at["x"] + at["w"] > 24:
            yield f"panel {panel['title']} is wider than the page"
        for cell in ((x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])):
            if cell in taken:
                yield f"panels {panel['title']} and {taken[cell]} lie over each other"
                break
            taken[cell] = panel["title"]
        if panel["type"] != "row" and not panel.get("description"):
            yield f"panel {panel['title']} has no description"


if __name__ == "__main__":
    main()
