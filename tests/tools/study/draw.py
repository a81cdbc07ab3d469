"""Draws the study's figures, and writes its tables into docs/retreat.md."""

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt

plt.switch_backend("Agg")
plt.rcParams.update(
    {
        "svg.hashsalt": "nimgate",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "figure.facecolor": "white",
        "axes.grid": True,
        "grid.color": "#e4e4e4",
    }
)

DOCUMENT = Path("docs/retreat.md")
PICTURES = Path("docs/retreat")
COLOURS = {
    "nimgate": "#4c9a00",
    "no retreat": "#999999",
    "fixed steps": "#c46b00",
    "AIMD": "#2f6fb0",
    "AWS adaptive": "#b03a6f",
    "limit known": "#222222",
}
DEMANDS = {"low": "0.4 of what is allowed", "exact": "what is allowed", "threefold": "three times"}


def main() -> None:
    study = json.loads(Path(sys.argv[1]).read_text())
    PICTURES.mkdir(exist_ok=True)
    draw_rates(study["lines"])
    draw_all(study["lines"])
    draw_trade(study["trade"])
    write_tables(study)


def save(figure: "plt.Figure", name: str) -> None:
    figure.tight_layout()
    figure.savefig(PICTURES / f"{name}.svg", metadata={"Date": None})
    plt.close(figure)


def draw_rates(lines: list[dict]) -> None:
    """The rate over time, three-fold demand, the first seed."""
    scenarios = ["rolling window", "drop and rise", "outside consumer"]
    names = [name for name in COLOURS if name not in ("no retreat", "limit known")]
    figure, rows = plt.subplots(len(scenarios), len(names), figsize=(11, 6), sharex=True, sharey=True, squeeze=False)
    for axes, scenario in zip(rows, scenarios, strict=True):
        for axis, name in zip(axes, names, strict=True):
            line = next(
                line
                for line in lines
                if (line["scenario"], line["demand"], line["controller"]) == (scenario, "threefold", name)
            )
            axis.step(*zip(*line["rates"], strict=True), color=COLOURS[name], linewidth=1)
            axis.set_ylim(0, 42)
            axis.set_title(f"{name}: {scenario}", fontsize=9)
    for axis in rows[-1]:
        axis.set_xlabel("minutes")
    for row in rows:
        row[0].set_ylabel("requests per minute")
    save(figure, "rates")


def draw_all(lines: list[dict]) -> None:
    """Every scenario as a point: goodput against refusals."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), sharey=True)
    for axis, demand in zip(axes, ["exact", "threefold"], strict=True):
        for name, colour in COLOURS.items():
            if name == "limit known":
                continue
            chosen = [line["figures"] for line in lines if line["controller"] == name and line["demand"] == demand]
            refused = [100 * (one["refused"] + one["worker_full"]) for one in chosen]
            axis.scatter(
                [max(share, 0.1) for share in refused],
                [100 * one["goodput"] for one in chosen],
                color=colour,
                label=name,
                alpha=0.75,
                s=28,
            )
        axis.set_xscale("log")
        axis.set_xticks([0.1, 0.3, 1, 3, 10, 30], ["0.1", "0.3", "1", "3", "10", "30"])
        axis.set_xlabel("refused, % of all answers")
        axis.set_title(f"demand: {DEMANDS[demand]}", fontsize=9)
    axes[0].set_ylabel("goodput, % of the omniscient scheduler's")
    axes[0].legend(loc="lower left", frameon=False)
    save(figure, "all")


def draw_trade(trade: list[dict]) -> None:
    figure, axis = plt.subplots(figsize=(6.5, 3.6))
    axis.plot(
        [100 * one["refused"] for one in trade],
        [one["back_after_worst"] for one in trade],
        "o-",
        color=COLOURS["nimgate"],
    )
    for one in trade:
        axis.annotate(
            f"{one['probe_windows']} ({one['goodput']:.1%})",
            (100 * one["refused"], one["back_after_worst"]),
            textcoords="offset points",
            xytext=(6, 4),
            fontsize=8,
        )
    axis.axhline(8, color="#c46b00", linewidth=0.8, linestyle="--")
    axis.set_xlabel("refused, % of all answers, at a steady rolling window of 25 rpm")
    axis.set_ylabel("windows until a raised limit is used")
    save(figure, "trade")


def write_tables(study: dict) -> None:
    text = DOCUMENT.read_text()
    lines = study["lines"]
    for demand in [*DEMANDS, "twice"]:
        text = between(text, demand, table(lines, demand))
    text = between(text, "trade", trade_table(study["trade"]))
    text = between(text, "waits", waits_table(lines))
    DOCUMENT.write_text(text)


def between(text: str, name: str, new: str) -> str:
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    before, rest = text.split(begin, 1)
    return before + begin + new + end + rest.split(end, 1)[1]


def table(lines: list[dict], demand: str) -> str:
    names = list(COLOURS)
    rows = ["| scenario | " + " | ".join(names) + " |", "| --- |" + " ---: |" * len(names)]
    chosen = [line for line in lines if line["demand"] == demand]
    for scenario in dict.fromkeys(line["scenario"] for line in chosen):
        cells = []
        for name in names:
            one = next(line["figures"] for line in chosen if (line["scenario"], line["controller"]) == (scenario, name))
            refused = one["refused"] + one["worker_full"]
            cells.append(f"{100 * one['goodput']:.1f} / {100 * refused:.1f}")
        rows.append(f"| {scenario} | " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


def trade_table(trade: list[dict]) -> str:
    rows = [
        "| `probe_windows` | goodput, % | refused, % | back after, windows |",
        "| ---: | ---: | ---: | ---: |",
    ]
    rows += [
        f"| {one['probe_windows']} | {100 * one['goodput']:.1f} | {100 * one['refused']:.2f}"
        f" | {one['back_after_worst']:.1f} |"
        for one in trade
    ]
    return "\n".join(rows) + "\n"


def waits_table(lines: list[dict]) -> str:
    rows = [
        "| scenario | refused in the first ten windows | refused after that, % | longest time without a"
        " grant, s | wait of `urgent`, median / 99 %, s | back after, windows |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for line in lines:
        if (line["controller"], line["demand"]) != ("nimgate", "threefold"):
            continue
        one = line["figures"]
        back = one["back_after_worst"]
        rows.append(
            f"| {line['scenario']} | {one['refused_at_first']:.1f}"
            f" | {100 * one['refused_later']:.2f} | {one['longest_idle_s']:.0f}"
            f" | {one['urgent_p50_s']:.1f} / {one['urgent_p99_s']:.1f}"
            f" | {'' if back is None else f'{back:.1f}'} |"
        )
    return "\n".join(rows) + "\n"


main()
