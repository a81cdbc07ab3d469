"""Tables of figures, and the place in docs/performance.md where each stands."""

from harness.programs import REPOSITORY


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown: the first column is words, the others are figures."""
    lines = [head, ["---", *(["---:"] * (len(head) - 1))], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write(name: str, text: str) -> None:
    """Puts `text` between the lines `<!-- name -->` and `<!-- /name -->` of the document."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    document = REPOSITORY / "docs/performance.md"
    before, found, rest = document.read_text().partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise SystemExit(f"docs/performance.md has no place for these figures: {begin} ... {end}")
    document.write_text(f"{before}{begin}\n{text}\n{end}{after}")
