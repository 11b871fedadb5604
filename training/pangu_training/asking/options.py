"""What a verb that asks a server takes: which server, how many questions at a time, and how answers are drawn."""

from dataclasses import dataclass

from pangu_training.stage.options import counted, number_within, option

SERVER, ANSWERS = "server", "answers"


@dataclass(frozen=True, slots=True, kw_only=True)
class AskingOptions:
    """Which server is asked, how many questions at a time, and what a token costs there."""

    base_url: str = option(
        "an OpenAI-style server; its key is in $OPENAI_API_KEY", metavar="URL", group=SERVER
    )
    model: str = option("one of the server's models (default: its first)", "", group=SERVER)
    concurrency: int = counted("requests at a time", 8, metavar=None, group=SERVER)
    price_prompt: float | None = option(
        "of a million prompt tokens, in any currency, for the summary",
        None,
        type=number_within(0),
        metavar="PRICE",
        group=SERVER,
    )
    price_completion: float | None = option(
        "of a million completion tokens, in any currency, for the summary",
        None,
        type=number_within(0),
        metavar="PRICE",
        group=SERVER,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationOptions:
    """How answers are drawn."""

    temperature: float = option("", 1.0, type=number_within(0, 2), group=ANSWERS)
    top_p: float = option("", 0.95, type=number_within(0, 1), group=ANSWERS)
    max_tokens: int = counted("an answer", 1024, metavar=None, group=ANSWERS)
    seed: int | None = option(
        "repeatable answers; slower with CTranslate2 (default: draw anew)", None, group=ANSWERS
    )
