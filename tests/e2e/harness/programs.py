"""Where the programs under test are, and what to say when one is missing.

`scripts/test` names them in the environment. A suite started by hand looks in the places where the
project's own scripts put them. A missing program is a failure and never a skipped test, because a
check that did not run proves nothing.
"""

import atexit
import functools
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[3]

# What every proxy-wasm module of the current ABI exports, and what Envoy looks for first.
ABI_EXPORT = b"proxy_abi_version_0_2_1"


class MissingProgram(AssertionError):
    """A program that the suite needs is not there; the message says how to get it."""


@functools.cache
def wasm_module() -> Path:
    """A copy of the module, so that a new build in the middle of a run changes nothing in it."""
    built = _find(
        "NIMGATE_WASM",
        "the filter nimgate.wasm",
        [REPOSITORY / "target/wasm32-unknown-unknown/release/nimgate.wasm"],
        "run scripts/build",
    )
    module = built.read_bytes()
    if ABI_EXPORT not in module:
        raise MissingProgram(
            f"{built} is no proxy-wasm module: it does not export {ABI_EXPORT.decode()}; perhaps "
            "the core was built in its place, without the shell; run scripts/build"
        )
    directory = tempfile.TemporaryDirectory(prefix="nimgate-e2e-module-")
    atexit.register(directory.cleanup)
    copy = Path(directory.name) / "nimgate.wasm"
    copy.write_bytes(module)
    return copy


def envoy_binary() -> Path:
    installed = sorted(
        REPOSITORY.glob(".tools/envoy/**/site-packages/envoy/_bin/envoy"),
        key=lambda path: path.stat().st_mtime,
        reverse=True,
    )
    named = [Path(os.environ["ENVOY_PATH"])] if os.environ.get("ENVOY_PATH") else []
    return _find("NIMGATE_ENVOY", "an Envoy binary", named + installed, "run scripts/test")


@functools.cache
def envoy_version() -> tuple[int, int]:
    """Major and minor version of the Envoy under test."""
    said = subprocess.run([envoy_binary(), "--version"], capture_output=True, text=True, check=True)
    found = re.search(r"/(\d+)\.(\d+)\.\d+", said.stdout)
    assert found, f"no version in {said.stdout!r}"
    return int(found[1]), int(found[2])


def fake_nvidia() -> Path:
    return _find(
        "NIMGATE_FAKE",
        "the fake upstream fake-nvidia",
        [REPOSITORY / "target/release/fake-nvidia", REPOSITORY / "target/debug/fake-nvidia"],
        "run cargo build -p fake-nvidia",
    )


def chromium() -> Path:
    """The browser in which the dashboard is looked at."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = [Path(path) for name in names if (path := shutil.which(name))]
    return _find("NIMGATE_CHROMIUM", "Chromium", found, "install the package chromium")


def prometheus() -> Path:
    """The Prometheus that takes the metrics in."""
    found = [Path(path)] if (path := shutil.which("prometheus")) else []
    unpacked = REPOSITORY / ".tools/prometheus/usr/bin/prometheus"
    return _find("NIMGATE_PROMETHEUS", "Prometheus", [*found, unpacked], "run scripts/test")


def _find(variable: str, what: str, usual_places: list[Path], remedy: str) -> Path:
    named = os.environ.get(variable)
    if named:
        path = Path(named).resolve()
        if path.is_file():
            return path
        raise MissingProgram(f"{variable} names {what} as {named}, but there is no such file")
    for path in usual_places:
        if path.is_file():
            return path
    looked = ", ".join(str(path) for path in usual_places) or "the project's tool directory"
    raise MissingProgram(
        f"{what} was not found: {variable} is not set and it is not in {looked}; {remedy}, "
        f"or set {variable}"
    )
