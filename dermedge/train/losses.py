"""Losses as plain functions of logits and targets."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dermedge_runtime.spec import Kind


def widen(values: Tensor) -> Tensor:
    """Return values as float32, or as float64 if they are float64.

    Example:
        >>> widen(torch.ones(1, dtype=torch.bfloat16)).dtype
        torch.float32
    """
    return values if values.dtype == torch.float64 else values.float()


def zero_of(values: Tensor) -> Tensor:
    """Return a loss of 0 that stays connected to `values`.

    Every parameter then has a gradient in every step, as training in several processes
    needs. The sum is in float32, because a float16 sum of a map overflows, and infinity
    times 0 is NaN.

    Example:
        >>> zero_of(torch.full((1000,), 1000.0, dtype=torch.float16)).item()
        0.0
    """
    return widen(values).sum() * 0


def adjusted_cross_entropy(logits: Tensor, labels: Tensor, log_prior: Tensor) -> Tensor:
    """Compute cross entropy with logits shifted by the log class frequencies.

    With the shift, the argmax of the unshifted logits aims at balanced accuracy.

    Source: Menon et al., "Long-tail learning via logit adjustment", ICLR 2021
    (tau = 1).

    Args:
        logits: Logits, [N, K].
        labels: Class indices, int64 [N]. Rows with -1 do not count. Without a labelled
            row the loss is 0.
        log_prior: Log class frequencies, [K]. Zeros give plain cross entropy.

    Example:
        >>> logits, labels = torch.zeros(2, 4), torch.tensor([1, -1])
        >>> loss = adjusted_cross_entropy(logits, labels, torch.zeros(4))
        >>> round(loss.item(), 3)
        1.386
    """
    known = labels >= 0
    if not known.any():
        return zero_of(logits)
    return F.cross_entropy(widen(logits[known]) + log_prior, labels[known])


def masked_binary_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Compute binary cross entropy over the rows with a target.

    The loss is 0 if no row has one.

    Args:
        logits: Logits, [N, 1].
        targets: 0, 1 or NaN for unknown, [N].

    Example:
        >>> targets = torch.tensor([1.0, torch.nan])
        >>> loss = masked_binary_cross_entropy(torch.zeros(2, 1), targets)
        >>> round(loss.item(), 3)
        0.693
    """
    known = ~targets.isnan()
    if not known.any():
        return zero_of(logits)
    return F.binary_cross_entropy_with_logits(widen(logits[known, 0]), widen(targets[known]))


def soft_cross_entropy(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Compute the Kullback-Leibler divergence from the teacher's softened classes.

    The factor T^2 keeps the size of the gradient independent of the temperature.

    Source: Hinton et al., "Distilling the knowledge in a neural network", 2015.

    Args:
        logits: The student's, [N, K].
        teacher: The teacher's logits, [N, K].
        temperature: Temperature T that softens both.

    Example:
        >>> logits = torch.tensor([[1.0, 2.0, 3.0]])
        >>> soft_cross_entropy(logits, logits, 2.0).item()
        0.0
    """
    # Both sides stay logarithms (log_target), which is stable for probabilities near 0.
    student = F.log_softmax(widen(logits) / temperature, dim=1)
    target = F.log_softmax(widen(teacher) / temperature, dim=1)
    return F.kl_div(student, target, reduction="batchmean", log_target=True) * temperature**2


def soft_binary_cross_entropy(logits: Tensor, teacher: Tensor) -> Tensor:
    """Compute the mean binary cross entropy against the teacher's probabilities.

    Args:
        logits: The student's, [N, ...].
        teacher: The teacher's logits, of the same shape.

    Example:
        >>> logits = torch.zeros(1, 1)
        >>> round(soft_binary_cross_entropy(logits, logits).item(), 3)
        0.693
    """
    return F.binary_cross_entropy_with_logits(widen(logits), torch.sigmoid(widen(teacher)))


def cumulative_cross_entropy(logits: Tensor, levels: Tensor) -> Tensor:
    """Compute the sum of an ordinal task's K-1 binary cross entropies.

    Output k estimates whether the level is above k.

    Source: Cao, Mirjalili and Raschka, "Rank consistent ordinal regression for neural
    networks with application to age estimation", Pattern Recognition Letters 140, 2020.

    Args:
        logits: Logits of P(y > k), [N, K-1].
        levels: 0 to K-1, or -1 or NaN for unknown, [N]. The loss is 0 if all are
            unknown.

    Example:
        >>> loss = cumulative_cross_entropy(torch.zeros(1, 2), torch.tensor([1]))
        >>> round(loss.item(), 3)
        1.386
    """
    known = levels >= 0
    if not known.any():
        return zero_of(logits)
    above = levels[known, None] > torch.arange(logits.shape[1], device=logits.device)
    chosen = widen(logits[known])
    losses = F.binary_cross_entropy_with_logits(chosen, above.to(chosen.dtype), reduction="none")
    return losses.sum(1).mean()


def dice_cross_entropy(logits: Tensor, masks: Tensor) -> Tensor:
    """Compute pixel cross entropy plus one minus the soft Dice coefficient.

    Source: Milletari, Navab and Ahmadi, "V-Net", 3DV 2016. The denominator here sums
    probabilities, not their squares. One pixel is added to numerator and denominator,
    so that empty masks can be learned.

    Args:
        logits: Logits, [N, 1, h, w].
        masks: Share of each pixel inside the lesion, [N, H, W]. All pixels are NaN for
            an image without a mask. Masks are resized to the grid of the logits by
            averaging or repeating. The loss is 0 without masks.

    Example:
        >>> masks = torch.ones(1, 4, 4)
        >>> dice_cross_entropy(torch.full((1, 1, 4, 4), 20.0), masks).item() < 0.001
        True
    """
    known = ~masks.flatten(1).isnan().any(1)
    if not known.any():
        return zero_of(logits)
    known_logits = logits[known].float()
    grid = (known_logits.shape[2], known_logits.shape[3])
    target = F.adaptive_avg_pool2d(masks[known, None].float(), grid)
    probability = known_logits.sigmoid()
    overlap = (probability * target).sum((1, 2, 3))
    total = (probability + target).sum((1, 2, 3))
    pixels = F.binary_cross_entropy_with_logits(known_logits, target)
    return pixels + (1 - (2 * overlap + 1) / (total + 1)).mean()


def distillation_loss(kind: Kind, outputs: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Compute the distance of a student's outputs from its teacher's, by kind of task.

    - `classify`: divergence of the softened classes.
    - `binary`, `ordinal`, `segment`: cross entropy against the teacher's probabilities,
      summed over an ordinal task's K-1 outputs.
    - `embed`: squared error of the similarities between the images of a batch. The
      teacher's embedding may have another width (Tung and Mori, "Similarity-preserving
      knowledge distillation", ICCV 2019).

    Args:
        kind: Kind of the task.
        outputs: The student's outputs [N, ...].
        teacher: The teacher's outputs [N, ...].
        temperature: Temperature for `classify`.

    Example:
        >>> vectors = torch.eye(3)
        >>> distillation_loss("embed", vectors, vectors, 1.0).item()
        0.0
    """
    if kind == "classify":
        return soft_cross_entropy(outputs, teacher, temperature)
    if kind == "embed":
        own, other = widen(outputs), widen(teacher)
        return F.mse_loss(own @ own.T, other @ other.T)
    # The mean over an ordinal task's outputs, times their number, is their sum. The
    # factor is 1 for the other kinds.
    return soft_binary_cross_entropy(outputs, teacher) * outputs.shape[1]
