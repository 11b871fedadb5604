"""The RRTF loss (PanGu-Coder2, arXiv 2307.14936, section 3.4): ranking by score plus fine-tuning on the teacher.

For one prompt x with a chosen answer y_tea (the teacher's), a rejected one y_stu (the student's) and their
scores r, with P the model being trained:

    p_i    = sum_t log P(y_i,t | x, y_i,<t) / ||y_i||             ||y|| counts the answer's tokens, end of text included
    L_rank = (r_tea - r_stu) * max(0, p_stu - p_tea)              where r_tea > r_stu, else 0
    L_ft   = - sum_t log P(y_tea,t | x, y_tea,<t)                 a sum over tokens, as the formula has it
    L      = L_rank + L_ft                                        one value a pair; a batch is the mean over its pairs

The paper writes L_rank as -(r_tea - r_stu) * min(0, p_tea - p_stu), which is the same. RRHF (arXiv 2304.05302), which
it descends from, has no score gap in L_rank: `rank="unweighted"`. Its code averages L_ft over tokens:
`fine_tuning="mean"`. `rank="off"` is plain fine-tuning on the teacher's answers.

Pure functions of tensors: they know no model, no padding and no prompt, so none of these can get into a length.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

Rank = Literal["score-gap", "unweighted", "off"]
FineTuning = Literal["sum", "mean"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What a batch of B answers is worth to the model."""

    log_prob: Tensor  # [B], the sum over an answer's tokens, in nats
    length: Tensor  # [B], in tokens

    @property
    def mean_log_prob(self) -> Tensor:
        """p_i, the length-normalised log-probability: [B]."""
        return self.log_prob / self.length

    def halves(self) -> tuple["Answers", "Answers"]:
        """The first and the last half of the answers: the chosen and the rejected ones of a batch."""
        half = len(self.length) // 2
        return (
            Answers(log_prob=self.log_prob[:half], length=self.length[:half]),
            Answers(log_prob=self.log_prob[half:], length=self.length[half:]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PairLosses:
    """The loss of each of B pairs, and what is watched besides; all [B]."""

    total: Tensor
    rank: Tensor  # as it is in `total`; when that has none, as the paper would have it
    fine_tuning: Tensor
    ranked_right: Tensor  # 1 where the chosen answer is likelier than the rejected one, by p_i


def answer_log_probs(logits: Tensor, targets: Tensor, lengths: Tensor) -> Answers:
    """The log-probability of each answer.

    Args:
        logits: [N, V], what predicts the N answer tokens of all answers, one answer after another.
        targets: [N], those tokens.
        lengths: [B], how many of them each answer has; their sum is N.
    """
    # Float32 copies of [N, V] would be the largest tensors of a step: one answer at a time, and again in backward.
    sums = [
        checkpoint(_log_prob, part, target, use_reentrant=False)
        for part, target in zip(logits.split(lengths.tolist()), targets.split(lengths.tolist()), strict=True)
    ]
    return Answers(log_prob=torch.stack(sums), length=lengths)


def rank_loss(p_chosen: Tensor, p_rejected: Tensor, score_gap: Tensor, rank: Rank = "score-gap") -> Tensor:
    """L_rank of each pair: [B], from p_i and r_tea - r_stu of the same shape.

    It is 0, and so is its gradient, where the pair is ranked right already or the gap is not positive.
    """
    weight = score_gap.clamp(min=0) if rank != "unweighted" else (score_gap > 0).to(p_chosen.dtype)
    return weight * functional.relu(p_rejected - p_chosen)


def rrtf_loss(
    chosen: Answers,
    rejected: Answers,
    score_gap: Tensor,
    *,
    rank: Rank = "score-gap",
    fine_tuning: FineTuning = "sum",
) -> PairLosses:
    """L of each pair, from both answers and r_tea - r_stu, all [B]."""
    ranking = rank_loss(chosen.mean_log_prob, rejected.mean_log_prob, score_gap, rank)
    tuning = -chosen.log_prob if fine_tuning == "sum" else -chosen.mean_log_prob
    return PairLosses(
        total=tuning if rank == "off" else ranking + tuning,
        rank=ranking,
        fine_tuning=tuning,
        ranked_right=(chosen.mean_log_prob > rejected.mean_log_prob).to(tuning.dtype),
    )


def _log_prob(logits: Tensor, targets: Tensor) -> Tensor:
    return -functional.cross_entropy(logits.float(), targets, reduction="sum")
