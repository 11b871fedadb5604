"""The page's playground in a real browser: over the application with a scripted backend, and over a stand-in."""

from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import expect
from support.browser import CODE, Scripted, Tab
from support.scripted import CONTEXT_LENGTH, MIDDLE, PREFIX, SUFFIX
from support.served import wait_for
from support.standin import StandIn

# The name of what has the focus; nothing for the page itself.
FOCUSED = """() => {
  const node = document.activeElement;
  if (node === document.body) return "";
  const [label] = node.labels ?? [];
  return node.ariaLabel ?? (label?.firstChild.data?.trim() || label?.textContent.trim() || node.textContent);
}"""
OUTLINED = """() => [document.activeElement, document.activeElement.closest(".editor")]
  .some((node) => node && (node === document.body || getComputedStyle(node).outlineStyle !== "none"))"""


def test_ghost_text_appears_while_it_streams_and_tab_accepts_it(scripted: Scripted, tab: Tab) -> None:
    scripted.go.clear()
    tab.write("def f(n): ")
    tab.page.keyboard.press("Control+Enter")
    expect(tab.find(".ghost")).to_contain_text("ret..")
    assert tab.text() == "def f(n): ", "a ghost is not part of the text"
    scripted.go.set()
    expect(tab.find(".ghost")).to_contain_text("urn n")
    expect(tab.page.locator("#status")).to_contain_text("Tab accepts")
    ghost = tab.find(".ghost").text_content()
    expect(tab.page.locator("#panel-complete p.spoken")).to_have_text(str(ghost))
    expect(tab.page.locator("#m-finish")).to_have_text("stop")
    expect(tab.page.locator("#m-prompt")).to_have_text("10")
    for measure in ("ttft", "rate", "total"):
        assert tab.page.locator(f"#m-{measure}").text_content() != "–"
    tab.page.keyboard.press("Tab")
    assert tab.text() == f"def f(n): {ghost}"
    expect(tab.page.locator(".has-ghost")).to_have_count(0)
    tab.page.keyboard.press("Control+z")
    assert tab.text() == "def f(n): ", "accepting can be undone"


def test_escape_dismisses_and_cancels(scripted: Scripted, tab: Tab) -> None:
    scripted.go.clear()
    tab.write("def ")
    tab.page.keyboard.press("Control+Enter")
    expect(tab.find(".ghost")).to_contain_text("ret")
    tab.page.keyboard.press("Escape")
    expect(tab.page.locator(".has-ghost")).to_have_count(0)
    assert tab.text() == "def "
    wait_for(lambda: scripted.count("pangu_requests_cancelled_total", stage="running") == 1)
    tab.page.keyboard.press("Tab")
    expect(tab.find(".run")).to_be_focused()  # without a ghost, Tab moves on


def test_stop_cancels_on_the_server_and_keeps_the_text(scripted: Scripted, tab: Tab) -> None:
    scripted.go.clear()
    tab.write("def ")
    tab.find(".run").click()
    expect(tab.find(".ghost")).to_contain_text("ret")
    tab.find(".stop").click()
    wait_for(lambda: scripted.count("pangu_requests_cancelled_total", stage="running") == 1)
    wait_for(lambda: scripted.count("vllm:num_requests_running") == 0)
    expect(tab.page.locator("#m-finish")).to_have_text("stopped")
    expect(tab.find(".stop")).to_be_disabled()
    expect(tab.find(".run")).to_be_focused()  # focus does not get lost with the button
    expect(tab.find(".ghost")).to_contain_text("ret")


def test_completing_as_one_types_asks_once_and_drops_what_is_outdated(scripted: Scripted, tab: Tab) -> None:
    scripted.go.clear()
    tab.find(".as-you-type").check()
    # Faster than any delay of the page, however slow the machine.
    tab.find(".editor textarea").evaluate(
        """(area) => {
          area.focus();
          for (const text of ["", "a", "ab", "abc"]) {
            area.value = text;
            area.dispatchEvent(new Event("input"));
          }
        }"""
    )
    expect(tab.find(".ghost")).to_contain_text("ret")
    assert scripted.prompts() == ["abc"]
    tab.page.keyboard.type("d")
    expect(tab.page.locator(".has-ghost")).to_have_count(0)
    wait_for(lambda: scripted.prompts() == ["abc", "abcd"])
    wait_for(lambda: scripted.count("pangu_requests_cancelled_total", stage="running") == 1)
    expect(tab.find(".ghost")).to_contain_text("ret")


def test_errors_are_shown_in_words(tab: Tab) -> None:
    tab.refused = {400}
    tab.write("p" * CONTEXT_LENGTH)
    tab.find(".run").click()
    error = tab.page.get_by_role("alert")
    expect(error).to_contain_text("400: This model's maximum context length is 128 tokens")
    tab.page.get_by_label("temperature").fill("7")
    tab.find(".run").click()
    expect(error).to_contain_text("temperature: ")
    expect(error).not_to_contain_text("context length")
    tab.page.get_by_label("temperature").fill("")
    tab.write("p")
    tab.find(".run").click()
    expect(error).to_be_empty()
    expect(tab.find(".ghost")).to_have_text(CODE)


def test_parameters_reach_the_server(open_tab: Callable[..., Tab]) -> None:
    standin = StandIn([["x"]])
    tab = open_tab(standin.app)
    expect(tab.page.get_by_label("Model")).to_have_value("standin")
    for name, value in (("max_tokens", "7"), ("temperature", "0"), ("top_p", "0.5"), ("seed", "3")):
        tab.page.get_by_label(name).fill(value)
    tab.page.get_by_label("stop").fill("\\n\\n\n\\\\n\n# ")
    tab.write("p")
    tab.page.get_by_label("seed").press("Enter")  # a form is sent with Enter
    expect(tab.find(".ghost")).to_have_text("x")
    [body] = standin.bodies
    assert body == {
        "model": "standin",
        "prompt": "p",
        "max_tokens": 7,
        "temperature": 0,
        "top_p": 0.5,
        "seed": 3,
        "n": 1,
        "stop": ["\n\n", "\\n", "# "],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_the_middle_is_filled_at_the_caret(open_tab: Callable[..., Tab]) -> None:
    standin = StandIn([["a", " + b"]])
    tab = open_tab(standin.app)
    tab.page.get_by_role("tab", name="Fill in the middle").click()
    tab.write("return (\n)")
    for key in ("Control+Home", "End"):
        tab.page.keyboard.press(key)
    tab.page.keyboard.press("Control+Enter")
    expect(tab.find(".mirror")).to_have_text("return (a + b\n)", use_inner_text=True)
    tab.page.keyboard.press("ArrowLeft")
    expect(tab.page.locator(".has-ghost")).to_have_count(0)  # a moved caret is somewhere else
    tab.page.keyboard.press("ArrowRight")
    tab.page.keyboard.press("Control+Enter")
    expect(tab.find(".ghost")).to_have_text("a + b")
    for measure, told in (("tokens", "42"), ("cached", "6"), ("drafts", "30 of 33"), ("engine", "torch")):
        expect(tab.page.locator(f"#m-{measure}")).to_have_text(told)
    tab.page.keyboard.press("Tab")
    assert tab.text() == "return (a + b\n)"
    tab.page.keyboard.type("!")
    assert tab.text() == "return (a + b!\n)", "the caret is behind what was accepted"
    assert [(body["prompt"], body["suffix"]) for body in standin.bodies] == [("return (", "\n)")] * 2


def test_several_choices_can_be_looked_through(open_tab: Callable[..., Tab]) -> None:
    standin = StandIn([["one"], ["two"], ["three"]])
    tab = open_tab(standin.app)
    tab.page.get_by_label("n", exact=True).fill("3")
    tab.write("")
    tab.page.keyboard.press("Control+Enter")
    expect(tab.find(".choices")).to_contain_text("Choice 1 of 3")
    expect(tab.page.locator("#status")).to_contain_text("ready")
    tab.page.get_by_role("button", name="Next choice").click()
    expect(tab.find(".ghost")).to_have_text("two")
    tab.find(".editor textarea").press("Alt+]")
    expect(tab.find(".ghost")).to_have_text("three")
    tab.page.get_by_role("button", name="Accept").click()  # where there is no Tab key
    assert tab.text() == "three"


def test_a_chat_is_sent_whole_and_shown_as_text(open_tab: Callable[..., Tab]) -> None:
    markup = "<img src=nowhere onerror=alert(1)>"
    standin = StandIn([[markup, " & so on"]])
    tab = open_tab(standin.app)
    tab.page.get_by_role("tab", name="Chat").click()
    tab.page.get_by_label("System message").fill("Be brief.")
    for question in ("first\nline", "second"):
        tab.page.get_by_label("Message", exact=True).fill(question)
        tab.page.keyboard.press("Enter")
        expect(tab.page.locator("#status")).to_have_text("Answered.")
    expect(tab.page.locator(".messages .assistant pre")).to_have_text([f"{markup} & so on"] * 2)
    standin.error = (429, "Busy.", {"retry-after": "7"})
    tab.refused = {429}
    tab.page.get_by_label("Message", exact=True).fill("third")
    tab.page.keyboard.press("Enter")
    expect(tab.page.get_by_role("alert")).to_have_text("429: Busy. Retry after 7 s.")
    expect(tab.page.get_by_label("Message", exact=True)).to_have_value("third")  # nothing is lost
    expect(tab.page.locator(".messages li")).to_have_count(4)
    assert standin.bodies[1]["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "first\nline"},
        {"role": "assistant", "content": f"{markup} & so on"},
        {"role": "user", "content": "second"},
    ]
    assert "n" not in standin.bodies[0]


def test_everything_can_be_done_with_the_keyboard(open_tab: Callable[..., Tab]) -> None:
    standin = StandIn([["one", " two"]])
    tab = open_tab(standin.app)
    expect(tab.page.get_by_label("Model")).to_have_value("standin")
    press = tab.page.keyboard.press

    def reach(name: str) -> None:
        for _ in range(40):
            if tab.page.evaluate(FOCUSED) == name:
                return
            press("Tab")
        raise AssertionError(f"Tab never comes to {name}")

    visited = []
    for _ in range(18):
        press("Tab")
        visited.append(tab.page.evaluate(FOCUSED))
        assert tab.page.evaluate(OUTLINED), f"{visited[-1]} shows no focus"
    assert visited == [
        *("API key…", "Complete", "Prompt", "Complete", "Complete as I type"),
        *(
            "Model",
            "max_tokens",
            "temperature",
            "top_p",
            "seed",
            "n",
            "stop, one a line, \\n is a line break",
        ),
        "View as code",
        *("/v1/models", "/metrics", "/openapi.json", "", "API key…"),
    ]
    reach("Prompt")
    press("Control+End")
    press("Control+Enter")
    expect(tab.page.locator("#status")).to_contain_text("ready")
    press("Tab")
    assert tab.text().endswith("one two")
    press("Shift+Tab")
    press("End")
    assert tab.page.evaluate(FOCUSED) == "Chat"
    reach("Message")
    tab.page.keyboard.type("hello")
    press("Enter")
    expect(tab.page.locator(".messages .assistant pre")).to_have_text("one two")
    expect(tab.page.locator("#status")).to_have_text("Answered.")
    reach("New conversation")
    press("Enter")
    expect(tab.page.locator(".messages li")).to_have_count(0)


def test_the_application_understands_all_three_modes(tmp_path: Path, open_tab: Callable[..., Tab]) -> None:
    (tmp_path / "chat_template.jinja").write_text(
        "{% for message in messages %}{{ message.content }}|{% endfor %}"
    )
    scripted = Scripted(tmp_path)
    scripted.engine.load(scripted.backend)
    tab = open_tab(scripted.app)
    expect(tab.page.locator("#served dl")).to_contain_text("Fill in the middleyesChat templateyes")
    tab.page.get_by_label("n", exact=True).fill("2")
    tab.page.get_by_label("seed").fill("7")
    tab.page.get_by_label("stop").fill("nothing\\n")
    tab.page.get_by_role("tab", name="Fill in the middle").click()
    tab.write("a\nb")
    tab.page.keyboard.press("ArrowLeft")
    tab.page.keyboard.press("Control+Enter")
    expect(tab.find(".choices")).to_contain_text("Choice 1 of 2")
    expect(tab.page.locator("#m-finish")).to_have_text("stop")
    tab.page.keyboard.press("Tab")
    assert tab.text() == f"a\n{CODE}b"
    tab.page.get_by_role("tab", name="Chat").click()
    for question in ("one", "two"):
        tab.page.get_by_label("Message", exact=True).fill(question)
        tab.page.keyboard.press("Enter")
        expect(tab.page.locator("#status")).to_have_text("Answered.")
    expect(tab.page.locator(".messages .assistant pre")).to_have_text([CODE, CODE])
    tab.page.goto("about:blank")  # the page would see the server end
    scripted.engine.close()
    fill = [PREFIX, *b"a\n", SUFFIX, *b"b", MIDDLE]
    assert [list(prompt) for prompt in scripted.backend.prompts[:2]] == [fill, fill]
    assert [bytes(prompt).decode() for prompt in scripted.backend.prompts[2:]] == ["one|", f"one|{CODE}|two|"]
