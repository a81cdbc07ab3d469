"""What requests cost that wait in nimgate: memory of each, and how many a second go through the queue.
`scripts/bench held` starts it.
"""

import argparse
import os
import socket
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "e2e"))

import proxies
import wrk
from harness.fake import Fake
from table import table, write
from variants import upstream

KIB = 1024
MODEL = "nvidia/bench"
WORKERS = 2
SIZES = (1 * KIB, 16 * KIB)
COUNTS = (1_000, 10_000)
# One goes through, and the next would in a minute.
HELD_RPM, HELD_BURST = 1, 1
RATES_RPM = (30_000, 120_000, 300_000, 1_000_000)
BURST = 10
SECONDS = 5
CONNECTIONS = 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the tables into docs/performance.md")
    asked = parser.parse_args()
    proxies.allow_open_files(max(COUNTS))
    about = f"{os.cpu_count()} cores, load average before the run {os.getloadavg()[0]:.1f}."
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nimgate-bench-")))
        bodies = {size: wrk.write_body(directory, wrk.chat(MODEL, size, True)) for size in SIZES}
        silent = stack.enter_context(Fake("--latency-ms", "3600000"))
        quick = upstream()
        stack.callback(quick.kill_quietly)
        tables = {
            "held, memory": f"{about}\n\n{memory_table(bodies, silent.port)}",
            "held, throughput": throughput_table(bodies[1 * KIB], quick.ports.data),
        }
    for name, text in tables.items():
        print(f"{text}\n")
        if asked.write:
            write(name, text)


def memory_table(bodies: dict[int, Path], silent_port: int) -> str:
    head = ["what the clients do", "none", *(f"{count:,}" for count in COUNTS), "each", "each, allocated by Envoy"]
    rows = []
    for size in (0, *SIZES):
        memory = [held(silent_port, bodies.get(size), count) for count in (0, *COUNTS)]
        label = f"wait with {size // KIB} KB" if size else "are connected and send nothing"
        each = [(last - first) / COUNTS[-1] for first, last in zip(memory[0], memory[-1], strict=True)]
        shown = [f"{whole / 1e6:,.0f} MB" for whole, _ in memory]
        rows.append([label, *shown, *(f"{value / 1e3:.1f} kB" for value in each)])
        print(rows[-1], file=sys.stderr)
    return table(head, rows)


def held(silent_port: int, body: Path | None, count: int) -> tuple[int, int]:
    """Memory and heap of an Envoy in which so many requests wait; without a body, to which so many clients are
    connected."""
    proxy = proxies.nimgate(silent_port, HELD_RPM, HELD_BURST, WORKERS, queue=2 * max(COUNTS))
    try:
        with ExitStack() as clients:
            if body is None or count == 0:
                for _ in range(count):
                    clients.enter_context(socket.create_connection(("127.0.0.1", proxy.port)))
                proxy.settle(count)
            else:
                clients.enter_context(proxy.holding(body, count))
            return proxy.memory(), proxy.heap()
    finally:
        proxy.stop()


def throughput_table(body: Path, quick_port: int) -> str:
    head = ["`rate_rpm`", "tokens a second", "requests a second", "of the tokens", "CPU of Envoy for each"]
    rows = []
    for rpm in RATES_RPM:
        proxy = proxies.nimgate(quick_port, rpm, BURST, WORKERS)
        try:
            wrk.run(proxy.port, body, CONNECTIONS, 2)
            before = proxy.cpu()
            seen = wrk.run(proxy.port, body, CONNECTIONS, SECONDS)
            used = proxy.cpu() - before
        finally:
            proxy.stop()
        if seen.refused or seen.broken:
            raise SystemExit(f"requests were refused or broke off, so nothing was measured: {seen}")
        rate = seen.requests / seen.seconds
        share = f"{rate / rpm * 6000:.1f} %"
        rows.append([f"{rpm:,}", f"{rpm // 60:,}", f"{rate:,.0f}", share, f"{used / seen.requests * 1e6:.0f} µs"])
        print(rows[-1], file=sys.stderr)
    return table(head, rows)


if __name__ == "__main__":
    main()
