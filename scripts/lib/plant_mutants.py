"""Plants the bugs of tests/sim/mutants.toml in a copy of the filter, each with a switch, so that one build plays them all.

The filter's own source has no hooks: each snippet of the table becomes `if planted::on(N) { mutated } else { original }`
in the copy. A snippet that does not occur exactly once in its file is an error, so the table can't rot unseen.
"""

import itertools
import json
import pathlib
import re
import shutil
import sys
import tomllib

ROOT = pathlib.Path(__file__).resolve().parents[2]
TABLE = ROOT / "tests" / "sim" / "mutants.toml"

SWITCH = """//! Which planted bug is on. One thread, one module: the host says so before anything else runs.
use std::sync::atomic::{AtomicU32, Ordering};

static ON: AtomicU32 = AtomicU32::new(0);

#[unsafe(no_mangle)]
pub extern "C" fn nimgate_planted(number: u32) {
    ON.store(number, Ordering::Relaxed);
}

pub fn on(number: u32) -> bool {
    ON.load(Ordering::Relaxed) == number
}
"""

# Built once for a few minutes of simulation, so quickly rather than well.
PROFILES = """
[profile.release]
opt-level = 2
codegen-units = 16
panic = "abort"
"""


def switched(original: str, mutants: list[tuple[int, str]]) -> str:
    """The code that takes the place of `original`, be it an expression or statements."""
    code = "".join(f"if planted::on({number}) {{ {mutated} }} else " for number, mutated in mutants)
    code += f"{{ {original} }}"
    is_statement = original.rstrip().endswith((";", "}"))
    return code if is_statement else f"({code})"


def plant(text: str, file: str, mutants: list[tuple[int, dict]]) -> str:
    """`text` with all mutants of a file planted in it."""
    by_snippet: dict[str, list[tuple[int, str]]] = {}
    for number, mutant in mutants:
        by_snippet.setdefault(mutant["original"].strip("\n"), []).append((number, mutant["mutated"].strip("\n")))
    places = []
    for original, planted in by_snippet.items():
        # Layout makes no difference, so that a snippet survives rustfmt.
        pattern = r"\s+".join(re.escape(word) for word in original.split())
        found = list(re.finditer(pattern, text))
        if len(found) != 1:
            names = ", ".join(dict(mutants)[number]["name"] for number, _ in planted)
            sys.exit(f"tests/sim/mutants.toml: {names}: the snippet occurs {len(found)} times in filter/{file}: {original}")
        places.append((found[0].start(), found[0].end(), switched(found[0].group(), planted)))
    places.sort()
    for (_, end, _), (start, _, _) in itertools.pairwise(places):
        if start < end:
            sys.exit(f"tests/sim/mutants.toml: two snippets of filter/{file} overlap")
    for start, end, code in reversed(places):
        text = text[:start] + code + text[end:]
    return text


def main() -> None:
    """Writes the copy into the directory given, and beside it the list that nimgate-sim reads."""
    target = pathlib.Path(sys.argv[1])
    mutants = list(enumerate(tomllib.loads(TABLE.read_text())["mutant"], start=1))
    names = [mutant["name"] for _, mutant in mutants]
    if len(set(names)) != len(names):
        sys.exit("tests/sim/mutants.toml: two mutants have the same name")
    tree = target / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    shutil.copytree(ROOT / "filter", tree / "filter", ignore=shutil.ignore_patterns("target"))
    (tree / "planted" / "src").mkdir(parents=True)
    (tree / "planted" / "src" / "lib.rs").write_text(SWITCH)
    (tree / "planted" / "Cargo.toml").write_text('[package]\nname = "planted"\nversion = "0.0.0"\nedition = "2024"\n')
    members = ["planted"]
    for manifest in sorted((tree / "filter").glob("*/Cargo.toml")):
        members.append(f"filter/{manifest.parent.name}")
        text = manifest.read_text()
        # Tests, benchmarks and their crates are left out.
        text = re.sub(r"(?ms)^\[[^\]\n]*dev-dependencies[^\]\n]*\]\n.*?(?=^\[|\Z)", "", text)
        text = re.sub(r"(?ms)^\[\[(bench|test)\]\]\n.*?(?=^\[|\Z)", "", text)
        if re.search(r"(?m)^\[dependencies\]$", text):
            text = text.replace("[dependencies]\n", '[dependencies]\nplanted = { path = "../../planted" }\n', 1)
        else:
            text += '\n[dependencies]\nplanted = { path = "../../planted" }\n'
        manifest.write_text(text)
    workspace = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]
    package = "".join(f"{key} = {json.dumps(value)}\n" for key, value in workspace.items())
    (tree / "Cargo.toml").write_text(
        f'[workspace]\nresolver = "3"\nmembers = {json.dumps(members)}\n\n[workspace.package]\n{package}'
        f"\n[workspace.lints.rust]\n{PROFILES}"
    )
    shutil.copy(ROOT / "Cargo.lock", tree / "Cargo.lock")
    files: dict[str, list[tuple[int, dict]]] = {}
    for number, mutant in mutants:
        files.setdefault(mutant["file"], []).append((number, mutant))
    for file, planted in files.items():
        path = tree / "filter" / file
        path.write_text(plant(path.read_text(), file, planted))
    # The export must be linked in, though nothing in the module calls it.
    shell = tree / "filter" / "wasm" / "src" / "lib.rs"
    shell.write_text(shell.read_text() + "\npub use planted::nimgate_planted;\n")
    found_by = [(mutant["name"], mutant["caught_by"]) for _, mutant in mutants]
    (target / "mutants.json").write_text(json.dumps(found_by))


if __name__ == "__main__":
    main()
