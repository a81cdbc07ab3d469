"""Builders for plugin configurations and request bodies, in the configuration table's words."""

import hashlib
import json
from typing import Any

# Fast enough that a token is always there: for tests that are not about waiting.
FAST_RPM = 6000


def limit(name: str, models: list[str] | None = None, **fields: Any) -> dict[str, Any]:
    """One entry of `limits`; matches models `<name>/*` unless given otherwise, and is fast.

    It has no window guard unless it asks for one, so that tests of the bucket see that alone. With
    the usual margin of a second, windows of a few seconds would be far longer than they say.
    """
    patterns = [f"{name}/*"] if models is None else models
    usual = {"rate_rpm": FAST_RPM, "window_s": 0, "window_margin_ms": 10}
    return {"name": name, "models": patterns, **usual, **fields}


def one_token(name: str, seconds_per_token: float = 60.0, **fields: Any) -> dict[str, Any]:
    """A limit whose bucket holds a single token that takes `seconds_per_token` to come back."""
    rate = max(1, round(60 / seconds_per_token))
    return limit(name, **{"rate_rpm": rate, "bucket_capacity": 1, **fields})


def configuration(*limits: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A whole plugin configuration."""
    return {"limits": list(limits), **fields}


def chat(model: str, **fields: Any) -> dict[str, Any]:
    """The JSON of a chat completion request."""
    return {"model": model, "messages": [{"role": "user", "content": "hello"}], **fields}


def encode(value: Any) -> bytes:
    """JSON as most clients write it: compact, UTF-8."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def secret(prefix: str) -> str:
    """A key or token that no text has by chance. Processes that collect the same tests agree on it,
    because it may stand in a test's name."""
    return f"{prefix}-{hashlib.sha256(prefix.encode()).hexdigest()[:24]}"
