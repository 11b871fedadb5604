"""What a request can cost in memory, known before any of it is computed."""

from collections.abc import Sequence

from pangu_server.backends.seam import SamplingOptions

# Bytes in this process, measured and rounded up: of a prompt's token in one choice, of a generated token, of a token
# that is reported with its log-probability, and of each alternative to it.
PROMPT_TOKEN, NEW_TOKEN, REPORTED, ALTERNATIVE = 8, 72, 700, 360
CHOICE = 16 << 10  # of a choice itself: its text decoder, its place in the queue


def memory_bytes(prompt_lengths: Sequence[int], choices: int, sampling: SamplingOptions) -> int:
    """The most that a request holds until it has been answered. `choices` of each prompt; lengths in tokens."""
    prompts = sum(prompt_lengths)
    new = len(prompt_lengths) * choices * sampling.max_tokens
    held = PROMPT_TOKEN * choices * prompts + NEW_TOKEN * new + CHOICE * len(prompt_lengths) * choices
    for tokens, alternatives in (
        (new, sampling.logprobs),
        (choices * prompts, sampling.prompt_logprobs),
    ):
        if alternatives is not None:
            held += tokens * (REPORTED + ALTERNATIVE * alternatives)
    return held
