"""Writes what a release has in words: the manifests with version and digest filled in, the change log's entry, and how it was
built. Called by scripts/release with the version, what it was built from, and the directory, which holds the image already.
"""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PLACEHOLDER = "registry.example.com/nimgate:VERSION"


def main() -> None:
    version, built_from, release = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    index = json.loads((release / "image/index.json").read_text())
    digests = {one["annotations"]["org.opencontainers.image.ref.name"]: one["digest"] for one in index["manifests"]}
    for kind in ("istio", "gateway"):
        for source in sorted((ROOT / "envoy" / kind).glob("*.yaml")):
            target = release / "envoy" / kind / source.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(filled_in(source.read_text(), version, digests["image"]))
    (release / "CHANGES.md").write_text(entry(version))
    lines = [f"nimgate {version}", built_from, *(f"{form}: {digest}" for form, digest in digests.items())]
    (release / "BUILT").write_text("".join(f"{line}\n" for line in lines))


def filled_in(text: str, version: str, digest: str) -> str:
    """By tag and digest: no other image can come in under that name. Envoy Gateway has a field of its own for it."""
    in_a_field = rf"^( +)url: {re.escape(PLACEHOLDER)}$"
    tagged = PLACEHOLDER.replace("VERSION", version)
    text = re.sub(in_a_field, rf"\1url: {tagged}\n\1sha256: {digest.removeprefix('sha256:')}", text, flags=re.MULTILINE)
    text = text.replace(PLACEHOLDER, f"{tagged}@{digest}")
    if "VERSION" in text:
        sys.exit("a manifest still says VERSION where the release's should stand")
    return text


def entry(version: str) -> str:
    """The part of the change log on this version; what is not released yet if it has none."""
    log = (ROOT / "CHANGELOG.md").read_text()
    parts = re.split(r"^(?=## )", log, flags=re.MULTILINE)[1:]
    of_version = [part for part in parts if re.match(rf"## \[?{re.escape(version)}\]?(\s|$)", part)]
    unreleased = [part for part in parts if re.match(r"## \[?Unreleased\]?", part)]
    if not of_version and not unreleased:
        sys.exit(f"CHANGELOG.md says nothing about {version}; give it an entry")
    return (of_version or unreleased)[0].rstrip() + "\n"


if __name__ == "__main__":
    main()
