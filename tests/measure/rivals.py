"""The other proxies that hold requests, each a process on a port: the sidecar in this folder, and LiteLLM's proxy."""

import json
import os
import signal
import socket
import subprocess
import tempfile
from pathlib import Path

from harness.envoy import free_ports
from harness.waiting import wait_until

# Python programs of this size take long to start on a busy machine.
STARTS_WITHIN_S = 300.0


class Rival:
    """A proxy that runs. Its processes are in a group of their own, so that all of them end."""

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

    @property
    def pid(self) -> int:
        return self._process.pid

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


def sidecar(upstream_port: int, rpm: int, burst: int) -> Rival:
    """FastAPI and httpx: one process, as a queue in the memory of a process must be."""
    (port,) = free_ports(1)
    command = [os.environ["NIMGATE_SIDECAR_PYTHON"], "-m", "uvicorn", "--app-dir", str(Path(__file__).parent)]
    command += ["--port", str(port), "--backlog", "8192", "--log-level", "warning", "--no-access-log", "sidecar:app"]
    environment = {
        "SIDECAR_UPSTREAM": f"http://127.0.0.1:{upstream_port}",
        "SIDECAR_RPM": str(rpm),
        "SIDECAR_BURST": str(burst),
    }
    return Rival(command, environment, port)


def litellm(upstream_port: int) -> Rival | None:
    """LiteLLM's proxy with one worker and nothing switched on that could cost; `None` where it is not installed."""
    python = os.environ.get("NIMGATE_LITELLM_PYTHON")
    if not python:
        return None
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
        return Rival([*command, "--port", str(port), "--num_workers", "1"], environment, port)
    finally:
        # It has been read by the time that the proxy listens.
        os.unlink(file.name)
