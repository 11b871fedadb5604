"""The first tokens of a loaded model, made before anybody waits for them.

Libraries load kernels, compile and fail at first use. All that a request can need runs once here. Then the plain
part runs again, and `CostModel` learns this machine from it.
"""

from collections.abc import Callable, Sequence

from pangu_server.backends.ctranslate2.batch import Batch
from pangu_server.backends.ctranslate2.batches import BatchSchedule
from pangu_server.backends.ctranslate2.costs import CostModel
from pangu_server.backends.schedule import Ticket
from pangu_server.backends.seam import SamplingOptions, TokenLogprobs

PROMPT_TOKENS = {"cpu": 64, "cuda": 1024}  # prefilled at once; a GPU takes next to no time for them
SHORT, NEW_TOKENS = 2, 2
GREEDY = SamplingOptions(max_tokens=NEW_TOKENS, temperature=0)
DRAWN = SamplingOptions(max_tokens=NEW_TOKENS, temperature=0.8, top_p=0.95)
SEEDED = SamplingOptions(max_tokens=NEW_TOKENS, temperature=0.8, seed=0, logprobs=1)


class Unheard:
    """A listener to tokens that are for nobody. `on_first` is called at the first one."""

    def __init__(self, on_first: Callable[[], None] = lambda: None) -> None:
        self._on_first = on_first
        self._heard = False

    def on_start(self) -> None:
        """See `Listener`."""

    def on_prompt(self, logprobs: Sequence[TokenLogprobs | None]) -> None:
        """See `Listener`."""

    def on_token(self, token_id: int, logprobs: TokenLogprobs | None) -> bool:
        """See `Listener`."""
        if not self._heard:
            self._heard = True
            self._on_first()
        return False

    def on_end(self, error: Exception | None) -> None:
        """See `Listener`."""


def warm(schedule: BatchSchedule, *, rows: int, tokens: int, drawn: SamplingOptions) -> None:
    """Run all that requests do: `tokens` tokens as one prompt and as `rows`; greedy, seeded, and drawn; read.

    `drawn` is what the schedule makes of DRAWN. Raises what the engine raises.
    """

    def run(options: SamplingOptions, costs: CostModel, rows: int = 1, prompt_tokens: int = SHORT) -> None:
        prompt = [0] * prompt_tokens
        schedule.run(Batch([Ticket(prompt, options, Unheard()) for _ in range(rows)], costs))

    def once() -> None:
        run(GREEDY, CostModel(), prompt_tokens=tokens)
        run(GREEDY, CostModel(), rows, max(SHORT, tokens // rows))
        run(drawn, CostModel())
        run(SEEDED, CostModel())
        schedule.forward([0] * SHORT)

    # All of it inside the first step of another batch, as `BatchSchedule` does it: that warms both workers.
    schedule.run(Batch([Ticket([0] * SHORT, GREEDY, Unheard(once))], CostModel()))
    run(GREEDY, schedule.costs)  # steps first: what a prefill takes is told apart from a step
    run(GREEDY, schedule.costs, prompt_tokens=tokens)
