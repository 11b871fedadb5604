"""A conversation in a checkpoint's own format: code begun by a user and gone on with by the assistant."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pangu_training.stage.bounded import bounded
from pangu_training.stage.errors import CheckpointError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

QUESTION = "Complete this Python code:\n\n```python\n{}```"
ANSWER = "```python\n{}```"

# Conversations, (question, answer) each -> the texts of them, special tokens by name
ChatFormat = Callable[[Sequence[tuple[str, str]]], list[str]]


class NoChatTemplate(CheckpointError):
    """The model was made for plain text."""


def chat_format(folder: Path) -> ChatFormat:
    """That of a checkpoint's chat template, which is a program: it runs in a process of its own.

    Raises:
        NoChatTemplate, CheckpointError: there is none, or it is at fault; the format's call raises them.
    """

    def texts(conversations: Sequence[tuple[str, str]]) -> list[str]:
        try:
            found = bounded(__name__, "render", str(folder), conversations, libraries=("transformers",))
        except ValueError as error:
            raise CheckpointError(
                f"{folder} has a chat template that cannot be used: repair it, or remove it ({error})"
            ) from None
        if found is None:
            raise NoChatTemplate(f"{folder} has no chat template: leave --chat out")
        return list(found)

    return texts


def render(folder: str, conversations: Sequence[Sequence[str]]) -> list[str] | None:
    """The texts of conversations, (question, answer) each; None without a template."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(
        folder, local_files_only=True, trust_remote_code=False
    )
    if not tokenizer.chat_template:
        return None
    return [
        str(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
                tokenize=False,
            )
        )
        for question, answer in conversations
    ]


def as_chats(
    rows: Sequence[Sequence[int]], tokenizer: "Tokenizer", chat: ChatFormat, choice: random.Random
) -> list[tuple[tuple[int, ...], int]]:
    """The code of each row, begun by a user, cut to the same length; where the answer begins."""
    conversations = []
    for row in rows:
        lines = tokenizer.decode(list(row)).splitlines(keepends=True)
        cut = choice.randint(1, max(1, len(lines) // 2))
        conversations.append((QUESTION.format("".join(lines[:cut])), ANSWER.format("".join(lines[cut:]))))
    chats = []
    for row, (_, answer), text in zip(rows, conversations, chat(conversations), strict=True):
        start = max(0, text.rfind(answer))  # a template may change it: then all of it is the answer
        asked, answered = (
            tokenizer.encode(part, add_special_tokens=False).ids for part in (text[:start], text[start:])
        )
        chats.append(((*asked, *answered, *row)[: len(row)], len(asked)))
    return chats
