"""What a request costs that nimgate lets pass: CPU of the Envoy process and latency, beside plain Envoy, Envoy's buffer
filter, a Wasm filter that does nothing, and what Envoy has of its own to limit by a model.

All Envoys run at once and take turns, a second each, several rounds; a ratio is made within each round, and the median
of the rounds counts. So other work on the machine moves the figures little. `scripts/bench passed` starts it.
"""

import argparse
import os
import statistics
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

import wrk
from harness.envoy import Envoy
from table import table, write
from variants import NAMES, envoy, upstream

KIB = 1024
SIZES = (1 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, 1024 * KIB)
WORKERS = (1, 2)
# A model of someone else's, so that every request passes.
MODEL = "gpt-4o-mini"
# What may be told of the CPU of a passed request against that of the no-op filter.
TARGETS = {1 * KIB: 1.10, 16 * KIB: 1.10, 64 * KIB: 1.25, 256 * KIB: 1.25, 1024 * KIB: 1.5}


@dataclass(frozen=True)
class Cell:
    """One variant in one round. `cpu`, `p50` and `p99` in seconds."""

    cpu: float
    p50: float
    p99: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--connections", type=int, default=4, help="for each of Envoy's workers")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/performance.md")
    asked = parser.parse_args()
    before = os.getloadavg()[0]
    cells = measure(asked)
    tables = [
        f"Median of {asked.rounds} rounds; {os.cpu_count()} cores, load average before the run {before:.1f}.",
        cpu_table(cells),
        latency_table(cells),
    ]
    print("\n\n".join(tables))
    if asked.write:
        write("passed", "\n\n".join(tables))


Cells = dict[tuple[int, int, str], list[Cell]]


def measure(asked: argparse.Namespace) -> Cells:
    """By workers, size and variant: one cell for each round."""
    cells: Cells = {}
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nimgate-bench-")))
        bodies = {
            (size, first): wrk.write_body(directory, wrk.chat(MODEL, size, first))
            for size in SIZES
            for first in (True, False)
        }
        back = upstream()
        stack.callback(back.kill_quietly)
        for workers in WORKERS:
            with ExitStack() as these:
                envoys = {}
                for name in NAMES:
                    envoys[name] = envoy(name, workers, back.ports.data)
                    these.callback(envoys[name].kill_quietly)
                for size in SIZES:
                    for round_ in range(asked.rounds):
                        for label, name, first in turns(round_):
                            cell = take(envoys[name], bodies[size, first], workers * asked.connections)
                            cells.setdefault((workers, size, label), []).append(cell)
                    print(progress(cells, workers, size), file=sys.stderr)
                for running in envoys.values():
                    running.stop()
    return cells


def turns(round_: int) -> list[tuple[str, str, bool]]:
    """Label, variant and whether the model stands first. Where it stands can make a difference to nimgate alone; the
    others get it in turns."""
    first = round_ % 2 == 0
    order = [(name, name, first) for name in NAMES if name != "nimgate"]
    order[3:3] = [("model first", "nimgate", True), ("model last", "nimgate", False)]
    # Each round begins with another one, so that none always comes after the same.
    at = round_ % len(order)
    return order[at:] + order[:at]


def take(running: Envoy, body: Path, connections: int) -> Cell:
    began = running.cpu_nanoseconds()
    busy = wrk.run(running.ports.data, body, connections, 1)
    used = running.cpu_nanoseconds() - began
    alone = wrk.run(running.ports.data, body, 1, 1)
    wrong = busy.refused + busy.broken + alone.refused + alone.broken
    if wrong or not busy.requests or not alone.requests:
        raise SystemExit(f"requests failed, so nothing was measured: {busy}, {alone}")
    return Cell(used / 1e9 / busy.requests, alone.p50, alone.p99)


def ratio(cells: Cells, key: tuple[int, int], of: str, to: str) -> float:
    """The median over the rounds of one variant's CPU against another's in the same round."""
    return statistics.median(this.cpu / that.cpu for this, that in zip(cells[*key, of], cells[*key, to], strict=True))


LABELS = ("buffer", "noop", "model first", "model last", "json_to_metadata")
SHOWN = ("plain", *LABELS)


def size_name(size: int) -> str:
    return f"{size // KIB} KB" if size < 1024 * KIB else f"{size // KIB // 1024} MB"


def progress(cells: Cells, workers: int, size: int) -> str:
    ratios = ", ".join(f"{label} {ratio(cells, (workers, size), label, 'plain'):.2f}" for label in LABELS)
    return f"{workers} workers, {size_name(size)}: {ratios}"


def cpu_table(cells: Cells) -> str:
    head = ["workers, body", "plain Envoy", "buffer filter", "no-op Wasm", "nimgate, model first", "model last"]
    head += ["json_to_metadata + local_ratelimit", "nimgate / no-op", "should reach"]
    rows = []
    for workers in WORKERS:
        for size in SIZES:
            key = (workers, size)
            plain = statistics.median(cell.cpu for cell in cells[*key, "plain"])
            row = [f"{workers}, {size_name(size)}", f"{plain * 1e6:.0f} µs"]
            row += [f"{ratio(cells, key, label, 'plain'):.2f} ×" for label in LABELS]
            against = [ratio(cells, key, label, "noop") for label in ("model first", "model last")]
            rows.append([*row, f"{statistics.mean(against):.2f} ×", f"{TARGETS[size]:.2f} ×"])
    return table(head, rows)


def latency_table(cells: Cells) -> str:
    head = ["workers, body", "plain Envoy", "buffer filter", "no-op Wasm", "nimgate, model first", "model last"]
    head.append("json_to_metadata + local_ratelimit")
    rows = []
    for workers in WORKERS:
        for size in SIZES:
            p50, p99 = (
                {label: statistics.median(which(cell) for cell in cells[workers, size, label]) for label in SHOWN}
                for which in (lambda cell: cell.p50 * 1e6, lambda cell: cell.p99 * 1e6)
            )
            row = [f"{workers}, {size_name(size)}", f"{p50['plain']:.0f}, {p99['plain']:.0f} µs"]
            row += [f"{p50[label] - p50['plain']:+.0f}, {p99[label] - p99['plain']:+.0f}" for label in LABELS]
            rows.append(row)
    return table(head, rows)


if __name__ == "__main__":
    main()
