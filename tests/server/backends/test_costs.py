"""What the cost model predicts and learns. Its figures are seconds of no clock."""

import pytest
from support.batch_engine import greedy
from support.collector import Collector

from pangu_server.backends.ctranslate2.costs import CostModel
from pangu_server.backends.schedule import Ticket

# Seconds to the first token, Qwen2.5-Coder-0.5B int8, two cores of a shared AMD EPYC.
MEASURED = {512: 0.9, 1024: 2.9, 2048: 9.0, 4096: 29.0}
STEP = 0.055


def ticket(length: int, max_tokens: int) -> Ticket:
    return Ticket([1] * length, greedy(max_tokens), Collector())


def learned(lengths: list[int], rows: int = 1) -> CostModel:
    costs = CostModel()
    costs.learn_step(1, STEP)
    for tokens in lengths:
        costs.learn_prefill(tokens + 1, rows, rows * MEASURED[tokens] + costs.step(rows))
    return costs


def test_rows_and_steps_are_learned() -> None:
    costs = CostModel()
    near = [ticket(60, 16), ticket(64, 16)]
    assert costs.batch(near) < sum(costs.batch([one]) for one in near)
    for _ in range(300):  # a machine on which a second row costs as much as the first
        costs.learn_step(1, 1.0)
        costs.learn_step(2, 2.0)
    costs.learn_prefill(501, 2, 2.0 + 100.0)
    assert costs.step(1) == pytest.approx(1.0)
    assert costs.step(2) == pytest.approx(2.0, rel=0.01)
    assert costs.prefill(500, 2) == pytest.approx(100.0, rel=0.01)
    assert costs.batch(near) >= sum(costs.batch([one]) for one in near) - 0.2


@pytest.mark.parametrize("tokens", MEASURED)
def test_the_first_prefill_sets_the_scale_and_longer_prompts_cost_more_a_token(tokens: int) -> None:
    costs = learned([tokens])
    assert costs.prefill(tokens) == pytest.approx(MEASURED[tokens], rel=0.01)
    assert costs.prefill(2 * tokens) > 2.2 * MEASURED[tokens]
    assert costs.prefill(tokens, 3) == pytest.approx(3 * MEASURED[tokens], rel=0.01)


@pytest.mark.parametrize("rows", [1, 4])
def test_seconds_by_length_are_learned_from_prompts_of_all_lengths(rows: int) -> None:
    costs = learned([*MEASURED] * 30, rows)
    for tokens, seconds in MEASURED.items():
        assert costs.prefill(tokens) == pytest.approx(seconds, rel=0.25)
    assert costs.prefill(4096) > 20 * costs.prefill(512), "one figure a token would say 8"


def test_prompts_of_one_length_are_predicted_whatever_was_learned_before() -> None:
    costs = learned([512, 4096] * 20 + [2048] * 40)
    assert costs.prefill(2048) == pytest.approx(MEASURED[2048], rel=0.01)


def test_a_short_prefill_teaches_nothing_and_a_free_one_no_negative_cost() -> None:
    costs = learned([512])
    before = costs.prefill(512)
    costs.learn_prefill(32, 1, 100.0)
    assert costs.prefill(512) == before
    for _ in range(50):
        costs.learn_prefill(512, 1, 0.0)
    assert 0 <= costs.prefill(512) < before / 50
    assert costs.token_seconds >= 0
    assert costs.growth_seconds >= 0


def test_a_prompt_of_another_length_is_told_apart_in_the_choice_of_batches() -> None:
    """A batch prefills up to its shortest row; the others' tokens take a step each."""
    costs = learned([*MEASURED] * 30)
    alone = costs.batch([ticket(512, 4)]) + costs.batch([ticket(1024, 4)])
    assert costs.batch([ticket(512, 4), ticket(1024, 4)]) > 5 * alone
