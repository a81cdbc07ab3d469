"""Shared fixtures: what the suite needs before it starts, Envoy's log beside a failed test, and how
tests are spread over processes."""

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


# One process runs what shares an Envoy: the tests of a file that use a fixture of the whole file,
# under one parameter of it. All others start their own, and may run anywhere.


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items) -> None:
    seen: set[str] = set()
    for item in items:
        # xdist runs what has the same identity once.
        if item.nodeid in seen:
            raise pytest.UsageError(f"two tests are called {item.nodeid}; only one would run")
        seen.add(item.nodeid)
        item.add_marker(pytest.mark.xdist_group(_shared_programs(item)))


def pytest_collection_finish(session) -> None:
    """xdist writes the group into a test's identity, which pytest 9.1 and later do not look at."""
    in_groups = hasattr(session.config, "workerinput") and session.config.option.dist == "loadgroup"
    if in_groups and not all("@" in item.nodeid for item in session.items):
        raise pytest.UsageError("xdist does not keep together what shares an Envoy")


def _shared_programs(item) -> str:
    definitions = item._fixtureinfo.name2fixturedefs
    shared = [name for name, found in definitions.items() if found[-1].scope == "module"]
    if not shared:
        return item.nodeid
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    return " ".join(
        [item.path.stem, *(str(parameters[name]) for name in shared if name in parameters)]
    )


# What the processes noted goes to the one that prints the summary.


def pytest_sessionfinish(session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["notes"] = notes.notes


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error) -> None:  # noqa: ARG001 - the names belong to xdist
    notes.notes.extend(getattr(node, "workeroutput", {}).get("notes", []))


def pytest_terminal_summary(terminalreporter) -> None:
    for line in notes.notes:
        terminalreporter.write_line(line)
