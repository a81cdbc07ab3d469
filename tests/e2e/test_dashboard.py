"""The dashboard in a real browser: it is live, it says when it is not, and it changes limits."""

import pytest

from harness.browser import Watched, running_browser
from harness.gate import Gate, running_gate
from harness.nimgate import configuration, limit, one_token, secret
from harness.shipped import Options
from harness.waiting import wait_for_equal, wait_until

TOKEN = secret("nimgate-admin")
THEMES = {
    "light": {"color_scheme": "light", "viewport": {"width": 1360, "height": 900}},
    "dark": {"color_scheme": "dark", "viewport": {"width": 1360, "height": 900}},
    "phone": {"color_scheme": "light", "viewport": {"width": 360, "height": 740}},
}


@pytest.fixture(scope="module")
def browser():
    with running_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def gate():
    plugin = configuration(one_token("slow"), limit("quick"))
    options = Options(plugin=plugin, environment={"NIMGATE_ADMIN_TOKEN": TOKEN})
    with running_gate(options) as gate:
        yield gate


@pytest.fixture
def open_page(browser, gate: Gate):
    """Opens the dashboard; at the end nothing may have gone wrong in it."""
    opened: list[Watched] = []

    def opening(**options) -> Watched:
        watched = Watched(browser, **options)
        opened.append(watched)
        watched.page.goto(address(gate))
        wait_until(lambda: live(watched) == "live", "the page is live")
        return watched

    yield opening
    for watched in opened:
        watched.close()
    assert [complaint for watched in opened for complaint in watched.complaints] == []


def address(gate: Gate) -> str:
    return f"http://127.0.0.1:{gate.envoy.ports.console}/"


def live(watched: Watched) -> str:
    return watched.page.locator("#live").inner_text()


def choose(watched: Watched, name: str) -> None:
    watched.page.click(f"nav >> text={name}")


def rules_of(gate: Gate, name: str) -> dict:
    limits = gate.console.send("GET", "/status").json()["limits"]
    return next(one["rules"] for one in limits if one["name"] == name)


def test_numbers_follow_what_happens(gate: Gate, open_page):
    watched = open_page()
    choose(watched, "slow")
    gate.empty_bucket("slow")
    with gate.holding("slow", 3, priority="high"), gate.holding("slow", 2, priority="low"):
        wait_for_equal(lambda: watched.text("queue"), "5", "the queue as shown")
        wait_for_equal(lambda: watched.text("queue-note"), "3 high, 2 low", "who waits")
        wait_for_equal(lambda: watched.text("tokens"), "0", "tokens as shown")
    wait_for_equal(lambda: watched.text("queue"), "0", "the queue as shown")
    choose(watched, "All limits")
    wait_until(lambda: "of 6001 configured" in watched.text("rate-note"), "all limits together")


def test_charts_are_drawn(open_page):
    watched = open_page()
    charts = watched.page.locator("figure canvas")
    assert charts.count() == 6
    drawn = """canvas => {
      const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
      return pixels.some((value, at) => at % 4 === 3 && value > 0);
    }"""
    for at in range(6):
        wait_until(lambda at=at: charts.nth(at).evaluate(drawn), "something is drawn")


@pytest.mark.parametrize("theme", THEMES)
def test_page_fits_and_takes_nothing_from_elsewhere(gate: Gate, open_page, theme: str):
    watched = open_page(**THEMES[theme])
    wait_until(lambda: watched.text("rate") != "–", "numbers are shown")
    width = THEMES[theme]["viewport"]["width"]
    assert watched.page.evaluate("document.documentElement.scrollWidth") <= width
    assert all(url.startswith(address(gate)) for url in watched.requests), watched.requests
    background = watched.page.evaluate("getComputedStyle(document.body).backgroundColor")
    red = int(background.removeprefix("rgb(").split(",")[0])
    assert (red < 80) == (theme == "dark"), background


def test_nothing_is_left_in_the_browser(open_page):
    watched = open_page()
    assert watched.page.evaluate("localStorage.length + sessionStorage.length") == 0
    assert watched.context.cookies() == []


def test_limit_is_changed_and_given_back(gate: Gate, open_page):
    watched = open_page()
    page = watched.page
    choose(watched, "quick")
    page.fill("[name=rate_rpm]", "5000")
    page.fill("#token", TOKEN)
    page.click("text=Apply")
    wait_until(lambda: rules_of(gate, "quick")["in_force"]["rate_rpm"] == 5000, "the change")
    page.wait_for_selector("#said:has-text('until the configuration')")
    wait_until(lambda: "configured: 6000" in page.inner_text("#fields"), "the mark")
    wait_until(lambda: "changed through the console" in page.inner_text("#history"), "history")
    page.click("text=Back to the configuration")
    wait_until(lambda: rules_of(gate, "quick")["source"] == "configuration", "the way back")
    wait_until(lambda: "configured:" not in page.inner_text("#fields"), "no mark")
    wait_until(lambda: page.input_value("[name=rate_rpm]") == "6000", "the field goes back")


@pytest.mark.parametrize(
    ("field", "value", "token", "said", "wrong"),
    [
        ("rate_rpm", "0", TOKEN, "Refused (400): rate_rpm: must be at least 1", "[name=rate_rpm]"),
        ("rate_rpm", "lots", TOKEN, "Refused (400): rate_rpm:", "[name=rate_rpm]"),
        ("retreat.floor_rpm", "9999", TOKEN, "not be above rate_rpm", "[name='retreat.floor_rpm']"),
        ("rate_rpm", "30", "not-the-token-at-all", "Refused (401)", "#token"),
        ("rate_rpm", "30", "", "Refused (401)", "#token"),
    ],
)
def test_refusal_is_shown_with_its_reason(
    gate: Gate, open_page, field: str, value: str, token: str, said: str, wrong: str
):
    before = rules_of(gate, "quick")
    watched = open_page()
    page = watched.page
    choose(watched, "quick")
    page.fill(f"[name='{field}']", value)
    page.fill("#token", token)
    page.click("text=Apply")
    wait_until(lambda: said in page.inner_text("#said"), f"the page says {said!r}")
    assert page.get_attribute(wrong, "aria-invalid") == "true"
    # What was typed stays, to be mended.
    assert page.input_value(f"[name='{field}']") == value
    assert rules_of(gate, "quick") == before


def test_change_by_another_is_not_overwritten_unseen(gate: Gate, open_page):
    watched = open_page()
    page = watched.page
    choose(watched, "quick")
    page.fill("#token", TOKEN)
    page.fill("[name=rate_rpm]", "4000")
    # Another operator is quicker; the page hears of it, and keeps what is being typed.
    answer = gate.console.send(
        "POST",
        "/config",
        b'{"limit": "quick", "queue_max_size": 123}',
        {"content-type": "application/json", "authorization": f"Bearer {TOKEN}"},
    )
    assert answer.status == 200
    wait_until(lambda: page.input_value("[name=queue_max_size]") == "123", "the other's change")
    assert page.input_value("[name=rate_rpm]") == "4000"
    page.click("text=Apply")
    wait_until(lambda: rules_of(gate, "quick")["in_force"]["rate_rpm"] == 4000, "the change")
    assert rules_of(gate, "quick")["in_force"]["queue_max_size"] == 123


def test_shadow_mode_is_marked_and_told(browser):
    plugin = configuration(one_token("trial", mode="shadow", queue_max_size=2), limit("real"))
    with running_gate(Options(plugin=plugin)) as gate:
        watched = Watched(browser)
        page = watched.page
        page.goto(address(gate))
        for _ in range(7):
            assert gate.client.chat(gate.model("trial")).status == 200
        page.wait_for_selector("nav button.in-shadow:has-text('trial')")
        assert page.locator("nav button.in-shadow").count() == 1
        assert "(trial): every request goes at once" in page.inner_text("#shadow")
        # One had a token, two would wait.
        wait_for_equal(lambda: watched.text("would"), "4", "who would have been refused")
        assert watched.text("would-of") == "of 5"
        assert watched.text("would-note") == "0 rate limited, 4 queue full"
        choose(watched, "real")
        wait_until(lambda: not page.is_visible("#shadow"), "no mark on the other limit")
        assert not page.is_visible("#would")
        assert gate.envoy.reload(configuration(limit("trial"), limit("real")))
        assert gate.client.chat(gate.model("trial")).status == 200
        choose(watched, "trial")
        wait_until(lambda: not page.locator("nav .in-shadow").count(), "the mark is gone")
        assert watched.complaints == []
        watched.close()


def test_without_a_token_there_is_nothing_to_send(browser):
    with running_gate(Options(plugin=configuration(limit("nvidia")))) as gate:
        watched = Watched(browser)
        watched.page.goto(address(gate))
        wait_until(lambda: live(watched) == "live", "the page is live")
        wait_until(lambda: "console.admin_token" in watched.page.inner_text("#standing"), "a hint")
        assert not watched.page.is_visible("text=Apply")
        assert watched.page.locator("#fields input").first.is_disabled()
        watched.close()


def test_page_says_that_there_is_no_data_and_comes_back(browser):
    with running_gate(Options(plugin=configuration(limit("nvidia")))) as gate:
        watched = Watched(browser)
        page = watched.page
        page.goto(address(gate))
        for _ in range(3):
            gate.client.chat(gate.model("nvidia"))
        wait_until(lambda: "3 in all" in watched.text("through-note"), "requests are counted")

        gate.envoy.interrupt()
        wait_until(lambda: live(watched) == "no data", "the page says that it has no data")
        assert page.inner_text("#gone").startswith("No data for ")
        assert watched.text("rate") == watched.text("queue") == "–"

        gate.envoy.resume()
        wait_until(lambda: live(watched) == "live", "the page is live again")
        wait_until(lambda: not page.is_visible("#gone"), "nothing is said of missing data")
        wait_until(lambda: "0 in all" in watched.text("through-note"), "counters of the new one")
        assert watched.complaints == []
        watched.close()
