"""nimgate beside other proxies that people put before such an API: the FastAPI sidecar in this folder, which has the
same kind of queue, and LiteLLM's proxy, which has none. `scripts/bench rivals` starts it.

Each gets one worker or process, as the queue of the sidecar needs, and they take turns; so does the upstream without
any of them. All requests are metered, by a limit that is never reached.
"""

import argparse
import os
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "e2e"))

import proxies
import wrk
from harness.fake import Fake
from harness.waiting import wait_until
from table import table, write
from variants import upstream

KIB = 1024
MODEL = "nvidia/bench"
SIZES = (1 * KIB, 64 * KIB)
# More than any of them can do, and hardly a burst: each request asks the bucket, and some wait a little.
RPM, BURST = 1_000_000, 10
CONNECTIONS = 50
SECONDS = 3
DIRECT = "the upstream alone"
NIMGATE = "nimgate, Envoy with one worker"
SIDECAR = "FastAPI + httpx, one process"
LITELLM = "LiteLLM's proxy, one process, no limit"
# Requests that wait at once, where that is measured.
HELD = 1_000
HELD_RPM = 1

# By size and proxy: what each round saw, with all connections and with one; and CPU seconds for each request.
Seen = dict[tuple[int, str], list[tuple[wrk.Result, wrk.Result, float]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="put the tables into docs/performance.md")
    asked = parser.parse_args()
    proxies.allow_open_files(2 * HELD)
    about = f"Medians of {asked.rounds} rounds; {os.cpu_count()} cores, load average before the run"
    about = f"{about} {os.getloadavg()[0]:.1f}."
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nimgate-bench-")))
        bodies = {size: wrk.write_body(directory, wrk.chat(MODEL, size, True)) for size in SIZES}
        seen = in_turns(bodies, asked.rounds)
        silent = stack.enter_context(Fake("--latency-ms", "3600000"))
        tables = {
            "rivals, speed": f"{about}\n\n{speed_table(seen)}",
            "rivals, memory": memory_table(bodies[1 * KIB], silent.port),
        }
    for name, text in tables.items():
        print(f"{text}\n")
        if asked.write:
            write(name, text)


def in_turns(bodies: dict[int, Path], rounds: int) -> Seen:
    seen: Seen = {}
    with ExitStack() as stack:
        quick = upstream()
        stack.callback(quick.kill_quietly)
        port = quick.ports.data
        running = {
            DIRECT: proxies.Proxy(quick.pid, port, lambda: None),
            NIMGATE: proxies.nimgate(port, RPM, BURST, workers=1),
        }
        stack.callback(running[NIMGATE].stop)
        for name, start in (
            (SIDECAR, lambda: proxies.sidecar(port, RPM, BURST)),
            (LITELLM, lambda: proxies.litellm(port)),
        ):
            running[name] = start()
            stack.callback(running[name].stop)
        for size, body in bodies.items():
            for proxy in running.values():
                wrk.run(proxy.port, body, CONNECTIONS, 1)
            for _ in range(rounds):
                for name, proxy in running.items():
                    seen.setdefault((size, name), []).append(once(name, proxy, body))
            print({name: f"{rate(seen, size, name):,.0f}/s" for name in running}, file=sys.stderr)
    return seen


def once(name: str, proxy: proxies.Proxy, body: Path) -> tuple[wrk.Result, wrk.Result, float]:
    before = proxy.cpu()
    busy = wrk.run(proxy.port, body, CONNECTIONS, SECONDS)
    used = proxy.cpu() - before
    # A slow one goes on with what its clients no longer wait for.
    wait_until(proxy.is_idle, f"{name} has nothing to do", proxies.HELD_WITHIN_S)
    alone = wrk.run(proxy.port, body, 1, SECONDS)
    for result in (busy, alone):
        if result.refused or result.broken or not result.requests:
            raise SystemExit(f"{name} refused or broke off requests, so nothing was measured: {result}")
    return busy, alone, used / busy.requests


def rate(seen: Seen, size: int, name: str) -> float:
    return statistics.median(busy.requests / busy.seconds for busy, _, _ in seen[size, name])


def speed_table(seen: Seen) -> str:
    head = ["proxy", "requests a second", "of nimgate's", "CPU for each", "p50, p99 with one client", "added"]
    rows = []
    for size, name in seen:
        rates = rate(seen, size, name), rate(seen, size, NIMGATE)
        cpu = statistics.median(used for _, _, used in seen[size, name])
        p50, p99 = times(seen, size, name)
        bare50, bare99 = times(seen, size, DIRECT)
        row = [f"{name}, {size // KIB} KB", f"{rates[0]:,.0f}"]
        row += ["", ""] if name == DIRECT else [f"{rates[0] / rates[1]:.3f} ×", f"{cpu * 1e3:,.2f} ms"]
        row.append(f"{p50:,.2f}, {p99:,.2f} ms")
        row.append("" if name == DIRECT else f"{p50 - bare50:,.2f}, {p99 - bare99:,.2f} ms")
        rows.append(row)
    return table(head, rows)


def times(seen: Seen, size: int, name: str) -> tuple[float, float]:
    """Milliseconds that a lone client waits: the median, and the 99th percentile."""
    alone = [result for _, result, _ in seen[size, name]]
    return statistics.median(of.p50 for of in alone) * 1e3, statistics.median(of.p99 for of in alone) * 1e3


def memory_table(body: Path, silent_port: int) -> str:
    starts = {
        NIMGATE: lambda: proxies.nimgate(silent_port, HELD_RPM, 1, workers=1, queue=2 * HELD),
        SIDECAR: lambda: proxies.sidecar(silent_port, HELD_RPM, 1),
        # Here they wait for the upstream, which does not answer.
        LITELLM: lambda: proxies.litellm(silent_port),
    }
    rows = []
    for name, start in starts.items():
        proxy = start()
        try:
            proxy.settle(0)
            before = proxy.memory()
            with proxy.holding(body, HELD):
                after = proxy.memory()
        finally:
            proxy.stop()
        rows.append(
            [name, f"{before / 1e6:,.0f} MB", f"{after / 1e6:,.0f} MB", f"{(after - before) / HELD / 1e3:.0f} kB"]
        )
        print(rows[-1], file=sys.stderr)
    return table(["proxy", "nobody waits", f"{HELD:,} wait with 1 KB each", "each"], rows)


if __name__ == "__main__":
    main()
