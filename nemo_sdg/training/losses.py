"""The losses: attribute regression, Bradley-Terry, DPO, RPO, and log-probabilities over a vocabulary split by TP.

Shapes: B rows, S tokens, V vocabulary (of this tensor-parallel rank), A attributes. Every public loss takes
tensors of any floating type and returns the mean over its rows as a tensor of that type without dimensions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch import distributed as dist

from nemo_sdg.config import MISSING


def regression_sum(pred_BA: Tensor, label_BA: Tensor, missing: float = MISSING) -> tuple[Tensor, Tensor]:
    """Sum of the squared errors over the labelled entries, and how many of them there are."""
    labelled_BA = label_BA != missing
    # The error of a missing entry is replaced before it is squared: 0 x inf would poison the gradient.
    error_BA = torch.where(labelled_BA, pred_BA - label_BA.to(pred_BA.dtype), 0.0)
    return error_BA.square().sum(), labelled_BA.sum()


def attribute_regression(pred: Tensor, label: Tensor, missing: float = MISSING) -> Tensor:
    """Mean squared error over the labelled entries of `pred` and `label` [B, A]; 0 where all are missing.

    Source: HelpSteer2 (arXiv 2406.08673) section 3; NeMo-Aligner's regression reward model masks -100 alike.
    """
    total, count = regression_sum(pred, label, missing)
    return total / count.clamp(min=1)


def bradley_terry(chosen: Tensor, rejected: Tensor, strength: Tensor | None = None, kind: str = "regular") -> Tensor:
    """Mean Bradley-Terry loss of the rewards of the `chosen` and the `rejected` responses [B].

    `strength` [B] says how much better the chosen one is (HelpSteer2-Preference: 1 to 3). kind `regular` is
    -log sigmoid(c - r), `margin` -log sigmoid(c - r - strength), `scaled` -strength log sigmoid(c - r).
    Raises ValueError for another kind, or when a kind needs a strength and has none.
    Source: HelpSteer2-Preference (arXiv 2410.01257) section 3.
    """
    return bradley_terry_losses(chosen, rejected, strength, kind).mean()


def bradley_terry_losses(chosen_B: Tensor, rejected_B: Tensor, strength_B: Tensor | None, kind: str) -> Tensor:
    """`bradley_terry` of each pair, [B]."""
    if kind not in ("regular", "margin", "scaled"):
        raise ValueError(f"kind of Bradley-Terry loss: found {kind!r}, expected regular, margin or scaled")
    if kind == "regular":
        return -F.logsigmoid(chosen_B - rejected_B)
    if strength_B is None:
        raise ValueError(f"strength: found None, expected one number per pair; kind {kind!r} needs it")
    strength_B = strength_B.to(chosen_B.dtype)
    if kind == "margin":
        return -F.logsigmoid(chosen_B - rejected_B - strength_B)
    return -(strength_B * F.logsigmoid(chosen_B - rejected_B))


def dpo(
    policy_chosen: Tensor, policy_rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, beta: float
) -> Tensor:
    """Mean DPO loss of the responses' log-probabilities [B], summed over tokens, in nats.

    Source: Rafailov et al. (arXiv 2305.18290) equation 7.
    """
    return dpo_rows((policy_chosen - reference_chosen) - (policy_rejected - reference_rejected), beta).mean()


def dpo_rows(gap_B: Tensor, beta: float) -> Tensor:
    """The DPO loss [B] of each pair, by how much further apart the policy holds its responses than the reference does."""
    return -F.logsigmoid(beta * gap_B)


def rpo(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    reward_chosen: Tensor,
    reward_rejected: Tensor,
    beta: float,
    eta: float = 1.0,
) -> Tensor:
    """Mean RPO loss: the policy's reward gap is to equal the given one, not to grow without end.

    Log-probabilities [B] are summed over tokens, in nats; rewards [B] are those of the reward model. With
    a = beta x (policy gap) and b = eta x (reward gap) a row's loss is KL(Bernoulli(sigmoid b) || Bernoulli(sigmoid a)).
    Source: Nemotron-4 340B technical report section 3.3.2 (`rpo_bwd_kl` in NeMo-Aligner).
    """
    gap_B = (policy_chosen - reference_chosen) - (policy_rejected - reference_rejected)
    return rpo_rows(gap_B, reward_chosen - reward_rejected, beta, eta).mean()


def rpo_rows(gap_B: Tensor, reward_gap_B: Tensor, beta: float, eta: float) -> Tensor:
    """The RPO loss [B] of each pair; `gap_B` is that of `dpo_rows`."""
    a_B = beta * gap_B
    b_B = eta * reward_gap_B.to(a_B.dtype)
    # Through logsigmoid, so that a large gap gives 0 x (-finite) and never 0 x inf.
    won_B = b_B.sigmoid() * (F.logsigmoid(b_B) - F.logsigmoid(a_B))
    lost_B = (-b_B).sigmoid() * (F.logsigmoid(-b_B) - F.logsigmoid(-a_B))
    return won_B + lost_B


def vocab_parallel_log_probs(logits_BSV_local: Tensor, target_BS: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """Log-probability [B, S] of each target token, from logits whose vocabulary is split over `group`.

    Rank r of the group holds the tokens from r x V on. The result is the same on all ranks, in the dtype of the
    logits (half precisions are computed and returned in fp32); megatron's own cross entropy always rounds to fp32.
    Each rank's gradient is that of its own slice of the logits, for a loss that every rank computes in full.
    """
    return _VocabParallelLogProbs.apply(logits_BSV_local, target_BS, group)


class _VocabParallelLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits_BSV: Tensor, target_BS: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        split = group is not None and group.size() > 1
        ctx.logits_dtype = logits_BSV.dtype
        if logits_BSV.dtype in (torch.float16, torch.bfloat16):
            logits_BSV = logits_BSV.float()
        largest_BS = logits_BSV.amax(dim=-1)
        if split:
            dist.all_reduce(largest_BS, op=dist.ReduceOp.MAX, group=group)
        shifted_BSV = logits_BSV - largest_BS.unsqueeze(-1)

        vocabulary = logits_BSV.size(-1)
        local_BS = target_BS - (group.rank() if split else 0) * vocabulary
        elsewhere_BS = (local_BS < 0) | (local_BS >= vocabulary)
        local_BS = local_BS.masked_fill(elsewhere_BS, 0)
        chosen_BS = shifted_BSV.gather(-1, local_BS.unsqueeze(-1)).squeeze(-1).masked_fill(elsewhere_BS, 0.0)
        softmax_BSV = shifted_BSV.exp_()  # shifted_BSV is ours and is not needed again
        sums_2BS = torch.stack((chosen_BS, softmax_BSV.sum(dim=-1)))
        if split:
            dist.all_reduce(sums_2BS, group=group)
        chosen_BS, total_BS = sums_2BS.unbind()
        softmax_BSV /= total_BS.unsqueeze(-1)
        ctx.save_for_backward(softmax_BSV, local_BS, elsewhere_BS)
        return chosen_BS - total_BS.log()

    @staticmethod
    def backward(ctx, grad_BS: Tensor) -> tuple[Tensor, None, None]:
        softmax_BSV, local_BS, elsewhere_BS = ctx.saved_tensors
        grad_BSV = softmax_BSV * -grad_BS.unsqueeze(-1)
        own_BS = grad_BS.masked_fill(elsewhere_BS, 0.0)
        grad_BSV.scatter_add_(-1, local_BS.unsqueeze(-1), own_BS.unsqueeze(-1))
        return grad_BSV.to(ctx.logits_dtype), None, None
