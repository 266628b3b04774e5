"""Losses, as plain functions of logits and targets."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dermedge_runtime.spec import Kind


def adjusted_cross_entropy(logits: Tensor, labels: Tensor, log_prior: Tensor) -> Tensor:
    """Cross entropy with logits shifted by the log of the class frequencies, so that argmax aims at balanced accuracy.

    Menon et al., "Long-tail learning via logit adjustment", ICLR 2021 (tau = 1). Rows labelled -1 do not count;
    without any labelled row the loss is 0.

    Args:
        logits: [N, K].
        labels: [N], int64.
        log_prior: [K], zeros for plain cross entropy.
    """
    known = labels >= 0
    if not known.any():
        return logits.sum() * 0
    return F.cross_entropy(logits[known] + log_prior, labels[known])


def masked_binary_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Binary cross entropy over the rows whose target is not NaN; 0 without any.

    Args:
        logits: [N, 1].
        targets: [N], 0, 1 or NaN.
    """
    known = ~targets.isnan()
    if not known.any():
        return logits.sum() * 0
    return F.binary_cross_entropy_with_logits(logits[known, 0], targets[known])


def soft_cross_entropy(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Kullback-Leibler divergence from the teacher's softened classes, times T^2 so that its gradient keeps its size.

    Hinton et al., "Distilling the knowledge in a neural network", 2015.

    Args:
        logits: the student's, [N, K].
        teacher: the teacher's logits, [N, K].
        temperature: softens both.
    """
    student = F.log_softmax(logits / temperature, dim=1)
    target = F.log_softmax(teacher / temperature, dim=1)
    return F.kl_div(student, target, reduction="batchmean", log_target=True) * temperature**2


def soft_binary_cross_entropy(logits: Tensor, teacher: Tensor) -> Tensor:
    """Binary cross entropy against the teacher's probabilities, averaged; both are logits [N, ...]."""
    return F.binary_cross_entropy_with_logits(logits, torch.sigmoid(teacher))


def cumulative_cross_entropy(logits: Tensor, levels: Tensor) -> Tensor:
    """Binary cross entropies of the K-1 questions whether an image is above a level, summed, over the rows whose level
    is known; 0 without any.

    Cao, Mirjalili and Raschka, "Rank consistent ordinal regression for neural networks with application to age
    estimation", Pattern Recognition Letters 140, 2020.

    Args:
        logits: [N, K-1], of P(y > k).
        levels: [N], 0 to K-1; -1 or NaN where unknown.
    """
    known = levels >= 0
    if not known.any():
        return logits.sum() * 0
    above = levels[known, None] > torch.arange(logits.shape[1], device=logits.device)
    losses = F.binary_cross_entropy_with_logits(
        logits[known], above.to(logits.dtype), reduction="none"
    )
    return losses.sum(1).mean()


def dice_cross_entropy(logits: Tensor, masks: Tensor) -> Tensor:
    """Binary cross entropy over pixels plus one minus the soft Dice coefficient, over the rows that have a mask; 0
    without any.

    Milletari, Navab and Ahmadi, "V-Net", 3DV 2016 (with the sums of the probabilities themselves in the denominator,
    and one pixel added to either side of the fraction, so that empty masks can be learned).

    Args:
        logits: [N, 1, h, w].
        masks: [N, H, W], the share of each pixel that is inside, averaged down (or repeated up) to the logits' grid;
            NaN throughout where there is no mask.
    """
    known = ~masks.flatten(1).isnan().any(1)
    if not known.any():
        return logits.sum() * 0
    guess = logits[known].float()
    inside = F.adaptive_avg_pool2d(masks[known, None].float(), (guess.shape[2], guess.shape[3]))
    likely = guess.sigmoid()
    both, either = (likely * inside).sum((1, 2, 3)), (likely + inside).sum((1, 2, 3))
    return (
        F.binary_cross_entropy_with_logits(guess, inside)
        + (1 - (2 * both + 1) / (either + 1)).mean()
    )


def imitation(kind: Kind, outputs: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """How far a student's outputs of a task are from its teacher's.

    Softened classes for `classify`; for `binary`, `ordinal` and `segment` the teacher's probabilities, summed over an
    ordinal task's questions; for `embed` the teacher's similarities between the images of the batch, which may be
    measured in a space of another width (Tung and Mori, "Similarity-preserving knowledge distillation", ICCV 2019).
    """
    if kind == "classify":
        return soft_cross_entropy(outputs, teacher, temperature)
    if kind == "embed":
        return F.mse_loss(outputs @ outputs.T, teacher @ teacher.T)
    return soft_binary_cross_entropy(outputs, teacher) * outputs.shape[1]
