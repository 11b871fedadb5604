"""From ranked rows to batches: token ids, and which of them are learnt.

Of a row there are two texts, prompt and chosen code, prompt and rejected code, each followed by the end of text.
Only code and end of text are learnt. Prompt and code are tokenized apart, as they are when a server is asked.

Nothing is longer than `max_length` tokens. A row whose prompt and chosen code do not fit is left out. A rejected code
that does not fit is cut: a student that never ends is what ranking is to unlearn.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pangu_training.data.ranked import RankedRow
from pangu_training.evaluation.prompt import format_prompt
from pangu_training.stage.checkpoint import TOKENIZER, Checkpoint
from pangu_training.stage.vocabulary import read_tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A ranked row in token ids."""

    prompt: list[int]
    chosen: list[int]  # code and end of text
    rejected: list[int]  # the same, cut at the maximal length
    score_gap: float  # r_tea - r_stu


class PairTokenizer:
    """A checkpoint's tokenizer, for training: names of special tokens in users' text stay text."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._tokenizer = read_tokenizer(checkpoint.path / TOKENIZER)
        self._tokenizer.encode_special_tokens = True
        self.start_ids: list[int] = self._tokenizer.encode("").ids  # what it puts before every text
        self.end_id = checkpoint.end_token_ids[0]

    def token(self, token_id: int) -> str:
        """A token by its name."""
        return str(self._tokenizer.id_to_token(token_id))

    def prompt(self, problem: str) -> list[int]:
        """What comes before an answer to `problem`, a text in words."""
        return self.start_ids + self._ids(format_prompt(problem))

    def text(self, token_ids: Sequence[int]) -> str:
        """An answer's text; special tokens are left out."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def pair(self, row: RankedRow, max_length: int) -> Pair | None:
        """`row` in token ids; None when prompt and chosen answer are longer than `max_length`."""
        prompt = self.prompt(row.prompt)
        chosen, rejected = ([*self._ids(answer.text), self.end_id] for answer in (row.chosen, row.rejected))
        space = max_length - len(prompt)
        if len(chosen) > space:
            return None
        return Pair(
            prompt=prompt,
            chosen=chosen,
            rejected=rejected[:space],
            score_gap=row.chosen.score - row.rejected.score,
        )

    def pairs(self, rows: Iterable[RankedRow], max_length: int) -> list[Pair]:
        """All rows that fit."""
        return [pair for row in rows if (pair := self.pair(row, max_length))]

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids


def collate(pairs: Sequence[Pair]) -> dict[str, Tensor]:
    """A batch of B pairs: their chosen texts in the first B rows, the rejected ones in the last B.

    Returns:
        input_ids, attention_mask [2B, T], padded on the right; is_answer [2B, T], true where a token is learnt;
        score_gap [B].
    """
    texts = [(pair.prompt, pair.chosen) for pair in pairs] + [(pair.prompt, pair.rejected) for pair in pairs]
    longest = max(len(prompt) + len(answer) for prompt, answer in texts)
    input_ids = torch.zeros(len(texts), longest, dtype=torch.long)  # any token will do: it is masked
    attention_mask, is_answer = torch.zeros_like(input_ids), torch.zeros_like(input_ids, dtype=torch.bool)
    for row, (prompt, answer) in enumerate(texts):
        end = len(prompt) + len(answer)
        input_ids[row, :end] = torch.tensor(prompt + answer)
        attention_mask[row, :end] = 1
        is_answer[row, len(prompt) : end] = True
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "is_answer": is_answer,
        "score_gap": torch.tensor([pair.score_gap for pair in pairs]),
    }
