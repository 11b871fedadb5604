"""The loss is the paper's: its test vectors, and what must hold for any numbers."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pangu_training.rrtf.loss import Answers, PairLosses, Rank, answer_log_probs, rank_loss, rrtf_loss


def answers(*mean_log_probs: float, length: int = 4) -> Answers:
    means = torch.tensor(mean_log_probs, requires_grad=True)
    return Answers(log_prob=means * length, length=torch.full_like(means, length))


def one_pair(p_tea: float, p_stu: float, gap: float, rank: Rank = "score-gap") -> PairLosses:
    return rrtf_loss(answers(p_tea), answers(p_stu), torch.tensor([gap]), rank=rank)


@pytest.mark.parametrize(
    ("p_tea", "p_stu", "r_tea", "r_stu", "rrtf", "rrhf"),
    [
        (-0.5, -0.3, 3, 1, 0.4, 0.2),
        (-0.5, -0.3, 2, 1, 0.2, 0.2),
        (-0.2, -0.3, 3, 1, 0.0, 0.0),
        (-0.5, -0.3, 1, 1, 0.0, 0.0),
    ],
)
def test_rank_loss_of_one_pair(
    p_tea: float, p_stu: float, r_tea: float, r_stu: float, rrtf: float, rrhf: float
) -> None:
    assert one_pair(p_tea, p_stu, r_tea - r_stu).rank.item() == pytest.approx(rrtf)
    assert one_pair(p_tea, p_stu, r_tea - r_stu, "unweighted").rank.item() == pytest.approx(rrhf)


def gradients(p_tea: float, p_stu: float, gap: float) -> tuple[float, float]:
    tea, stu = (torch.tensor([p], requires_grad=True) for p in (p_tea, p_stu))
    rank_loss(tea, stu, torch.tensor([gap])).sum().backward()
    assert tea.grad is not None
    assert stu.grad is not None
    return tea.grad.item(), stu.grad.item()


def test_an_active_hinge_pulls_by_the_score_gap() -> None:
    assert gradients(-0.5, -0.3, 2.0) == (-2.0, 2.0)


@pytest.mark.parametrize(("p_tea", "p_stu", "gap"), [(-0.2, -0.3, 2.0), (-0.3, -0.3, 2.0), (-0.5, -0.3, 0.0)])
def test_a_pair_ranked_right_or_of_equal_scores_does_not_pull(p_tea: float, p_stu: float, gap: float) -> None:
    assert gradients(p_tea, p_stu, gap) == (0.0, 0.0)


def test_the_whole_loss_is_ranking_plus_the_teachers_negative_log_likelihood() -> None:
    losses = one_pair(-0.5, -0.3, 2.0)
    assert losses.fine_tuning.item() == pytest.approx(0.5 * 4), "a sum over tokens"
    assert losses.total.item() == pytest.approx(0.4 + 2.0)
    assert losses.ranked_right.tolist() == [0.0]
    mean = rrtf_loss(answers(-0.5), answers(-0.3), torch.tensor([2.0]), fine_tuning="mean")
    assert mean.total.item() == pytest.approx(0.4 + 0.5)


def test_without_ranking_it_is_fine_tuning() -> None:
    off = one_pair(-0.5, -0.3, 2.0, "off")
    assert off.total.item() == one_pair(-0.5, -0.3, 0.0).total.item() == pytest.approx(2.0)
    assert off.rank.item() == pytest.approx(0.4), "still watched"


def test_log_probabilities_of_answers_of_different_lengths() -> None:
    torch.manual_seed(0)
    lengths, logits = torch.tensor([3, 1, 5]), torch.randn(9, 11, requires_grad=True)
    targets = torch.randint(11, (9,))

    def expected(logits: Tensor) -> Tensor:
        picked = functional.log_softmax(logits, dim=-1)[torch.arange(9), targets]
        return torch.stack([part.sum() for part in picked.split([3, 1, 5])])

    found = answer_log_probs(logits, targets, lengths)
    torch.testing.assert_close(found.log_prob, expected(logits))
    torch.testing.assert_close(found.mean_log_prob, expected(logits) / lengths)
    [gradient] = torch.autograd.grad(found.log_prob.sum(), logits)
    [expected_gradient] = torch.autograd.grad(expected(logits).sum(), logits)
    torch.testing.assert_close(gradient, expected_gradient)
