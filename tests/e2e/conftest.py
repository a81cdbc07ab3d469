"""Shared fixtures: what the suite needs before it starts, and Envoy's log beside a failed test."""

import pytest

from harness import envoy, programs
from harness import report as notes

LOG_LINES_SHOWN = 40


@pytest.fixture(scope="session", autouse=True)
def _programs() -> None:
    """Says at once, in one sentence, if something that the suite needs is not there."""
    try:
        programs.wasm_module()
        programs.envoy_binary()
        programs.fake_nvidia()
    except programs.MissingProgram as error:
        pytest.exit(f"end-to-end tests can't run: {error}", returncode=2)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):  # noqa: ARG001 - the names belong to pytest
    report = yield
    if report.failed:
        for one in envoy.running:
            report.sections.append(
                (f"Envoy's log ({one.options.concurrency} workers)", one.log_tail(LOG_LINES_SHOWN))
            )
    return report


def pytest_terminal_summary(terminalreporter) -> None:
    for line in notes.notes:
        terminalreporter.write_line(line)
