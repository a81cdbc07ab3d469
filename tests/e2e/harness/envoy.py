"""Runs one Envoy for a test: start, reload, statistics, log, and the checks at its end."""

import fcntl
import os
import random
import re
import socket
import subprocess
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import httpx
import yaml

from . import shipped
from .programs import REPOSITORY, envoy_binary
from .shipped import Options, Ports
from .waiting import HANG_GUARD_S, wait_until

# Words that Envoy's log holds after a trap or panic in a VM. None may ever appear.
TRAP_MARKS = ("panicked", "Proxy-Wasm plugin in-VM", "VM failure", "Uncaught RuntimeError")

# Below the range from which the kernel takes ports for outgoing connections, so that a port found
# free stays free until Envoy binds it.
PORT_RANGE = (20000, 32000)
START_ATTEMPTS = 5

# Every Envoy that runs now; a failing test shows the end of their logs.
running: list["Envoy"] = []


class Envoy:
    """An Envoy on the shipped configuration, with the changes of `options`."""

    def __init__(self, fake_port: int, options: Options | None = None) -> None:
        self.options = options or Options()
        self._fake_port = fake_port
        self._own_ports: list[int] = []
        self._directory = tempfile.TemporaryDirectory(prefix="nimgate-e2e-")
        self.directory = Path(self._directory.name)
        self.log_path = self.directory / "envoy.log"
        self._process: subprocess.Popen[bytes] | None = None

    # Life.

    def start(self) -> "Envoy":
        for attempt in range(START_ATTEMPTS):
            self._spawn()
            if self._became_ready():
                running.append(self)
                return self
            if "Address already in use" not in self.log() or attempt + 1 == START_ATTEMPTS:
                break
        raise AssertionError(f"Envoy did not start:\n{self.log_tail(60)}")

    def stop(self) -> None:
        """Ends it and checks that it was healthy to the last."""
        was_alive = self._process is not None and self._process.poll() is None
        self._end_process()
        give_back(self._own_ports)
        if self in running:
            running.remove(self)
        log = self.log()
        self._directory.cleanup()
        traps = [line for line in log.splitlines() if any(mark in line for mark in TRAP_MARKS)]
        assert not traps, f"a VM trapped: {traps[:10]}"
        assert was_alive, f"Envoy had died:\n{log[-4000:]}"

    def kill_quietly(self) -> None:
        """Ends it without any check, for a start that failed or a test that failed already."""
        self._end_process()
        give_back(self._own_ports)
        if self in running:
            running.remove(self)
        self._directory.cleanup()

    def _spawn(self) -> None:
        give_back(self._own_ports)
        self._own_ports = free_ports(4)
        self.ports = Ports(*self._own_ports, fake=self._fake_port)
        self._write("envoy.yaml", shipped.bootstrap(self.directory, self.ports, self.options))
        self._write("clusters.yaml", shipped.clusters(self.ports, self.options))
        self._write("listeners.yaml", shipped.listeners(self.ports, self.options))
        self._launch()

    def _launch(self) -> None:
        environment = {**os.environ, **self.options.environment}
        for name in set(environment) - set(self.options.environment):
            if name.startswith("NVIDIA") or name.lower().endswith("_proxy"):
                del environment[name]
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    str(envoy_binary()),
                    "--config-path",
                    str(self.directory / "envoy.yaml"),
                    "--concurrency",
                    str(self.options.concurrency),
                    "--disable-hot-restart",
                    # The access log; ten seconds would be most of a test's time.
                    "--file-flush-interval-msec",
                    "200",
                    *self.options.arguments,
                ],
                cwd=REPOSITORY,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._admin = httpx.Client(
            base_url=f"http://127.0.0.1:{self.ports.admin}",
            timeout=HANG_GUARD_S,
            trust_env=False,
        )

    def _became_ready(self) -> bool:
        def settled() -> str | None:
            if self._process.poll() is not None:
                return "dead"
            try:
                answer = self._admin.get("/ready")
            except httpx.TransportError:
                return None
            if answer.status_code != 200:
                return None
            # Ready does not say that the listeners of the discovery file were accepted.
            stats = self.stats("listener_manager")
            if stats.get("listener_manager.lds.update_rejected"):
                return "refused"
            return "ready" if stats.get("listener_manager.lds.update_success") else None

        if wait_until(settled, "Envoy becomes ready") == "ready" and self._accepts():
            return True
        self._end_process()
        return False

    def _accepts(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.ports.data), timeout=5).close()
        except OSError:
            return False
        return True

    def _end_process(self) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()
        self._admin.close()

    def interrupt(self) -> None:
        """Ends the process as a crash would, to be started again on the same ports."""
        self._process.kill()
        self._process.wait()
        self._admin.close()

    def resume(self) -> None:
        """Starts it again after `interrupt`."""
        self._launch()
        assert self._became_ready(), f"Envoy did not start again:\n{self.log_tail(60)}"

    # Reload.

    def reload(self, plugin: Any = ..., **changes: Any) -> bool:
        """Rewrites listeners.yaml, waits for Envoy's verdict, and returns whether it agreed.

        After a refusal the options stay what they were, as Envoy's own configuration does.
        """
        if plugin is not ...:
            changes["plugin"] = plugin
        options = replace(self.options, **changes)
        before = self._verdicts()
        self._write("listeners.yaml", shipped.listeners(self.ports, options))
        wait_until(lambda: self._verdicts() != before, "Envoy reads the new listeners.yaml")
        accepted = self._verdicts()[0] > before[0]
        if accepted:
            self.options = options
        return accepted

    def _verdicts(self) -> tuple[int, int]:
        stats = self.stats("listener_manager.lds")
        return (
            stats["listener_manager.lds.update_success"],
            stats["listener_manager.lds.update_rejected"],
        )

    def _write(self, name: str, tree: Any) -> None:
        """Replaces a file in one step; discovery must never see half of one."""
        text = yaml.safe_dump(tree, sort_keys=False)
        temporary = self.directory / f".{name}.new"
        temporary.write_text(text)
        temporary.rename(self.directory / name)

    # Statistics.

    def admin(self, path: str) -> str:
        answer = self._admin.get(path)
        answer.raise_for_status()
        return answer.text

    def stats(self, pattern: str = "") -> dict[str, int]:
        """Counters and gauges by name, narrowed by a regular expression."""
        values = {}
        for line in self.admin(f"/stats?filter={pattern}").splitlines():
            name, _, value = line.rpartition(": ")
            if value.isdigit():
                values[name] = int(value)
        return values

    def metric(self, name: str, **labels: str) -> int:
        """The sum over a metric's series that carry these labels; 0 where there is none."""
        total = 0
        for stat, value in self.stats(f"wasmcustom.*{name}$").items():
            base, series_labels = split_stat(stat)
            if base == name and labels.items() <= series_labels.items():
                total += value
        return total

    def queue_length(self, limit: str, **labels: str) -> int:
        return self.metric("nimgate_queue_length", limit=limit, **labels)

    def requests_total(self, limit: str, **labels: str) -> int:
        return self.metric("nimgate_requests_total", limit=limit, **labels)

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def cpu_seconds(self) -> float:
        """CPU time that the process has used so far; unlike elapsed time, load does not move it."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def cpu_nanoseconds(self) -> int:
        """The same to the nanosecond, as the scheduler counts it."""
        tasks = Path(f"/proc/{self._process.pid}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks)

    def workers_cpu_nanoseconds(self) -> int:
        """The part of it that the workers used, without the main thread and its statistics."""
        tasks = Path(f"/proc/{self._process.pid}/task").iterdir()
        workers = [task for task in tasks if (task / "comm").read_text().startswith("wrk:worker")]
        return sum(int((task / "schedstat").read_text().split()[0]) for task in workers)

    # Log.

    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def log_tail(self, lines: int) -> str:
        return "\n".join(self.log().splitlines()[-lines:])

    def wait_for_log(self, pattern: str) -> str:
        """Waits for a line that matches, and returns it."""
        expression = re.compile(f".*{pattern}.*")

        def line() -> str | None:
            found = expression.search(self.log())
            return found.group(0) if found else None

        return wait_until(line, f"the log says {pattern!r}")


def split_stat(stat: str) -> tuple[str, dict[str, str]]:
    """`wasmcustom.key=.=value;.;name` into the name and its labels."""
    bare = stat.removeprefix("wasmcustom.")
    name = bare.rpartition(";.;")[2]
    labels = dict(re.findall(r"([a-z_]+)=\.=([^;]*);\.;", bare))
    return name, labels


def free_ports(count: int) -> list[int]:
    """Distinct ports that nobody listens on now, and that no other process of any run is given.

    To find a port free is not enough: Envoy shares its ports (SO_REUSEPORT), so that two which were
    given the same one would both start, and each get some of the other's connections.
    """
    found: list[int] = []
    seed = random.Random(time.monotonic_ns() ^ os.getpid())
    while len(found) < count:
        port = seed.randrange(*PORT_RANGE)
        if not _take(port):
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                give_back([port])
                continue
        found.append(port)
    return found


def give_back(ports: list[int]) -> None:
    """Lets others have ports that nobody listens on any more."""
    for port in ports:
        _taken.pop(port).close()
    ports.clear()


# Locked files, one a port; the locks end with the process.
_taken: dict[int, IO[bytes]] = {}


def _take(port: int) -> bool:
    if port in _taken:
        return False
    directory = Path(tempfile.gettempdir()) / f"nimgate-e2e-ports-{os.getuid()}"
    directory.mkdir(exist_ok=True)
    file = (directory / str(port)).open("wb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return False
    _taken[port] = file
    return True
