"""Our renderer against transformers' own, over templates of many kinds and any conversation."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.chat_templates import HERMES, MARKED, TEMPLATES
from support.scripted import byte_tokenizer
from transformers import PreTrainedTokenizerFast

from pangu_convert.chat_template import read_chat_templates, template_fault
from pangu_convert.conversion import cautions
from pangu_convert.rendering import NoTools, Renderer
from pangu_training.stage.checkpoint import read_checkpoint

TOKENS = {"bos_token": "<filename>", "eos_token": "<|endoftext|>"}
TOOL = {
    "type": "function",
    "function": {
        "name": "grep",
        "description": "Sucht – <b>",
        "parameters": {"type": "object", "required": ["q"]},
    },
}
TEXTS = st.one_of(
    st.text(max_size=5),
    st.sampled_from(["", " a ", "\n", "<think>\nhm\n</think>\n\nyes", "\ttab\n\n", "é<|im_end|>", "{{ 1 }}"]),
)
FUNCTION = st.fixed_dictionaries({"name": TEXTS, "arguments": st.dictionaries(TEXTS, TEXTS, max_size=1)})
CALLS = st.lists(st.fixed_dictionaries({"type": st.just("function"), "function": FUNCTION}), max_size=2)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "user", "assistant", "tool", "wizard"])},
        optional={
            "content": st.none() | TEXTS,
            "tool_calls": st.none() | CALLS,
            "reasoning": st.none() | TEXTS,
            "reasoning_content": TEXTS,
            "name": TEXTS,
        },
    ),
    min_size=1,
    max_size=3,
)
OPTIONS = st.fixed_dictionaries(
    {"ending": st.sampled_from(["none", "prompt", "continue"]), "tools": st.sampled_from([None, [], [TOOL]])},
    optional={
        "documents": st.just([{"title": "a", "text": "b"}]),
        "variables": st.dictionaries(
            st.sampled_from(["enable_thinking", "custom", "controls", "eos_token"]), st.booleans() | TEXTS, max_size=2
        ),
    },
)  # fmt: skip


def tokenizer(source: Any) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer(), chat_template=source, **TOKENS)


def outcome(function: Any) -> tuple[str, str]:
    """A text, or that there is none: the words of an error are each one's own."""
    try:
        return "text", function()
    except Exception:
        return "error", ""


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_conversation_is_rendered_as_transformers_renders_it(name: str) -> None:
    ours, theirs = Renderer({"default": TEMPLATES[name]}, TOKENS), tokenizer(TEMPLATES[name])
    texts = []

    @settings(max_examples=25, deadline=None)
    @given(MESSAGES, OPTIONS)
    @example([{"role": "user", "content": "hi"}], {"ending": "prompt", "tools": None})
    def same(messages: list[dict[str, Any]], options: dict[str, Any]) -> None:
        ending = {
            "add_generation_prompt": options["ending"] == "prompt",
            "continue_final_message": options["ending"] == "continue",
        }
        variables, documents, tools = options.get("variables", {}), options.get("documents"), options["tools"]

        def rendered() -> str:
            try:
                return ours.render(messages, tools=tools, documents=documents, **ending, variables=variables)
            except NoTools:
                assert name != "hermes"
                return ours.render(messages, documents=documents, **ending, variables=variables)

        def expected() -> Any:
            shown = tools if name == "hermes" else None  # what we refuse, they leave out or show
            return theirs.apply_chat_template(
                messages, tools=shown, documents=documents, tokenize=False, **ending, **variables
            )

        found = outcome(rendered)
        assert found == outcome(expected)
        texts.append(found[0])

    same()
    assert (set(texts) == {"error"}) == (name in ("underscore", "class", "keys")), (
        "the cases must tell something"
    )


def test_a_template_of_its_own_for_tools_is_taken() -> None:
    sources = {"default": "plain", "tool_use": HERMES, "rag": "no"}
    renderer, theirs = Renderer(sources, TOKENS), tokenizer(sources)
    messages = [{"role": "user", "content": "hi"}]
    assert renderer.render(messages) == theirs.apply_chat_template(messages, tokenize=False) == "plain"
    expected = theirs.apply_chat_template(messages, tools=[TOOL], tokenize=False, add_generation_prompt=True)
    assert renderer.render(messages, tools=[TOOL]) == expected
    with pytest.raises(ValueError, match=r"\(tool_use\) is the default"):
        Renderer({"tool_use": HERMES}, TOKENS).render(messages)


def test_tools_only_where_their_calls_can_be_read() -> None:
    messages = [{"role": "user", "content": "hi"}]
    for source, why in (
        (MARKED, "no place for tools"),
        (TEMPLATES["documents"], "a form that is not read here"),
        (HERMES + "{# <function=name> #}", "a form that is not read here"),
        ("{# tools <tool_call> #}", "no place for tools"),
    ):
        with pytest.raises(NoTools, match=why):
            Renderer({"default": source}, {}).render(messages, tools=[TOOL])


@pytest.mark.parametrize("older", [True, False])
def test_the_files_are_read_as_transformers_reads_them(tmp_path: Path, older: bool) -> None:
    source = "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}|{{ sep_token }}|{{ messages[0].content }}"
    made = tokenizer([{"name": "default", "template": source}, {"name": "tool_use", "template": "t"}])
    made.save_pretrained(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    fields = {
        **json.loads(config.read_text()),
        "bos_token": {"content": "<fim_prefix>", "__type": "AddedToken"},
    }
    fields.pop("added_tokens_decoder", None)
    if not older:
        fields["added_tokens_decoder"] = {}
    fields["chat_template"] = [{"name": "default", "template": source}]
    config.write_text(json.dumps(fields))
    for file in tmp_path.rglob("*.jinja"):
        file.unlink()
    (tmp_path / "special_tokens_map.json").write_text(
        '{"pad_token": {"content": "<fim_middle>"}, "sep_token": ""}'
    )
    messages = [{"role": "user", "content": "hi"}]
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    found = read_chat_templates(tmp_path)
    assert found is not None
    rendered = Renderer(found.sources, found.special_tokens).render(messages)
    assert rendered == theirs.apply_chat_template(messages, tokenize=False)
    assert rendered.startswith("<fim_prefix>|<|endoftext|>|" + ("<fim_middle>" if older else "|"))


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        (HERMES, None),
        ("{% if %}", "TemplateSyntaxError: Expected an expression"),
        ("{{ raise_exception('not for you') }}", "TemplateError: not for you"),
        ("{% for message in messages %}{{ message.role }}{% endfor %}", "leaves out what a user says"),
        ("{{ messages[0].text.more }}", "UndefinedError"),
        ("{{ messages[0].content * 10 ** 9 }}", "too much memory"),
    ],
)
def test_a_fault_is_found_before_anybody_chats(tmp_path: Path, source: str, fault: str | None) -> None:
    (tmp_path / "chat_template.jinja").write_text(source)
    found = template_fault(tmp_path)
    assert (found is None) if fault is None else (fault in str(found) and "\n" not in str(found))


def test_a_conversion_says_it_in_one_line(tiny_starcoder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_starcoder, tmp_path / "checkpoint"))
    assert not list(cautions(read_checkpoint(folder)))
    (folder / "chat_template.jinja").write_text("{% for message in messages %}")
    [caution] = cautions(read_checkpoint(folder))
    assert caution.startswith("the chat template cannot be used (TemplateSyntaxError: ")
    assert "\n" not in caution
