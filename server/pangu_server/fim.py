"""The code before and after a hole as one prompt, see `pangu_convert.infilling`."""

from collections.abc import Sequence
from dataclasses import dataclass

from pangu_convert.infilling import FimTokens, fim_tokens
from pangu_server.encoding import Encoder
from pangu_server.errors import ContextLengthExceeded

# What a model writes when it goes on behind the hole: padding, or the next file of a repository.
FILE_SEPARATORS = ("<|file_sep|>", "<file_sep>", "<filename>")
ENDS = ("<fim_pad>", "<|fim_pad|>", "<fim-pad>", "▁<EOT>", "<|repo_name|>", "<repo_name>", "<reponame>")
# Of a context that is too short the prefix gets three parts and the suffix one, as with llama.cpp.
PREFIX_SHARE = 0.75


@dataclass(frozen=True, slots=True)
class SourceFile:
    """Another file of the same repository, for context."""

    name: str
    text: str


class FillInMiddle:
    """A vocabulary's FIM tokens. `find` says whether it has any."""

    def __init__(self, encoder: Encoder, tokens: FimTokens) -> None:
        self._encoder = encoder
        self._tokens, self.middle = tokens, tokens.middle
        separators = (encoder.token_id(name) for name in FILE_SEPARATORS)
        self._file_separator = next((token_id for token_id in separators if token_id is not None), None)
        ends = [encoder.token_id(name) for name in (*ENDS, *FILE_SEPARATORS)]
        # The hole ends where the model turns to anything else than the hole.
        self.end_token_ids = (*tokens, *(end for end in ends if end is not None))

    @classmethod
    def find(cls, encoder: Encoder) -> "FillInMiddle | None":
        """The vocabulary's FIM tokens, if it has them."""
        tokens = fim_tokens(encoder.tokenizer)
        return cls(encoder, tokens) if tokens else None

    def prompt(
        self,
        prefix: str,
        suffix: str,
        max_prompt_tokens: int,
        *,
        files: Sequence[SourceFile] = (),
        parse_special: bool = False,
    ) -> list[int]:
        """The ids that ask for the hole between `prefix` and `suffix`, at most `max_prompt_tokens`.

        What is too long loses the start of the prefix and the end of the suffix: what is far from the hole.
        Files go before, as many of the last ones as there is room for.

        Raises:
            ContextLengthExceeded: there is no room for any of it.
            RequestError: no valid Unicode.
        """
        encoder = self._encoder
        before = encoder.text(prefix, parse_special=parse_special, param="prompt")
        after = encoder.text(suffix, parse_special=parse_special, param="suffix")
        room = max_prompt_tokens - len(encoder.start_ids) - 3
        if room < min(1, len(before) + len(after)):
            raise ContextLengthExceeded(
                "max_tokens leaves no room in the context for the code around the hole: lower it",
                param="max_tokens",
            )
        prefix_room = max(int(room * PREFIX_SHARE), room - len(after))
        before = before[max(0, len(before) - prefix_room) :]
        after = after[: room - len(before)]
        room -= len(before) + len(after)
        context: list[int] = []
        for file in reversed(files):
            ids = self._file(file, parse_special)
            if len(context) + len(ids) > room:
                break
            context = ids + context
        return [*encoder.start_ids, *context, *self._tokens.prompt(before, after)]

    def _file(self, file: SourceFile, parse_special: bool) -> list[int]:
        text = self._encoder.text(
            f"{file.name}\n{file.text}\n", parse_special=parse_special, param="input_extra"
        )
        return text if self._file_separator is None else [self._file_separator, *text]
