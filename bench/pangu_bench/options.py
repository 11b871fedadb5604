"""What several verbs take: how a model is asked, what of its costs is measured, which servers run already."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from pangu_training.evaluation.styles import STYLES
from pangu_training.evaluation.suites import READERS, suite_file
from pangu_training.stage.errors import PanguError
from pangu_training.stage.options import counted, number_within, option

QUESTIONS, ANSWERS, COSTS = "questions", "answers", "costs"
FILES = (500, 1500, 4000)  # tokens, of the files that are typed into
MIDDLE_FILE = FILES[1]
TYPED_TOKENS = 6  # a keystroke, at the most on average


class UsageError(PanguError):
    """The command's arguments do not go together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerOptions:
    """How a model is asked: the suite, how it is shown, how answers are drawn. Part of a result's configuration.

    Raises:
        UsageError: the options do not go together.
    """

    suite: str = option(
        f"humaneval, or FORM:FILE with FORM one of {', '.join(READERS)}; of leetcode also FILE#A-B, question ids",
        "humaneval",
        metavar="SUITE",
        reads=suite_file,
        group=QUESTIONS,
    )
    style: str = option("prompt style", "completion", choices=STYLES, group=QUESTIONS)
    limit: int | None = counted("the first K problems only", None, metavar="K", group=QUESTIONS)
    samples: int = counted("a problem", 1, group=ANSWERS)
    temperature: float = option("0 is greedy", 0.0, type=number_within(0, 2), group=ANSWERS)
    top_p: float = option("when sampling", 0.95, type=number_within(0, 1), group=ANSWERS)
    max_tokens: int = counted("an answer", 512, metavar=None, group=ANSWERS)
    seed: int | None = option(
        "repeatable samples; slower with CTranslate2 (default: draw anew)", None, group=ANSWERS
    )
    concurrency: int = counted(
        "requests at a time; above 1 near-ties of a greedy answer can fall otherwise",
        1,
        metavar=None,
        group=ANSWERS,
    )
    unsafe: bool = option(
        "run answers even where they cannot be confined: they can read your files", False, group=ANSWERS
    )

    def __post_init__(self) -> None:
        if self.samples > 1 and self.temperature == 0:
            raise UsageError("--samples above 1 are all alike without a --temperature above 0: give one")


@dataclass(frozen=True, slots=True, kw_only=True)
class CostOptions:
    """What is measured; counts are tokens or requests. Part of a result's configuration."""

    prompt_tokens: tuple[int, ...] = counted("", (64, 512), group=COSTS)  # each once
    new_tokens: int = counted("", 64, least=2, metavar=None, group=COSTS)
    context: int = counted("at which memory peaks", 2048, least=3, metavar=None, group=COSTS)
    warmup: int = counted("requests a length", 3, least=0, metavar=None, group=COSTS)
    repeats: int = counted("requests a length", 10, metavar=None, group=COSTS)

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt_tokens", tuple(dict.fromkeys(self.prompt_tokens)))

    def check(self, name: str, context_length: int) -> None:
        """Raise `UsageError` unless all of it fits the context of the model `name`."""
        needed = max(self.context, self.new_tokens + max(self.prompt_tokens))
        if needed > context_length or self.context <= self.new_tokens:
            raise UsageError(
                f"{name} has a context of {context_length} tokens, which "
                f"--context {self.context}, and --prompt-tokens with --new-tokens {self.new_tokens}, must fit"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class EditorOptions:
    """What is typed, and how its completions are asked for. Part of a result's configuration.

    Raises:
        UsageError: the pauses are in the wrong order.
    """

    keystrokes: int = counted("a file, after a first request that opens it", 40)
    cancelled: float = option(
        "share of the keystrokes that do not wait for their completion: the next one drops its connection",
        0.5,
        type=number_within(0, 1),
        metavar="SHARE",
    )
    pause_ms: tuple[int, ...] = counted(
        "after which the next keystroke comes then, least and most", (100, 400), nargs=2, metavar="MS"
    )
    accepted: float = option(
        "share of the completions waited for that become part of the file",
        0.3,
        type=number_within(0, 1),
        metavar="SHARE",
    )
    new_tokens: int = counted("a completion", 16, metavar=None)
    fim: Literal["auto", "suffix", "infill", "off"] = option(
        "how the code behind the cursor is sent: `suffix` of /v1/completions, llama.cpp's /infill, or not at all; "
        "auto is the first that the server takes",
        "auto",
    )
    seed: int = option("another one types other text into another file", 0)
    warmup: int = counted("requests first", 3, least=0, metavar=None)

    def __post_init__(self) -> None:
        if self.pause_ms[0] > self.pause_ms[1]:
            raise UsageError("--pause-ms: give the shorter pause first")

    @property
    def num_cancelled(self) -> int:
        """Keystrokes that do not wait."""
        return round(self.cancelled * self.keystrokes)

    @property
    def num_accepted(self) -> int:
        """Completions that become part of the file."""
        return round(self.accepted * (self.keystrokes - self.num_cancelled))

    def check(self, name: str, context_length: int | None, file_tokens: int) -> None:
        """Raise `UsageError` unless a file, with what is typed and accepted, fits the context of the model `name`."""
        grown = self.keystrokes * TYPED_TOKENS + (self.num_accepted + 1) * self.new_tokens
        if context_length is not None and file_tokens + grown > context_length:
            raise UsageError(
                f"{name} has a context of {context_length} tokens, too short for a file of {file_tokens} into which "
                f"up to {grown} are typed: take a shorter file or fewer --keystrokes"
            )


class Running(NamedTuple):
    """A server that runs already; `name` is what results call it, None for its model's own."""

    url: str
    name: str | None


def running_server(text: str) -> Running:
    """An argument's type: `URL` or `URL=NAME`."""
    url, _, name = text.partition("=")
    return Running(url, name or None)
