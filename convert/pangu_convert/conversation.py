"""A conversation in a checkpoint's own format: code begun by a user and gone on with by the assistant."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pangu_training.stage.errors import CheckpointError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

QUESTION = "Complete this Python code:\n\n```python\n{}```"
ANSWER = "```python\n{}```"

# (question, answer) -> the text of the conversation, special tokens by name
ChatFormat = Callable[[str, str], str]


def chat_format(folder: Path) -> ChatFormat | None:
    """That of a checkpoint's chat template, if it has one.

    Raises:
        CheckpointError: it is at fault; the format's call raises it too.
    """
    from jinja2 import TemplateError
    from transformers import PreTrainedTokenizerFast

    faults = (OSError, ValueError, TypeError, LookupError, ImportError, TemplateError)
    help_text = f"{folder} has a chat template that cannot be used: repair it, or remove it"
    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except faults as error:
        raise CheckpointError(f"{help_text} ({error})") from None
    if not tokenizer.chat_template:
        return None

    def text(question: str, answer: str) -> str:
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        try:
            return str(tokenizer.apply_chat_template(messages, tokenize=False))
        except faults as error:
            raise CheckpointError(f"{help_text} ({error})") from None

    return text


def as_chat(
    row: Sequence[int], tokenizer: "Tokenizer", chat: ChatFormat, choice: random.Random
) -> tuple[tuple[int, ...], int]:
    """The code of `row`, begun by a user, cut to the same length; where the answer begins."""
    lines = tokenizer.decode(list(row)).splitlines(keepends=True)
    cut = choice.randint(1, max(1, len(lines) // 2))
    answer = ANSWER.format("".join(lines[cut:]))
    text = chat(QUESTION.format("".join(lines[:cut])), answer)
    start = max(0, text.rfind(answer))  # a template may change it: then all of it is the answer
    asked, answered = (
        tokenizer.encode(part, add_special_tokens=False).ids for part in (text[:start], text[start:])
    )
    return (*asked, *answered, *row)[: len(row)], len(asked)
