"""Checks the crates that Cargo.lock names, from `cargo metadata` on standard input: each comes from crates.io, pinned by
its checksum, or is this workspace's own, and each may be used under a permissive licence.
"""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CRATES_IO = "registry+https://github.com/rust-lang/crates.io-index"
PERMISSIVE = {
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
}


def main() -> None:
    metadata = json.load(sys.stdin)
    own = set(metadata["workspace_members"])
    problems = []
    for package in metadata["packages"]:
        name = f"{package['name']} {package['version']}"
        if package["id"] not in own and package["source"] != CRATES_IO:
            problems.append(f"{name} does not come from crates.io")
        if not permitted(package["license"] or ""):
            problems.append(f"{name} has the licence {package['license']!r}, which is not on the list")
    for block in (ROOT / "Cargo.lock").read_text().split("[[package]]")[1:]:
        if "source = " in block and "checksum = " not in block:
            problems.append(f"Cargo.lock pins no checksum for {block.split()[2]}")
    if problems:
        sys.exit("\n".join(problems))
    print(f"{len(metadata['packages'])} crates, all as they should be")


def permitted(expression: str) -> bool:
    """Whether the SPDX expression can be met. Older crates write `/` for OR."""
    text = re.sub(r"\s*/\s*", " OR ", expression)
    while inner := re.search(r"\(([^()]*)\)", text):
        text = text[: inner.start()] + ("MIT" if permitted(inner[1]) else "none") + text[inner.end() :]
    return any(all(term.strip() in PERMISSIVE for term in choice.split(" AND ")) for choice in text.split(" OR "))


if __name__ == "__main__":
    main()
