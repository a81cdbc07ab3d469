"""A Prometheus that scrapes one Envoy each second and has the shipped rules."""

import subprocess
import tempfile
from pathlib import Path
from typing import Any

import httpx
import yaml

from .envoy import free_ports
from .programs import REPOSITORY, prometheus
from .waiting import HANG_GUARD_S, wait_until

RULES = REPOSITORY / "envoy/prometheus/rules.yaml"
START_ATTEMPTS = 5


class Prometheus:
    """Started with `with`; at its end nothing of it is left."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port

    def __enter__(self) -> "Prometheus":
        self._directory = tempfile.TemporaryDirectory(prefix="nimgate-e2e-prometheus-")
        place = Path(self._directory.name)
        configuration = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(RULES)],
            "scrape_configs": [
                {
                    "job_name": "nimgate",
                    "static_configs": [{"targets": [f"127.0.0.1:{self._target_port}"]}],
                }
            ],
        }
        (place / "prometheus.yml").write_text(yaml.safe_dump(configuration))
        for _ in range(START_ATTEMPTS):
            (port,) = free_ports(1)
            self._log = (place / "log").open("w+")
            self._process = subprocess.Popen(
                [
                    str(prometheus()),
                    f"--config.file={place / 'prometheus.yml'}",
                    f"--storage.tsdb.path={place / 'data'}",
                    f"--web.listen-address=127.0.0.1:{port}",
                ],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
            )
            self._api = httpx.Client(
                base_url=f"http://127.0.0.1:{port}", timeout=HANG_GUARD_S, trust_env=False
            )
            if wait_until(self._settled, "Prometheus starts") == "ready":
                return self
        raise AssertionError(f"Prometheus did not start:\n{(place / 'log').read_text()[-4000:]}")

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        self._api.close()
        self._log.close()
        self._directory.cleanup()

    def _settled(self) -> str | None:
        if self._process.poll() is not None:
            return "dead"
        try:
            return "ready" if self._api.get("/-/ready").status_code == 200 else None
        except httpx.TransportError:
            return None

    def _get(self, path: str, **parameters: str) -> Any:
        answer = self._api.get(f"/api/v1/{path}", params=parameters).json()
        assert answer["status"] == "success", (path, parameters, answer)
        return answer["data"]

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """The series that an expression gives now."""
        result = self._get("query", query=expression)["result"]
        return [(one["metric"], float(one["value"][1])) for one in result]

    def targets(self) -> list[dict[str, Any]]:
        return self._get("targets")["activeTargets"]

    def rules(self) -> list[dict[str, Any]]:
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]
