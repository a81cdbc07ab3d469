"""The proxies that are compared, each a process on a port: nimgate on Envoy, the sidecar here, and LiteLLM's."""

import json
import os
import resource
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import wrk
from harness.envoy import free_ports
from harness.nimgate import configuration, limit
from harness.waiting import wait_until
from variants import envoy

# Python programs of this size take long to start on a busy machine.
STARTS_WITHIN_S = 300.0
# Long enough for the slowest of them to take in thousands of requests.
HELD_WITHIN_S = 250.0
# What each of them may have open besides its clients.
SPARE_FILES = 1_000


class Proxy:
    """A proxy that runs: its process, its port, how to end it, and where it tells that, the bytes of its heap."""

    def __init__(self, pid: int, port: int, stop: Callable[[], None], heap: Callable[[], int] | None = None) -> None:
        self.pid, self.port, self.stop, self._heap = pid, port, stop, heap

    def heap(self) -> int:
        """Bytes that the process has allocated and not freed. What a Wasm VM has is not among them."""
        return self._heap() if self._heap else 0

    def cpu(self) -> float:
        """Seconds that the process has used so far."""
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

    def is_idle(self) -> bool:
        """Whether it has next to nothing to do, for a second."""
        before = self.cpu()
        time.sleep(1)
        return self.cpu() - before < 0.05

    def settle(self, connections: int) -> None:
        """Waits until it has so many clients and nothing to do: it has taken all in."""

        def settled() -> bool:
            if self.connections() != connections:
                time.sleep(0.1)
                return False
            return self.is_idle() and self.connections() == connections

        wait_until(settled, f"{connections} clients are taken in", HELD_WITHIN_S)

    @contextmanager
    def holding(self, body: Path, count: int) -> Iterator[None]:
        """So many requests wait in it."""
        words, environment = wrk.command(self.port, body, count, 3600)
        load = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL)
        try:
            self.settle(count)
            yield
        finally:
            load.kill()
            load.wait()


def allow_open_files(clients: int) -> None:
    """One descriptor for each request that waits, here and in what is started."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard < clients + SPARE_FILES:
        raise SystemExit(f"{hard} open files are too few; raise the hard limit (ulimit -Hn) to {clients + SPARE_FILES}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def nimgate(upstream_port: int, rpm: int, burst: int, workers: int, queue: int = 1_000) -> Proxy:
    rules = limit("nvidia", rate_rpm=rpm, bucket_capacity=burst, queue_max_size=queue, request_timeout_s=280)
    running = envoy("nimgate", workers, upstream_port, configuration(rules))

    def heap() -> int:
        return int(json.loads(running.admin("/memory"))["allocated"])

    return Proxy(running.pid, running.ports.data, running.kill_quietly, heap)


class Rival:
    """A proxy in Python. Its processes are in a group of their own, so that all of them end."""

    def __init__(self, command: list[str], environment: dict[str, str], port: int) -> None:
        self.port = port
        self._directory = tempfile.TemporaryDirectory(prefix="nimgate-bench-")
        self._log = Path(self._directory.name) / "log"
        clean = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self._directory.name,
                env={**clean, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            wait_until(self._answers, f"{command[0]} listens", STARTS_WITHIN_S)
        except AssertionError:
            self.stop()
            raise

    def proxy(self) -> Proxy:
        return Proxy(self._process.pid, self.port, self.stop)

    def _answers(self) -> bool:
        if self._process.poll() is not None:
            raise SystemExit(f"{self._process.args} ended at once:\n{self._log.read_text(errors='replace')[-4000:]}")
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._directory.cleanup()


def sidecar(upstream_port: int, rpm: int, burst: int) -> Proxy:
    """FastAPI and httpx: one process, as a queue in the memory of a process must be."""
    (port,) = free_ports(1)
    command = [os.environ["NIMGATE_SIDECAR_PYTHON"], "-m", "uvicorn", "--app-dir", str(Path(__file__).parent)]
    command += ["--port", str(port), "--backlog", "8192", "--log-level", "warning", "--no-access-log", "sidecar:app"]
    environment = {
        "SIDECAR_UPSTREAM": f"http://127.0.0.1:{upstream_port}",
        "SIDECAR_RPM": str(rpm),
        "SIDECAR_BURST": str(burst),
    }
    return Rival(command, environment, port).proxy()


def litellm(upstream_port: int) -> Proxy:
    """LiteLLM's proxy with one worker and nothing switched on that could cost. It refuses what is over a limit and has
    no queue in which requests wait for a token, so it has no limit here."""
    python = os.environ["NIMGATE_LITELLM_PYTHON"]
    (port,) = free_ports(1)
    upstream = {"model": "openai/*", "api_base": f"http://127.0.0.1:{upstream_port}/v1", "api_key": "none"}
    # JSON is YAML too.
    config = {
        "model_list": [{"model_name": "nvidia/*", "litellm_params": upstream}],
        "litellm_settings": {"telemetry": False, "num_retries": 0, "request_timeout": 3600},
        # No key to check is the cheapest for it, and only this machine reaches it.
        "general_settings": {"dangerously_permit_weak_or_unset_master_key": True},
    }
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", delete=False) as file:
        json.dump(config, file)
    environment = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR", "LITELLM_TELEMETRY": "False"}
    command = [str(Path(python).parent / "litellm"), "--config", file.name, "--host", "127.0.0.1"]
    try:
        return Rival([*command, "--port", str(port), "--num_workers", "1"], environment, port).proxy()
    finally:
        # It has been read by the time that the proxy listens.
        os.unlink(file.name)
