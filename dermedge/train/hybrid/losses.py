"""Compute the four losses of hybrid pretraining, equal for any number of processes.

Each process averages over its own images, and gradients are averaged over processes.
The result is the mean over all images, because all processes have equally many. The
numbers of labelled images differ, so the label loss divides by their sum instead.

tests/train/test_hybrid_losses.py compares these functions with values of the released
code of DermINO.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dermedge.train.distributed import gather, rank, world_max, world_size, world_sum

SINKHORN_ROUNDS = 3


@torch.no_grad()
def sinkhorn_knopp(logits: Tensor, temperature: float, rounds: int = SINKHORN_ROUNDS) -> Tensor:
    """Return the teacher's soft assignments of rows to prototypes.

    Rows sum to one, and all prototypes are used about equally over all processes. The
    number of rows may differ between processes, and be zero on some.

    Source: Caron et al., SwAV, NeurIPS 2020, after Cuturi, Sinkhorn distances, NeurIPS
    2013; as used in DINOv2.

    Args:
        logits: The teacher's logits, [N, K].
        temperature: Divisor of the logits. A lower one gives sharper assignments.
        rounds: Number of iterations. Each normalizes columns, then rows. Three is
            DINOv2's number.

    Returns:
        Assignments, [N, K]; float64 for float64 logits, else float32.

    Example:
        >>> logits = torch.tensor([[5.0, 1.0], [4.0, 1.0]])
        >>> assigned = sinkhorn_knopp(logits, temperature=1.0)
        >>> [round(float(total), 3) for total in assigned.sum(1)]
        [1.0, 1.0]
        >>> bool(assigned[0, 0] > assigned[1, 0])
        True
    """
    count, width = logits.shape
    scores = logits.double() if logits.dtype == torch.float64 else logits.float()
    # Subtracting the maximum does not change the result. It avoids an overflow of the
    # released code, which gives NaN for logits above about 88 times the temperature.
    largest = scores.max() if count else scores.new_tensor(-torch.inf)
    q = torch.exp((scores - world_max(largest)) / temperature)
    total = world_sum(scores.new_tensor(float(count)))
    tiny = torch.finfo(q.dtype).tiny
    for _ in range(rounds):
        q = q / (world_sum(q.sum(0)) * width).clamp_min(tiny)
        q = q / (q.sum(1, keepdim=True) * total).clamp_min(tiny)
    return q * total


def cross_entropy(student: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Return the cross entropy [N] of logits [N, K] under assignments [N, K]."""
    return -(target * F.log_softmax(student.float() / temperature, dim=-1)).sum(-1)


def dino_loss(
    student_global: Tensor, student_local: Tensor, target: Tensor, temperature: float
) -> Tensor:
    """Return the mean cross entropy over pairs of a student's and a teacher's crop.

    A pair is a global crop of the teacher and any other crop of the student. With two
    global and L local crops there are 2 + 2 L pairs.

    Source: Caron et al., DINO, ICCV 2021.

    Args:
        student_global: The student's logits of both global crops, [2, N, K].
        student_local: The student's logits of the local crops, [L, N, K]; L may be 0.
        target: The teacher's assignments of both global crops, [2, N, K].
        temperature: Temperature of the student's softmax.
    """
    pairs = [cross_entropy(student_global[1 - t], target[t], temperature).mean() for t in (0, 1)]
    pairs += [
        cross_entropy(crop, target[t], temperature).mean() for crop in student_local for t in (0, 1)
    ]
    return torch.stack(pairs).mean()


def ibot_loss(
    student: Tensor, target: Tensor, weight: Tensor, crops: int, temperature: float
) -> Tensor:
    """Return the cross entropy of masked patches, averaged per crop, then over crops.

    Crops without a mask count as 0, as in the released code. The cross entropy per
    masked crop is this value divided by the share of masked crops.

    Source: Zhou et al., iBOT, ICLR 2022.

    Args:
        student: The student's logits of masked patches, [M, K].
        target: The teacher's assignments of the same patches, unmasked, [M, K].
        weight: 1 / number of masked patches in the crop of each patch, [M].
        crops: Number of global crops, masked or not.
        temperature: Temperature of the student's softmax.
    """
    return (cross_entropy(student, target, temperature) * weight).sum() / crops


def koleo_loss(features: Tensor) -> Tensor:
    """Return the Kozachenko-Leonenko entropy regularizer of features [N, D].

    It is minus the mean log distance of each unit feature to its nearest neighbour
    among the features of all processes. With fewer than two features it is 0.

    Source: Sablayrolles et al., Spreading vectors for similarity search, ICLR 2019; as
    used in DINOv2.
    """
    # Distances of near neighbours lose all their digits in 16 bits.
    with torch.autocast(features.device.type, enabled=False):
        own = F.normalize(features.float(), dim=-1, eps=1e-8)
        everyone = gather(own)
        if len(everyone) < 2:
            return own.sum() * 0
        with torch.no_grad():
            similarity = own @ everyone.T
            rows = torch.arange(len(own), device=own.device)
            similarity[rows, rank() * len(own) + rows] = -torch.inf
            nearest = similarity.argmax(1)
        distance = F.pairwise_distance(own, everyone[nearest], eps=1e-8)
        return -torch.log(distance + 1e-8).mean()


def label_loss(logits: Tensor, targets: Tensor, allowed: Tensor, labelled: Tensor) -> Tensor:
    """Return the binary cross entropy over the classes that a sample's source labels.

    The loss is averaged over these classes, then over the labelled samples of all
    processes. It is 0 if there are none.

    Args:
        logits: One logit per class, [N, C].
        targets: Multi-hot targets, [N, C].
        allowed: Entries that count, bool [N, C]. An unlabelled sample has none.
        labelled: Number of labelled samples of the step over all processes, a scalar.
    """
    entries = F.binary_cross_entropy_with_logits(logits.float(), targets.float(), reduction="none")
    per_sample = (entries * allowed).sum(1) / allowed.sum(1).clamp_min(1)
    return per_sample.sum() * world_size() / labelled.clamp_min(1)
