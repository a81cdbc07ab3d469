"""Writes an OCI image layout that holds nimgate.wasm in both forms in which Istio and Envoy Gateway take it.

    oci_layout.py MODULE VERSION DIRECTORY

Under the name `image`: an image with the file plugin.wasm in its only layer, as `FROM scratch` and `COPY` make it
(https://github.com/solo-io/wasm/blob/master/spec/spec-compat.md). Every registry takes it.
Under the name `artifact`: the module as it is, as a layer of type application/vnd.module.wasm.content.layer.v1+wasm beside a
description of it (https://github.com/solo-io/wasm/blob/master/spec/spec.md).

The same module and version give the same bytes: no time, no user and no host is in them. Prints the digest of each form.
"""

import gzip
import hashlib
import io
import json
import sys
import tarfile
from pathlib import Path
from typing import Any

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
TAR_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
WASM_LAYER = "application/vnd.module.wasm.content.layer.v1+wasm"
WASM_CONFIG_LAYER = "application/vnd.module.wasm.config.v1+json"

Tree = dict[str, Any]


def main() -> None:
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    module, version, directory = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    layout = Layout(directory, version)
    layout.add("image", *compat(module.read_bytes()))
    layout.add("artifact", *artifact(module.read_bytes()))
    layout.finish()


def compat(module: bytes) -> tuple[list[Tree], list[bytes], list[bytes]]:
    """The descriptors' own fields, the layers, and the layers as they are when unpacked."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        entry = tarfile.TarInfo("plugin.wasm")
        entry.size, entry.mode = len(module), 0o644
        tar.addfile(entry, io.BytesIO(module))
    plain = archive.getvalue()
    return [{"mediaType": TAR_LAYER}], [gzip.compress(plain, 9, mtime=0)], [plain]


def artifact(module: bytes) -> tuple[list[Tree], list[bytes], list[bytes]]:
    about = {"type": "envoy_proxy", "abiVersions": ["v0.2.1"], "config": {"root_ids": ["nimgate"]}}
    layers = [encode(about), module]
    heads = [
        {"mediaType": WASM_CONFIG_LAYER, "annotations": title("runtime-config.json")},
        {"mediaType": WASM_LAYER, "annotations": title("plugin.wasm")},
    ]
    return heads, layers, layers


def title(name: str) -> dict[str, str]:
    return {"org.opencontainers.image.title": name}


class Layout:
    """A directory in the making."""

    def __init__(self, directory: Path, version: str) -> None:
        self.directory = directory
        self.blobs = directory / "blobs/sha256"
        self.blobs.mkdir(parents=True)
        self.annotations = {**title("nimgate"), "org.opencontainers.image.version": version}
        self.manifests: list[Tree] = []

    def add(self, name: str, heads: list[Tree], layers: list[bytes], unpacked: list[bytes]) -> None:
        config = {
            "architecture": "wasm",
            "os": "wasi",
            "config": {"Labels": self.annotations},
            "rootfs": {"type": "layers", "diff_ids": [digest(one) for one in unpacked]},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, **self.blob(encode(config))},
            "layers": [{**head, **self.blob(layer)} for head, layer in zip(heads, layers, strict=True)],
            "annotations": self.annotations,
        }
        described = {"mediaType": MANIFEST, **self.blob(encode(manifest))}
        self.manifests.append({**described, "annotations": {"org.opencontainers.image.ref.name": name}})
        print(f"{name:<8} {described['digest']}")

    def blob(self, content: bytes) -> Tree:
        found = digest(content)
        (self.blobs / found.removeprefix("sha256:")).write_bytes(content)
        return {"digest": found, "size": len(content)}

    def finish(self) -> None:
        index = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": self.manifests,
        }
        (self.directory / "index.json").write_bytes(encode(index))
        (self.directory / "oci-layout").write_bytes(encode({"imageLayoutVersion": "1.0.0"}))


def encode(value: Tree) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


if __name__ == "__main__":
    main()
