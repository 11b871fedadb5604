"""How many tokens are guessed for each row of a step."""

from pangu_server.backends.torch.drafting import MAX_DRAFT, Costs, lengths


def costs(seconds: dict[int, float]) -> Costs:
    measured = Costs()
    for tokens, value in seconds.items():
        measured.learn(tokens, value)
    return measured


def test_the_likely_guess_and_those_that_pay() -> None:
    free, dear = costs({1: 1.0, 64: 1.01}), costs({1: 1.0, 64: 64.0})
    assert lengths([0.9, 0.0, 0.5], free) == [MAX_DRAFT, 0, MAX_DRAFT]
    assert lengths([0.9, 0.0, 0.5], dear) == [0, 0, 0]
    assert lengths([], free) == []


def test_a_row_that_has_no_guess_is_given_none_where_more_tokens_measured_cheaper() -> None:
    assert lengths([0.9, 0.0], costs({2: 2.0, 10: 2.0, 14: 1.0})) == [MAX_DRAFT, 0]
    assert lengths([0.0], costs({1: 2.0, 2: 1.0})) == [0]
