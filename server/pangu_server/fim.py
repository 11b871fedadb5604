"""The code before and after a hole as one prompt, see `pangu_convert.infilling`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pangu_convert.infilling import FimOrder, FimTokens, fim_tokens, line_order
from pangu_server.encoding import Encoder
from pangu_server.errors import ContextLengthExceeded

# What a model writes when it goes on behind the hole: padding, or the next file of a repository.
FILE_SEPARATORS = ("<|file_sep|>", "<file_sep>", "<filename>")
ENDS = ("<fim_pad>", "<|fim_pad|>", "<fim-pad>", "▁<EOT>", "<|repo_name|>", "<repo_name>", "<reponame>")
# Of a context that is too short the prefix gets three parts and the suffix one, as with llama.cpp.
PREFIX_SHARE = 0.75
# A cut moves by this many tokens, or by a share of a small context: from one keystroke to the next the prompt then has
# the beginning that it had, whose keys and values are in the cache.
CUT_TOKENS, CUT_SHARE = 256, 8


@dataclass(frozen=True, slots=True)
class SourceFile:
    """Another file of the same repository, for context."""

    name: str
    text: str


class FillInMiddle:
    """A vocabulary's FIM tokens. `find` says whether it has any. `on_cut` is told of each prompt that is cut."""

    def __init__(
        self,
        encoder: Encoder,
        tokens: FimTokens,
        orders: tuple[FimOrder, FimOrder],
        on_cut: Callable[[], None],
    ) -> None:
        self._encoder, self._orders, self._on_cut = encoder, orders, on_cut
        self._tokens, self.middle = tokens, tokens.middle
        separators = (encoder.token_id(name) for name in FILE_SEPARATORS)
        self._file_separator = next((token_id for token_id in separators if token_id is not None), None)
        ends = [encoder.token_id(name) for name in (*ENDS, *FILE_SEPARATORS)]
        # The hole ends where the model turns to anything else than the hole.
        self.end_token_ids = (*tokens, *(end for end in ends if end is not None))

    @classmethod
    def find(
        cls,
        encoder: Encoder,
        order: FimOrder | None = None,
        on_cut: Callable[[], None] = lambda: None,
    ) -> "FillInMiddle | None":
        """The vocabulary's FIM tokens, if it has them. Without an `order` that of its family, which can be another one
        for a single line."""
        tokens = fim_tokens(encoder.tokenizer)
        orders = (order or "prefix-first", order or line_order(encoder.tokenizer))
        return cls(encoder, tokens, orders, on_cut) if tokens else None

    def asked_in(self, prompt_ids: Sequence[int]) -> bool:
        """Whether what follows a prompt fills a hole. In the order suffix-first code stands behind the middle token."""
        return self.middle in prompt_ids

    def prompt(
        self,
        prefix: str,
        suffix: str,
        max_prompt_tokens: int,
        *,
        files: Sequence[SourceFile] = (),
        parse_special: bool = False,
        add_special: bool = True,
        line: bool = False,
    ) -> list[int]:
        """The ids that ask for the hole between `prefix` and `suffix`, at most `max_prompt_tokens`.

        `line`: what fills it will be cut at the end of the line. `add_special`: what the tokenizer puts before every
        text comes first.

        What is too long loses the start of the prefix and the end of the suffix: what is far from the hole, in steps
        (`CUT_TOKENS`). Files go before what is whole, as many of the last ones as there is room for.

        Raises:
            ContextLengthExceeded: there is no room for any of it.
            RequestError: no valid Unicode.
        """
        encoder = self._encoder
        most = encoder.most_characters
        if len(prefix) > most:  # far more than can be kept: not worth to be tokenized
            prefix = prefix[_whole_steps(len(prefix) - most, most // CUT_SHARE) :]
        suffix = suffix[:most]
        before: Sequence[int] = encoder.text(prefix, parse_special=parse_special, param="prompt")
        after: Sequence[int] = encoder.text(suffix, parse_special=parse_special, param="suffix", begins=False)
        start = encoder.start_ids if add_special else []
        room = max_prompt_tokens - len(start) - 3
        if room < min(1, len(before) + len(after)):
            raise ContextLengthExceeded(
                "max_tokens leaves no room in the context for the code around the hole: lower it",
                param="max_tokens",
            )
        if len(before) + len(after) > room:
            self._on_cut()
            before, after = _cut(before, after, room)
            files = ()  # room that a step leaves now is taken by the next keystrokes
        room -= len(before) + len(after)
        context: list[int] = []
        for file in reversed(files):
            if len(file.name) + len(file.text) > most - 2:
                break
            ids = self._file(file, parse_special)
            if len(context) + len(ids) > room:
                break
            context = ids + context
        return [*start, *context, *self._tokens.prompt(before, after, self._orders[line])]

    def _file(self, file: SourceFile, parse_special: bool) -> list[int]:
        text = self._encoder.text(
            f"{file.name}\n{file.text}\n", parse_special=parse_special, param="input_extra"
        )
        return text if self._file_separator is None else [self._file_separator, *text]


def _cut(before: Sequence[int], after: Sequence[int], room: int) -> tuple[Sequence[int], Sequence[int]]:
    """What of the code around the hole fits into `room`. The cut that typing would move, moves in steps."""
    step = max(1, min(CUT_TOKENS, room // CUT_SHARE))
    prefix_room = max(int(room * PREFIX_SHARE), room - len(after))
    if len(before) > prefix_room:
        return before[_whole_steps(len(before) - prefix_room, step) :], after[: room - prefix_room]
    return before, after[: -_whole_steps(len(before) + len(after) - room, step)]


def _whole_steps(tokens: int, step: int) -> int:
    """`tokens`, rounded up."""
    return -(-tokens // step) * step
