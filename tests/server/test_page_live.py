"""What the page shows besides the playground, and how it looks, in a real browser."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import expect
from starlette.testclient import TestClient
from support.browser import CODE, Scripted, Tab, serving
from support.served import wait_for
from support.standin import StandIn

import pangu_bench.cli

# The contrast of each text with the ground behind it (WCAG 2.2, 1.4.3), where it is below 4.5.
LOW_CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgb = (color) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const luminance = (color) => {
    const [r, g, b] = rgb(color).map((c) => c / 255).map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const color = getComputedStyle(node).backgroundColor;
      if (rgb(color)[3] === 255) return color;
    }
    return "white";
  };
  const low = [];
  for (const node of document.body.querySelectorAll("*")) {
    const text = node.value ?? [...node.childNodes].filter((n) => n.nodeType === 3).map((n) => n.data).join("");
    if (!text.trim() || !node.checkVisibility({ visibilityProperty: true }) || node.matches(".mirrored > textarea")) continue;
    const [a, b] = [luminance(getComputedStyle(node).color), luminance(ground(node))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) low.push(`${node.tagName} "${text.trim().slice(0, 40)}" ${((a + 0.05) / (b + 0.05)).toFixed(2)}`);
  }
  return low;
}"""  # noqa: E501


def test_it_tells_what_is_served(open_tab: Callable[..., Tab], tab: Tab) -> None:
    facts = tab.page.locator("#served dl")
    for text in (
        "GPTBigCodeForCausalLM",
        "128 tokens",
        "int8",
        "Enginetorch",
        "scripted",
        "10 B",
        "no HumanEval score recorded",
    ):
        expect(facts).to_contain_text(text)
    verb, *words = shlex.split(str(tab.find(".unscored code").text_content()).replace("\\\n", " "))
    assert verb == "pangu-bench"
    pangu_bench.cli.parser().parse_args(words)  # ends the test, when there is none such
    standin = StandIn([])
    other = open_tab(standin.app)
    expect(other.page.locator("#served")).to_contain_text("HumanEval")
    expect(other.page.locator(".unscored")).to_be_hidden()
    facts = other.page.locator("#served dl")
    for text in ("135 MB", "HumanEval pass@10.3354", "templateyes", "middleyes", "9.9"):
        expect(facts).to_contain_text(text)
    standin.card |= {"chat": False, "fim": False, "scores": {}}
    other.open()
    expect(facts).to_contain_text("no HumanEval score recorded")
    other.page.get_by_role("tab", name="Chat").click()
    expect(other.page.get_by_text("no chat template")).to_be_visible()


def test_a_key_is_asked_for_and_kept_in_the_tab_only(open_tab: Callable[..., Tab]) -> None:
    standin = StandIn([["x"]], key="sesame")
    tab = open_tab(standin.app)
    tab.refused = {401}
    dialog = tab.page.get_by_role("dialog")
    expect(dialog).to_contain_text("Incorrect API key provided.")
    tab.page.keyboard.press("Escape")
    expect(tab.page.locator("#model-name")).to_contain_text("401")
    tab.page.keyboard.press("Control+Enter")
    tab.find(".run").click()
    expect(dialog).to_be_visible()
    tab.page.keyboard.type("sesame")
    tab.page.keyboard.press("Enter")
    expect(tab.find(".ghost")).to_have_text("x")
    expect(tab.page.locator("#model-name")).to_have_text("standin")
    assert tab.page.evaluate("sessionStorage.getItem('pangu-api-key')") == "sesame"
    assert tab.page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
    tab.open()
    expect(tab.page.locator("#model-name")).to_have_text("standin")
    expect(dialog).to_be_hidden()


def test_the_servers_state_is_followed(tmp_path: Path, open_tab: Callable[..., Tab]) -> None:
    scripted = Scripted(tmp_path)
    with serving(scripted.app) as address:
        tab = open_tab(address)
        tab.refused = {503}
        state = tab.page.locator("#state")
        expect(state).to_have_text("Loading")
        tab.find(".run").click()
        expect(tab.page.get_by_role("alert")).to_contain_text("503: the model is still loading")
        expect(tab.page.get_by_role("alert")).to_contain_text("Retry after")
        scripted.engine.load(scripted.backend)
        expect(state).to_have_text("Ready")
        expect(tab.page.locator("#served dl")).to_contain_text("scripted, none")
        scripted.engine.drain()
        expect(state).to_have_text("Draining")
    expect(state).to_have_text("Unreachable")
    tab.page.goto("about:blank")  # it would go on looking
    tab.complaints = [text for text in tab.complaints if "net::ERR_" not in text]
    scripted.engine.close()


def test_charts_show_what_the_metrics_say(scripted: Scripted, tab: Tab) -> None:
    scripted.go.clear()
    tab.write("p")
    tab.find(".run").click()
    requests = tab.page.get_by_role("img", name="Requests")
    latency = tab.page.get_by_role("img", name="Time to first token")
    empty = "Time to first token: No answer yet since this page was opened."
    expect(latency).to_have_attribute("aria-label", empty)
    expect(requests).to_have_attribute("aria-label", "Requests: running 1, waiting 0")
    scripted.go.set()
    for title in ("Time to first token", "Inter-token latency"):
        p95 = tab.page.locator("figure", has_text=title).get_by_role("row", name="p95")
        expect(p95).to_contain_text(re.compile(r"\d m?s"))
    expect(latency).to_have_attribute("aria-label", re.compile("token: p50 [0-9]"))
    tokens = tab.page.locator("figure", has_text="Tokens per second")
    expect(tokens.locator(".line").first).to_have_attribute("d", re.compile("L"))
    memory = tab.page.locator("figure", has_text="Memory")
    expect(memory.get_by_role("row", name="resident")).to_contain_text(re.compile("[MG]B"))
    expect(memory.get_by_role("row", name="weights")).to_contain_text("10 B")
    expect(requests).to_have_attribute("aria-label", "Requests: running 0, waiting 0")


def test_quantiles_and_rates_are_those_of_prometheus(tab: Tab) -> None:
    histogram = (
        """x_bucket{le="0.1",a="1,2}"} %d\nx_bucket{a="b\\\\"c",le="0.2"} %d\nx_bucket{le="+Inf"} %d\n"""
    )
    earlier, later = histogram % (5, 5, 5), histogram % (5, 15, 25)
    found = tab.page.evaluate(
        """async ([earlier, later]) => {
          const { Scrape, quantile, rate } = await import("./page/prometheus.js");
          const [a, b] = [new Scrape(earlier + 'n{a="1"} 1\\nn{a="2"} 2'), new Scrape(later + "# HELP n\\nn 1e1 17")];
          return [0.25, 0.5, 0.95].map((q) => quantile(q, "x", a, b)).concat(
            quantile(0.5, "x", b, b), quantile(0.5, "y", a, b), rate("n", a, b, 2), rate("m", a, b, 2));
        }""",
        [earlier, later],
    )
    assert found == [pytest.approx(0.15), pytest.approx(0.2), pytest.approx(0.2), None, None, 3.5, None]


def test_a_hidden_page_leaves_the_server_alone(scripted: Scripted, open_tab: Callable[..., Tab]) -> None:
    tab = open_tab(scripted.app)
    tab.page.clock.install()
    tab.open()
    expect(tab.page.locator("figure", has_text="Memory")).to_contain_text("10 B")
    expect(tab.page.locator("#model-name")).to_have_text("scripted")  # all that loading asks for has come
    hide(tab, True)
    before = len(tab.requests)
    tab.page.clock.run_for(60_000)
    assert len(tab.requests) == before
    hide(tab, False)
    expect(tab.page.locator("#state")).to_have_text("Ready")
    wait_for(lambda: tab.page.evaluate("true") and len(tab.requests) > before)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1440, 390])
def test_it_can_be_read_light_and_dark_wide_and_narrow(
    scripted: Scripted, open_tab: Callable[..., Tab], scheme: str, width: int
) -> None:
    tab = open_tab(scripted.app, color_scheme=scheme, viewport={"width": width, "height": 900})
    expect(tab.page.locator("figure", has_text="Memory")).to_contain_text("10 B")
    tab.page.locator("#error").evaluate("node => node.textContent = 'An error, ' + 'x'.repeat(200)")
    for mode in ("Complete", "Fill in the middle", "Chat"):
        tab.page.get_by_role("tab", name=mode).click()
        assert tab.page.evaluate(LOW_CONTRAST) == []
        assert tab.page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    tab.page.get_by_role("tab", name="Complete").click()
    tab.write("p")
    tab.find(".run").click()
    expect(tab.find(".ghost")).to_have_text(CODE)
    assert tab.page.evaluate(LOW_CONTRAST) == []
    ground = tab.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(246, 247, 249)", "dark": "rgb(20, 23, 27)"}[scheme]
    assert len(tab.page.screenshot(full_page=True)) > 20_000, "it is not blank"


@pytest.mark.parametrize("width", [1440, 390])
def test_nothing_jumps_while_it_loads_and_writes(
    scripted: Scripted, open_tab: Callable[..., Tab], width: int
) -> None:
    tab = open_tab(scripted.app, viewport={"width": width, "height": 900})
    expect(tab.page.locator("figure", has_text="Memory")).to_contain_text("10 B")
    # What changes within half a second after a key or click does not count: fill and evaluate do not.
    tab.write("\n" * 30 + "p")
    tab.page.evaluate("document.querySelector('.run').click()")
    expect(tab.find(".ghost")).to_have_text(CODE)
    expect(tab.page.locator("#m-finish")).to_have_text("stop")
    shift = tab.page.evaluate(
        """() => new Promise((resolve) => {
          let sum = 0;
          new PerformanceObserver((list) => { for (const entry of list.getEntries()) sum += entry.value; })
            .observe({ type: "layout-shift", buffered: true });
          setTimeout(() => resolve(sum), 300);
        })"""
    )
    assert shift < 0.01


def test_files_come_with_strict_headers_and_are_asked_for_again(scripted: Scripted) -> None:
    client = TestClient(scripted.app)
    for path in ("/", "/page/page.js", "/page/page.css", "/page/icon.svg"):
        answer = client.get(path)
        assert answer.status_code == 200
        assert answer.headers["content-security-policy"].startswith("default-src 'self';")
        assert answer.headers["cache-control"] == "no-cache"
    again = client.get(
        "/page/page.js", headers={"if-none-match": client.get("/page/page.js").headers["etag"]}
    )
    assert again.status_code == 304
    assert again.headers["cache-control"] == "no-cache"
    assert client.head("/").status_code == 200
    for path in ("/page/none.js", "/page/../page.py", "/page/%2e%2e/page.py", "/page/"):
        missing = client.get(path)
        assert missing.status_code == 404
        assert set(missing.json()["error"]) == {"message", "type", "param", "code"}
    assert not any(path.startswith("/page") for path in client.get("/openapi.json").json()["paths"])


def hide(tab: Tab, hidden: bool) -> None:
    """As when another tab comes to the front, or this one again."""
    tab.page.evaluate(
        """(hidden) => {
          Object.defineProperty(document, "hidden", { configurable: true, get: () => hidden });
          document.dispatchEvent(new Event("visibilitychange"));
        }""",
        hidden,
    )
