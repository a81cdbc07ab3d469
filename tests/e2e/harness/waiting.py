"""Waiting for a condition instead of sleeping for a time.

A test must not fail because the machine is slow, so nothing here measures speed: the timeout is a
guard against hanging for ever and is far longer than any healthy run needs.
"""

import time
from collections.abc import Callable
from typing import Any

HANG_GUARD_S = 60.0
POLL_INTERVAL_S = 0.01


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = HANG_GUARD_S) -> Any:
    """Polls `condition` until it is true and returns what it gave; `what` names it in a failure."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s:g} s in vain: {what} (last value: {value!r})")
        time.sleep(POLL_INTERVAL_S)


def wait_for_equal(read: Callable[[], Any], expected: Any, what: str) -> None:
    """Polls `read` until it gives `expected`; the failure shows what it gave instead."""
    seen: list[Any] = [None]

    def equal() -> bool:
        seen[0] = read()
        return seen[0] == expected

    try:
        wait_until(equal, what)
    except AssertionError as error:
        raise AssertionError(f"{what}: expected {expected!r}, still {seen[0]!r}") from error
