"""How much of which prompt a turn computes."""

from collections.abc import Sequence

from pangu_server.backends.torch.rows import Row

# Tokens a turn: the others wait for no more than these between two of their tokens. A CPU is at full speed with so few;
# a GPU computes some hundred in the time of one.
PREFILL_TOKENS = {"cpu": 128, "cuda": 1024}
SCORED_TOKENS = 256  # of a prompt whose log-probabilities are asked for: each costs a row of the vocabulary


def shares(rows: Sequence[Row], tokens: int) -> dict[Row, int]:
    """How many of `tokens` each row may compute of its prompt; the oldest row comes first.

    Half are for the oldest, so that it gets on whoever comes; the others for those that need least, so that a short
    prompt does not wait for a long one.
    """
    given, left = dict.fromkeys(rows, 0), tokens
    oldest_first = [(row, tokens // 2) for row in rows[:1]]
    for row, most in oldest_first + [(row, tokens) for row in sorted(rows, key=lambda row: row.pending)]:
        wanted = min(row.pending, SCORED_TOKENS) if row.ticket.prompt_due else row.pending
        count = min(wanted - given[row], most, left)
        given[row] += count
        left -= count
    return given
