"""The OCI image: pushed to a real registry by `scripts/image`, fetched back by another program, and read as Istio's agent and
Envoy Gateway read it.

    python -m unittest -v tests/release/test_image.py

`NIMGATE_REGISTRY` names the registry server and `NIMGATE_SKOPEO` skopeo; the image is in `target/image`. scripts/test sees
to all three.
"""

import gzip
import hashlib
import io
import json
import os
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import unittest
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LAYOUT = ROOT / "target/image"
MODULE = ROOT / "target/wasm32-unknown-unknown/release/nimgate.wasm"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
PLAIN_HTTP = ["--dest-tls-verify=false"]


class Registry:
    """A registry server on a free port of the loopback address, empty."""

    def __init__(self) -> None:
        self.directory = tempfile.TemporaryDirectory(prefix="nimgate-registry-")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        config = Path(self.directory.name) / "config.yml"
        storage = {"filesystem": {"rootdirectory": f"{self.directory.name}/data"}}
        settings = {"version": 0.1, "log": {"level": "warn"}, "storage": storage, "http": {"addr": self.address}}
        config.write_text(json.dumps(settings))
        command = [os.environ["NIMGATE_REGISTRY"], "serve", str(config)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not self.answers():
            if self.process.poll() is not None:
                raise AssertionError(f"the registry ended with {self.process.returncode}")
            time.sleep(0.05)

    def answers(self) -> bool:
        try:
            return self.get("").status == 200
        except OSError:
            return False

    def get(self, path: str):
        request = urllib.request.Request(f"http://{self.address}/v2/{path}", headers={"Accept": MANIFEST})
        return urllib.request.urlopen(request, timeout=30)

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()
        self.directory.cleanup()


class Image(unittest.TestCase):
    def setUp(self) -> None:
        self.registry = Registry()
        self.addCleanup(self.registry.close)
        self.module = MODULE.read_bytes()

    def push(self, form: str) -> str:
        """Pushes one form; the digest that scripts/image said."""
        name = f"{self.registry.address}/nimgate"
        flags = ["--artifact"] if form == "artifact" else []
        command = [str(ROOT / "scripts/image"), "push", *flags, f"{name}:{form}", "--", *PLAIN_HTTP]
        said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
        self.assertTrue(said.startswith(f"{name}@sha256:"), said)
        return said.partition("@")[2]

    def pulled(self, form: str, digest: str) -> tuple[dict, list[bytes]]:
        """The manifest and layers, fetched by skopeo by their digest into a directory."""
        with tempfile.TemporaryDirectory() as directory:
            source = f"docker://{self.registry.address}/nimgate@{digest}"
            command = [os.environ["NIMGATE_SKOPEO"], "--insecure-policy", "copy", "--preserve-digests", "-q"]
            subprocess.run([*command, "--src-tls-verify=false", source, f"dir:{directory}"], check=True)
            content = (Path(directory) / "manifest.json").read_bytes()
            self.assertEqual(sha256(content), digest)
            manifest = json.loads(content)
            layers = [(Path(directory) / one["digest"].partition(":")[2]).read_bytes() for one in manifest["layers"]]
            for one, layer in zip(manifest["layers"], layers, strict=True):
                self.assertEqual((one["digest"], one["size"]), (sha256(layer), len(layer)))
        print(f"{form} {digest}: pushed, pulled, the same", file=sys.stderr)
        return manifest, layers

    def test_image_comes_back_the_same_and_holds_the_module(self) -> None:
        digest = self.push("image")
        self.assertEqual(digest, digest_in_layout("image"))
        manifest, (layer,) = self.pulled("image", digest)
        self.assertEqual(manifest["mediaType"], MANIFEST)
        self.assertEqual(manifest["layers"][0]["mediaType"], "application/vnd.oci.image.layer.v1.tar+gzip")
        with tarfile.open(fileobj=io.BytesIO(gzip.decompress(layer))) as archive:
            self.assertEqual(archive.getnames(), ["plugin.wasm"])
            self.assertEqual(archive.extractfile("plugin.wasm").read(), self.module)

    def test_artifact_comes_back_the_same_and_holds_the_module(self) -> None:
        digest = self.push("artifact")
        self.assertEqual(digest, digest_in_layout("artifact"))
        manifest, layers = self.pulled("artifact", digest)
        types = [one["mediaType"] for one in manifest["layers"]]
        # Istio takes an artifact of exactly two layers.
        self.assertEqual(
            types,
            ["application/vnd.module.wasm.config.v1+json", "application/vnd.module.wasm.content.layer.v1+wasm"],
        )
        self.assertEqual(json.loads(layers[0])["type"], "envoy_proxy")
        self.assertEqual(layers[1], self.module)

    def test_registry_serves_each_form_under_the_digest_that_was_said(self) -> None:
        for form in ("image", "artifact"):
            said = self.push(form)
            answer = self.registry.get(f"nimgate/manifests/{form}")
            self.assertEqual(answer.headers["Docker-Content-Digest"], said)
            self.assertEqual(answer.headers["Content-Type"], MANIFEST)


class Layout(unittest.TestCase):
    def test_same_module_and_version_make_the_same_bytes(self) -> None:
        made = []
        for _ in range(2):
            with tempfile.TemporaryDirectory() as directory:
                write_layout(MODULE, "9.9.9", Path(directory) / "here")
                made.append(files(Path(directory) / "here"))
            time.sleep(1.1)  # So that no second of the clock can be in it.
        self.assertEqual(made[0], made[1])

    def test_another_module_or_version_makes_another_digest(self) -> None:
        with tempfile.TemporaryDirectory() as directory:
            here = Path(directory)
            (here / "other.wasm").write_bytes(MODULE.read_bytes() + b"\0")
            seen = {
                write_layout(MODULE, "9.9.9", here / "a"),
                write_layout(MODULE, "9.9.8", here / "b"),
                write_layout(here / "other.wasm", "9.9.9", here / "c"),
            }
        self.assertEqual(len(seen), 3)

    def test_every_descriptor_of_the_layout_is_true(self) -> None:
        index = json.loads((LAYOUT / "index.json").read_text())
        seen = set()
        for described in index["manifests"]:
            manifest = json.loads(self.blob(described, seen))
            for inner in (manifest["config"], *manifest["layers"]):
                self.blob(inner, seen)
        self.assertEqual({path.name for path in (LAYOUT / "blobs/sha256").iterdir()}, seen)

    def blob(self, described: dict, seen: set[str]) -> bytes:
        name = described["digest"].removeprefix("sha256:")
        content = (LAYOUT / "blobs/sha256" / name).read_bytes()
        self.assertEqual((sha256(content), len(content)), (described["digest"], described["size"]))
        seen.add(name)
        return content


def sha256(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def digest_in_layout(form: str) -> str:
    manifests = json.loads((LAYOUT / "index.json").read_text())["manifests"]
    (found,) = [one for one in manifests if one["annotations"]["org.opencontainers.image.ref.name"] == form]
    return found["digest"]


def write_layout(module: Path, version: str, where: Path) -> str:
    command = [sys.executable, str(ROOT / "scripts/lib/oci_layout.py"), str(module), version, str(where)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def files(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


if __name__ == "__main__":
    unittest.main()
