"""The four terms of hybrid pretraining, as plain functions that agree across processes.

A mean over this process's images whose gradients are averaged over processes is the mean over all images, as every
process has equally many; where counts differ (labels), the count of the whole world divides.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dermedge.train.hybrid.distributed import gather, rank, world_max, world_size, world_sum

SINKHORN_ROUNDS = 3


@torch.no_grad()
def sinkhorn_knopp(logits: Tensor, temperature: float, rounds: int = SINKHORN_ROUNDS) -> Tensor:
    """The teacher's soft assignments [N, K]: rows sum to one, and prototypes are used equally over all processes.

    The number of rows may differ between processes, and be zero on some.

    Args:
        logits: [N, K].
        temperature: sharpens them.
        rounds: of normalising columns, then rows.

    Source: Caron et al., SwAV, NeurIPS 2020, on Cuturi, Sinkhorn distances, NeurIPS 2013; as in DINOv2.
    """
    count, width = logits.shape
    scores = logits.double() if logits.dtype == torch.float64 else logits.float()
    largest = scores.max() if count else scores.new_tensor(-torch.inf)
    q = torch.exp((scores - world_max(largest)) / temperature)
    total = world_sum(scores.new_tensor(float(count)))
    tiny = torch.finfo(q.dtype).tiny
    for _ in range(rounds):
        q = q / (world_sum(q.sum(0)) * width).clamp_min(tiny)
        q = q / (q.sum(1, keepdim=True) * total).clamp_min(tiny)
    return q * total


def cross_entropy(student: Tensor, target: Tensor, temperature: float) -> Tensor:
    """Cross entropy [N] between assignments `target` [N, K] and the student's logits [N, K]."""
    return -(target * F.log_softmax(student.float() / temperature, dim=-1)).sum(-1)


def dino_loss(
    student_global: Tensor, student_local: Tensor, target: Tensor, temperature: float
) -> Tensor:
    """Mean cross entropy over all pairs of a student's crop and another, global, crop of the teacher.

    Args:
        student_global: logits [2, N, K] of the two global crops.
        student_local: logits [L, N, K] of the local crops; L may be 0.
        target: the teacher's assignments [2, N, K].
        temperature: of the student's softmax.

    Source: Caron et al., DINO, ICCV 2021.
    """
    pairs = [cross_entropy(student_global[1 - t], target[t], temperature).mean() for t in (0, 1)]
    pairs += [
        cross_entropy(crop, target[t], temperature).mean() for crop in student_local for t in (0, 1)
    ]
    return torch.stack(pairs).mean()


def ibot_loss(
    student: Tensor, target: Tensor, weight: Tensor, crops: int, temperature: float
) -> Tensor:
    """Cross entropy of masked patches: averaged over the patches of a crop, then over crops, unmasked ones counting 0.

    Args:
        student: logits [M, K] of masked patches.
        target: the teacher's assignments [M, K] of the same patches, which it saw.
        weight: 1 / number of masked patches of the patch's crop, [M].
        crops: how many global crops there are, masked or not.
        temperature: of the student's softmax.

    Source: Zhou et al., iBOT, ICLR 2022.
    """
    return (cross_entropy(student, target, temperature) * weight).sum() / crops


def koleo_loss(features: Tensor) -> Tensor:
    """Kozachenko-Leonenko entropy of features [N, D]: minus the mean log distance to the nearest other one, over the
    features of all processes.

    Source: Sablayrolles et al., Spreading vectors for similarity search, ICLR 2019; as in DINOv2.
    """
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
    """Binary cross entropy per class, over the classes that a sample's source can label, averaged over them and over
    the labelled samples of all processes; 0 without any.

    Args:
        logits: [N, C].
        targets: multi-hot, [N, C].
        allowed: which entries count, bool [N, C]; no entry for an unlabelled sample.
        labelled: how many labelled samples the step has over all processes, [].
    """
    entries = F.binary_cross_entropy_with_logits(logits.float(), targets.float(), reduction="none")
    per_sample = (entries * allowed).sum(1) / allowed.sum(1).clamp_min(1)
    return per_sample.sum() * world_size() / labelled.clamp_min(1)
