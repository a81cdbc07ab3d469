"""Load from wrk: its connections, bodies and results."""

import json
import os
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

SCRIPT = Path(__file__).with_name("chat.lua")

# A paragraph of a prompt, with something for JSON to escape now and then.
PROMPT = (
    "The quarterly report lists every region with its revenue, its costs and the reasons that the local office gave "
    "for the difference. Summarise it in five sentences for a reader who knows the company but not the figures, name "
    'the two regions that did worst, and quote the office of each as it says "we expect" or "we hope".\n'
)


@dataclass(frozen=True)
class Result:
    """What one run of wrk saw. Latencies in seconds."""

    requests: int
    seconds: float
    p50: float
    p99: float
    refused: int
    broken: int


def chat(model: str, size: int, model_first: bool) -> bytes:
    """A chat completion request of exactly `size` bytes: a conversation of long prompts and answers."""
    turns = max(1, min(40, size // 4096))

    def whole(filling: int) -> bytes:
        text = PROMPT * (filling // turns // len(PROMPT) + 1)
        share, rest = divmod(filling, turns)
        messages = [{"role": "system", "content": "You are a helpful assistant."}]
        messages += [
            {"role": ("user", "assistant")[turn % 2], "content": text[: share + (rest if turn == 0 else 0)]}
            for turn in range(turns)
        ]
        settings = {"messages": messages, "temperature": 0.2, "max_tokens": 1024}
        request = {"model": model, **settings} if model_first else {**settings, "model": model}
        return json.dumps(request).encode()

    # Escapes make the body longer than its text; so the size is approached from below, and spaces fill the rest.
    filling = 0
    while (missing := size - len(whole(filling))) > 0:
        longer = filling + max(1, missing * 9 // 10)
        if len(whole(longer)) > size:
            break
        filling = longer
    body = whole(filling)
    if len(body) > size:
        raise ValueError(f"a chat request can't be as short as {size} bytes")
    return body + b" " * (size - len(body))


def command(port: int, body: Path, connections: int, seconds: int) -> tuple[list[str], dict[str, str]]:
    """The command, and the environment it needs."""
    words = [os.environ["NIMGATE_WRK"], "--threads", "1", "--connections", str(connections)]
    words += ["--duration", f"{seconds}s", "--timeout", "600s", "--script", str(SCRIPT)]
    words.append(f"http://127.0.0.1:{port}/v1/chat/completions")
    return words, {**os.environ, "BENCH_BODY": str(body)}


def run(port: int, body: Path, connections: int, seconds: int) -> Result:
    """Sends a body over and over, from so many connections, for so long."""
    words, environment = command(port, body, connections, seconds)
    done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    said = json.loads(done.stdout.strip().splitlines()[-1])
    return Result(
        said["requests"], said["seconds"], said["p50_us"] / 1e6, said["p99_us"] / 1e6, said["refused"], said["broken"]
    )


class Load:
    """The same load, that can be held and let go at will. It begins held."""

    def __init__(self, port: int, body: Path, connections: int) -> None:
        words, environment = command(port, body, connections, 24 * 3600)
        self._process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL)
        self.hold()

    def hold(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def go(self) -> None:
        if self._process.poll() is not None:
            raise SystemExit(f"wrk ended before its time, with status {self._process.returncode}")
        self._process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()


def write_body(directory: Path, body: bytes) -> Path:
    """A body as a file, for `run`."""
    with tempfile.NamedTemporaryFile(dir=directory, suffix=".json", delete=False) as file:
        file.write(body)
    return Path(file.name)
