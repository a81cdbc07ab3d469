"""Checks that the documents tell the truth where a machine can tell: each path of the repository that they name exists,
each metric and configuration field that the README lists is in the source and the other way round, and the size that
the README states for nimgate.wasm is within a twentieth of the module that was built.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
MODULE = ROOT / "target/wasm32-unknown-unknown/release/nimgate.wasm"
PLACES = ("filter/", "envoy/", "tests/", "scripts/", "docs/", ".ci/")


def main() -> None:
    problems = [problem for check in (paths, metrics, fields, size) for problem in check()]
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
    source = set(re.findall(r'"(nimgate_[a-z0-9_]+)"', (ROOT / "filter/src/shell/metrics.rs").read_text()))
    listed = set(re.findall(r"^\| `(nimgate_[a-z0-9_]+)", readme(), re.MULTILINE))
    for name in sorted(source - listed):
        yield f"README.md does not list the metric {name}"
    for name in sorted(listed - source):
        yield f"README.md lists the metric {name}, which does not exist"


def fields():
    raw = (ROOT / "filter/src/config/raw.rs").read_text()
    known = set(re.findall(r"pub (\w+): Option<", raw))
    text = readme()
    for name in sorted(known - {"limits"}):
        if not re.search(rf"[`.]{name}[`.]", text):
            yield f"README.md does not mention the configuration field {name}"


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


if __name__ == "__main__":
    main()
