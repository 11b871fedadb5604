"""What the page tells of its own requests: as code to copy, in colours, at the field that is wrong."""

import contextlib
import io
import json
import shlex
from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import expect
from support.browser import CODE, Scripted, Tab, serving
from support.served import wait_for
from support.standin import StandIn

HARD = "s = 'it\\'s \u2028 \\\\n'  # $HOME `ls` \"\"\" é😀\n\tpass !!"
COLOURED = """() => Object.fromEntries([...CSS.highlights].map(([kind, ranges]) => [kind, [...ranges]
  .filter((range) => range.startContainer.parentElement.checkVisibility())
  .map((range) => range.startContainer.data.slice(range.startOffset, range.endOffset))]))"""


def code_of(tab: Tab, language: str) -> str:
    """The shown code. `curl` is what it begins with, `Python` a choice."""
    tab.page.get_by_label(language, exact=True).check()
    expect(tab.page.locator("#code code")).to_contain_text(
        "curl -N" if language == "curl" else "import OpenAI"
    )
    return str(tab.page.locator("#code code").text_content())


def words_of(command: str) -> list[str]:
    """As a shell splits it."""
    return shlex.split(command.replace("\\\n", " "))


def run_python(code: str) -> str:
    """What a program prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(code, {})
    return printed.getvalue()


def test_the_code_sends_what_the_page_sends(
    open_tab: Callable[..., Tab], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sesame")
    standin = StandIn([["one", " two"]], key="sesame")
    with serving(standin.app) as address:
        tab = open_tab(address)
        tab.refused = {401}
        tab.page.get_by_role("dialog").get_by_label("API key").fill("sesame")
        tab.page.keyboard.press("Enter")
        expect(tab.page.get_by_label("Model")).to_have_value("standin")
        tab.page.get_by_label("stop").fill("'\\n\n\"")
        tab.page.get_by_label("seed").fill("3")
        tab.page.get_by_text("View as code").click()
        for mode, path in (("Fill in the middle", "completions"), ("Chat", "chat/completions")):
            standin.bodies.clear()
            tab.page.get_by_role("tab", name=mode).click()
            if mode == "Chat":
                tab.page.get_by_label("System message").fill(HARD)
                tab.page.get_by_label("Message", exact=True).fill(HARD)
            else:
                tab.write(HARD)
                for key in ("Control+Home", "ArrowRight"):  # the code follows the caret
                    tab.page.keyboard.press(key)
            curl, python = code_of(tab, "curl"), code_of(tab, "Python")
            assert "sesame" not in curl + python
            tab.find(".run").click()
            expect(tab.page.locator("#m-finish")).to_have_text("stop")
            assert run_python(python) == "one two"
            by_page, by_python = standin.bodies
            assert by_python == by_page
            words = words_of(curl)
            assert words[:3] == ["curl", "-N", f"{address}v1/{path}"]
            assert words[3:5] == ["-H", "Authorization: Bearer $OPENAI_API_KEY"]
            assert words[5:8] == ["-H", "Content-Type: application/json", "-d"]
            assert json.loads(words[8]) == by_page
        tab.page.goto("about:blank")  # the page would see the server end


def test_code_is_copied_and_says_what_is_wrong(open_tab: Callable[..., Tab]) -> None:
    tab = open_tab(StandIn([["a"], ["b"]]).app, permissions=["clipboard-read", "clipboard-write"])
    expect(tab.page.get_by_label("Model")).to_have_value("standin")
    tab.page.get_by_text("View as code").click()
    copy = tab.page.get_by_role("button", name="Copy", exact=True)
    curl = code_of(tab, "curl")
    assert "Authorization" not in curl, "there is no key"
    copy.click()
    expect(tab.page.locator("#status")).to_have_text("Copied.")
    assert tab.page.evaluate("navigator.clipboard.readText()") == curl
    tab.page.evaluate(
        "() => { navigator.clipboard.writeText = () => Promise.reject(); }"
    )  # as over plain HTTP
    tab.page.get_by_label("n", exact=True).fill("2")
    python = code_of(tab, "Python")
    copy.click()
    expect(tab.page.locator("#status")).to_have_text("Copied.")
    assert tab.page.evaluate("navigator.clipboard.readText()") == python
    assert sorted(run_python(python).splitlines()) == ["0 ''", "0 'a'", "1 ''", "1 'b'"]
    tab.page.get_by_label("temperature").fill("7")
    expect(tab.page.locator("#code code")).to_contain_text("temperature: ")
    expect(copy).to_be_disabled()


def test_an_error_marks_its_field_until_it_is_changed(open_tab: Callable[..., Tab]) -> None:
    standin = StandIn([["x"]])
    tab = open_tab(standin.app)
    tab.refused = {400}
    for param, field in (
        ("stop.0", tab.page.get_by_label("stop")),
        ("max_tokens", tab.page.get_by_label("max_tokens")),
        ("prompt", tab.page.get_by_label("Prompt", exact=True)),
        ("messages[0].content", tab.page.get_by_label("Message", exact=True)),
    ):
        standin.error, standin.param = (400, f"{param}: wrong", {}), param
        if param.startswith("messages"):
            tab.page.get_by_role("tab", name="Chat").click()
            field.fill("question")
        tab.find(".run").click()
        expect(tab.page.get_by_role("alert")).to_contain_text(f"{param}: wrong")
        expect(field).to_have_attribute("aria-invalid", "true")
        expect(tab.page.locator("[aria-invalid]")).to_have_count(1)
    field.fill("another")
    expect(tab.page.locator("[aria-invalid]")).to_have_count(0)
    tab.find(".run").click()
    expect(field).to_have_attribute("aria-invalid", "true")
    standin.error = None
    tab.find(".run").click()
    expect(tab.page.locator("#status")).to_have_text("Answered.")
    expect(tab.page.locator("[aria-invalid]")).to_have_count(0)
    tab.page.get_by_label("top_p").fill("2")  # what the page itself refuses
    field.fill("another")
    tab.find(".run").click()
    expect(tab.page.get_by_label("top_p")).to_have_attribute("aria-invalid", "true")


def test_code_is_coloured_where_its_language_is_clear(scripted: Scripted, tab: Tab) -> None:
    def coloured(text: str) -> Any:
        # Not typed: for Chromium that is slow with thousands of lines.
        tab.find(".editor textarea").evaluate(
            "(area, text) => { area.value = text; area.dispatchEvent(new Event('input')); }", text
        )
        return tab.page.evaluate(COLOURED)

    assert coloured("def f(self):\n    return 'a # b' + 0x1F  # why, 2\n") == {
        "comment": ["# why, 2"],
        "string": ["'a # b'"],
        "number": ["0x1F"],
        "keyword": ["def", "return"],
    }
    script = "/* a\nb */ const x = `y\n${1}` === 2;\n"
    found = coloured(script)
    assert (found["comment"], found["string"], found["keyword"]) == (["/* a\nb */"], ["`y\n${1}`"], ["const"])
    assert coloured("#include <a.h>\nint main(void) { return 1; } // x")["comment"] == ["// x"]
    assert coloured("package a\nfunc b() { c := nil }")["keyword"] == ["package", "func", "nil"]
    assert coloured("fn a<'b>(c: &'b str) { let mut d = '\"'; }")["string"] == ["'\"'"]
    assert coloured("select a from b where c = 'it''s' -- d")["string"] == ["'it''s'"]
    nothing: dict[str, list[str]] = {"comment": [], "string": [], "number": [], "keyword": []}
    for unsure in (
        "",
        "Dear reader, it's 2 for you.",
        "def f():\n" * 3000,
        "def f():\n    'a'\npackage a\n",
    ):
        assert coloured(unsure) == nothing
    coloured("def f():\n" * 1000)  # coloured in a pause
    wait_for(lambda: len(tab.page.evaluate(COLOURED)["keyword"]) == 1000)
    # A ghost leaves the colours around it, and what is accepted gets its own.
    tab.write("def f(n):\n    ")
    tab.find(".run").click()
    expect(tab.find(".ghost")).to_have_text(CODE)
    assert tab.page.evaluate(COLOURED)["keyword"] == ["def"]
    tab.page.keyboard.press("Tab")
    tab.find(".editor textarea").press("Tab")
    assert tab.page.evaluate(COLOURED)["keyword"] == ["def", "return"]
    colours = """(kinds) => kinds.map((kind) =>
      getComputedStyle(document.querySelector(".mirror"), `::highlight(${kind})`).color)"""
    assert len(set(tab.page.evaluate(colours, list(nothing)))) == len(nothing)


def test_the_gap_is_marked_where_the_caret_is(open_tab: Callable[..., Tab]) -> None:
    tab = open_tab(StandIn([["x"]]).app)
    tab.page.get_by_role("tab", name="Fill in the middle").click()
    tab.page.locator("h1").click()  # also while the caret is elsewhere
    marked = """() => { const [before, ghost] = document.querySelectorAll("#panel-fill .mirror span");
      return [before.textContent, getComputedStyle(ghost, "::before").content]; }"""
    assert tab.page.evaluate(marked) == ["def is_prime(n):\n    if n < 2:\n        return False\n", '""']
    tab.write("ab")
    tab.page.keyboard.press("ArrowLeft")
    wait_for(lambda: tab.page.evaluate(marked)[0] == "a")
    tab.find(".run").click()
    expect(tab.find(".ghost")).to_have_text("x")
    assert tab.page.evaluate(marked) == ["a", "none"]
