"""What requests cost that wait: memory of each, and how many a second go through the queue; nimgate on Envoy beside a
FastAPI sidecar that does the same, and LiteLLM's proxy, in one run on one machine. `scripts/bench held` starts it.

LiteLLM's proxy refuses what is over a limit and has no queue that holds requests for a token; there the requests wait
for an upstream that does not answer, and its throughput is that without any limit.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))

import rivals
import wrk
from harness.fake import Fake
from harness.nimgate import configuration, limit
from harness.waiting import wait_until
from table import table, write
from variants import envoy, upstream

KIB = 1024
SIZES = (1 * KIB, 16 * KIB)
COUNTS = (1_000, 5_000)
MODEL = "nvidia/bench"
# Nobody gets a second token within the run.
HELD_RPM = 1
# Far more than any of these can do, so that the queue is what is measured; and one that all of them can do.
RATES = (1_000_000, 30_000)
BURST = 10
SECONDS = 5
CONNECTIONS = 200
# Long enough for the slowest of them to take in its requests.
HELD_WITHIN_S = 300.0


class Proxy:
    """What is measured: a process, its port, and how to end it."""

    def __init__(self, pid: int, port: int, stop: Callable[[], None]) -> None:
        self.pid, self.port, self.stop = pid, port, stop

    def cpu(self) -> float:
        tasks = Path(f"/proc/{self.pid}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9

    def memory(self) -> int:
        """Bytes of memory that are the process's own or shared, and present."""
        pages = Path(f"/proc/{self.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def connections(self) -> int:
        """Clients that it has accepted: established sockets on its port that some process owns."""
        port = f":{self.port:04X}"
        lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
        return sum(
            fields[1].endswith(port) and fields[3] == "01" and fields[9] != "0" for fields in map(str.split, lines)
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put the tables into docs/performance.md")
    asked = parser.parse_args()
    # One descriptor for each request that waits, here and in what is started.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard < 2 * max(COUNTS) + 1_000:
        raise SystemExit(f"{hard} open files are too few; raise the hard limit (ulimit -Hn)")
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nimgate-bench-")))
        bodies = {size: wrk.write_body(directory, wrk.chat(MODEL, size, True)) for size in SIZES}
        quick = upstream()
        stack.callback(quick.kill_quietly)
        silent = stack.enter_context(Fake("--latency-ms", "3600000"))
        texts = [
            f"{os.cpu_count()} cores, load average before the run {os.getloadavg()[0]:.1f}.",
            memory_table(bodies, silent.port),
            throughput_table(bodies[1 * KIB], quick.ports.data),
        ]
    print("\n\n".join(texts))
    if asked.write:
        write("held", "\n\n".join(texts))


def nimgate(upstream_port: int, rpm: int) -> Proxy:
    rules = limit("nvidia", rate_rpm=rpm, bucket_capacity=BURST, queue_max_size=2 * max(COUNTS), request_timeout_s=280)
    running = envoy("nimgate", 2, upstream_port, configuration(rules))
    return Proxy(running.pid, running.ports.data, running.kill_quietly)


def sidecar(upstream_port: int, rpm: int) -> Proxy:
    running = rivals.sidecar(upstream_port, rpm, BURST)
    return Proxy(running.pid, running.port, running.stop)


def litellm(upstream_port: int, _: int) -> Proxy | None:
    running = rivals.litellm(upstream_port)
    return running and Proxy(running.pid, running.port, running.stop)


PROXIES = {
    "nimgate, Envoy with two workers": nimgate,
    "FastAPI + httpx, one process": sidecar,
    "LiteLLM's proxy, one process": litellm,
}
MISSING = "could not be installed"


def memory_table(bodies: dict[int, Path], silent_port: int) -> str:
    head = ["proxy, body", "nobody waits", *(f"{count:,} wait" for count in COUNTS), "each"]
    rows = []
    for name, start in PROXIES.items():
        for size in SIZES:
            row = [f"{name}, {size // KIB} KB"]
            proxy = start(silent_port, HELD_RPM)
            if proxy is None:
                rows.append([*row, MISSING, *[""] * (len(head) - 2)])
                continue
            try:
                at_rest(proxy, 0)
                memory = [proxy.memory(), *(held(proxy, bodies[size], count) for count in COUNTS)]
            finally:
                proxy.stop()
            row += [f"{value / 1e6:,.0f} MB" for value in memory]
            rows.append([*row, f"{(memory[-1] - memory[0]) / COUNTS[-1] / 1e3:.1f} KB"])
            print(rows[-1], file=sys.stderr)
    return table(head, rows)


def held(proxy: Proxy, body: Path, count: int) -> int:
    """Memory with so many requests that wait; they leave afterwards."""
    words, environment = wrk.command(proxy.port, body, count, 3600)
    load = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL)
    try:
        at_rest(proxy, count)
        return proxy.memory()
    finally:
        load.kill()
        load.wait()
        at_rest(proxy, 0)


def at_rest(proxy: Proxy, connections: int) -> None:
    """Waits until the proxy has so many clients and, for a second, next to nothing to do: it has taken all in."""

    def rests() -> bool:
        if proxy.connections() != connections:
            time.sleep(0.1)
            return False
        before = proxy.cpu()
        time.sleep(1)
        return proxy.cpu() - before < 0.05 and proxy.connections() == connections

    wait_until(rests, f"{connections} requests are held", HELD_WITHIN_S)


def throughput_table(body: Path, quick_port: int) -> str:
    head = ["proxy", "tokens a second", "requests a second", "p50", "p99", "CPU of the proxy for each"]
    rows = []
    for rpm in RATES:
        for name, start in PROXIES.items():
            no_limit = start is litellm
            if no_limit and rpm != RATES[0]:
                continue
            proxy = start(quick_port, rpm)
            offered = "no limit" if no_limit else f"{rpm // 60:,}"
            if proxy is None:
                rows.append([name, offered, MISSING, "", "", ""])
                continue
            try:
                wrk.run(proxy.port, body, CONNECTIONS, 2)
                before = proxy.cpu()
                seen = wrk.run(proxy.port, body, CONNECTIONS, SECONDS)
                used = proxy.cpu() - before
            finally:
                proxy.stop()
            if seen.refused or seen.broken:
                raise SystemExit(f"{name} refused or broke off requests, so nothing was measured: {seen}")
            times = [f"{value * 1e3:,.1f} ms" for value in (seen.p50, seen.p99)]
            rows.append([name, offered, f"{seen.requests / seen.seconds:,.0f}", *times])
            rows[-1].append(f"{used / seen.requests * 1e3:.2f} ms")
            print(rows[-1], file=sys.stderr)
    return table(head, rows)


if __name__ == "__main__":
    main()
