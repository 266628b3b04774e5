"""Distillation losses as plain functions of a student's and a teacher's tensors.

All of them compute in float32 at least, so that float16 and bfloat16 inputs neither
overflow nor lose small differences. `losses.py` has the losses on labels and the plain
divergence.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dermedge.train.losses import dice_cross_entropy, soft_cross_entropy, widen, zero_of

# Added to a variance before its root, so that equal logits have a finite gradient.
VARIANCE_FLOOR = 1e-6
# Angles need N^3 values. A batch is shuffled, so its first rows are a random sample.
ANGLE_ROWS = 64


def standardise(values: Tensor, dim: int = 1) -> Tensor:
    """Return values with mean 0 and variance 1 along a dimension.

    Args:
        values: Any shape. Where all values along `dim` are equal, the result is 0.
        dim: The dimension.

    Example:
        >>> standardise(torch.tensor([[1.0, 3.0], [5.0, 5.0]])).round()
        tensor([[-1.,  1.],
                [ 0.,  0.]])
    """
    values = widen(values)
    centred = values - values.mean(dim, keepdim=True)
    # The root of the variance has no gradient at 0, so the floor is inside the root.
    variance = centred.square().mean(dim, keepdim=True)
    return centred * (variance + VARIANCE_FLOOR).rsqrt()


def standardised_divergence(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Compute the divergence of softened classes between standardised logits.

    Scale and shift of the logits have no effect, so a small student need not reach the
    size of its teacher's logits.

    Source: Sun et al., "Logit standardization in knowledge distillation", CVPR 2024.

    Args:
        logits: The student's, [N, K].
        teacher: The teacher's logits, [N, K].
        temperature: Temperature that softens both after the standardisation.

    Example:
        >>> logits = torch.tensor([[1.0, 2.0, 4.0]])
        >>> round(standardised_divergence(3 * logits + 5, logits, 2.0).item(), 6)
        0.0
    """
    return soft_cross_entropy(standardise(logits), standardise(teacher), temperature)


def decoupled_parts(logits: Tensor, teacher: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Split the divergence of each row into target class and other classes.

    The divergence is `first + (1 - p) * second`, where p is the teacher's probability
    of the target class.

    Args:
        logits: The student's logits, divided by the temperature, [N, K].
        teacher: The teacher's, [N, K].
        classes: Target classes, int64 [N].

    Returns:
        Divergence of target class against all others [N], and divergence among the
        other classes [N].
    """
    (own, others), (goal, rest) = (_split_class(z, classes) for z in (logits, teacher))
    probability = torch.sigmoid(goal)
    first = F.binary_cross_entropy_with_logits(own, probability, reduction="none")
    entropy = F.binary_cross_entropy_with_logits(goal, probability, reduction="none")
    second = F.kl_div(others, rest, reduction="none", log_target=True).sum(1)
    return first - entropy, second


def _split_class(logits: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log odds of a class [N], and log probabilities among the others [N, K-1]."""
    chosen = F.one_hot(classes, logits.shape[1]).bool()
    others = logits[~chosen].view(len(logits), -1)
    return logits[chosen] - others.logsumexp(1), others.log_softmax(1)


def decoupled_divergence(
    logits: Tensor,
    teacher: Tensor,
    labels: Tensor,
    temperature: float,
    *,
    alpha: float = 1.0,
    beta: float = 2.0,
) -> Tensor:
    """Compute the divergence with separate weights of target class and other classes.

    The plain divergence weighs the other classes by `1 - p`, which is close to 0 if the
    teacher is sure.

    Source: Zhao et al., "Decoupled knowledge distillation", CVPR 2022.

    Args:
        logits: The student's, [N, K].
        teacher: The teacher's logits, [N, K].
        labels: Target classes, int64 [N]. A row with -1 takes the teacher's most
            probable class.
        temperature: Temperature that softens both.
        alpha: Weight of the target class.
        beta: Weight of the other classes.

    Example:
        >>> logits, labels = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([-1])
        >>> decoupled_divergence(logits, logits, labels, 4.0).item()
        0.0
    """
    logits, teacher = widen(logits), widen(teacher)
    classes = torch.where(labels >= 0, labels, teacher.argmax(1))
    first, second = decoupled_parts(logits / temperature, teacher / temperature, classes)
    return (alpha * first + beta * second).mean() * temperature**2


def mask_divergence(logits: Tensor, teacher: Tensor) -> Tensor:
    """Compute pixel cross entropy plus soft Dice against the teacher's probabilities.

    Args:
        logits: The student's, [N, 1, h, w].
        teacher: The teacher's logits, [N, 1, H, W], resized as masks are.

    Example:
        >>> sure = torch.full((1, 1, 4, 4), 20.0)
        >>> mask_divergence(sure, sure).item() < 0.001
        True
    """
    return dice_cross_entropy(logits, torch.sigmoid(widen(teacher))[:, 0])


class OrthogonalProjector(nn.Module):
    """A linear map with orthonormal rows or columns, trained with the student.

    It keeps the angles between features, so the student itself must learn them.

    Source: Miles et al., "VkD: improving knowledge distillation using orthogonal
    projections", CVPR 2024. The map here is the Q of a QR factorization instead of a
    matrix exponential, which costs less for a narrow output.

    Args:
        width: Width D of the student's features.
        out: Width E of the teacher's.

    Example:
        >>> projector = OrthogonalProjector(4, 6)
        >>> features = torch.rand(2, 4)
        >>> torch.allclose(projector(features).norm(dim=1), features.norm(dim=1))
        True
    """

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(max(width, out), min(width, out)) / width**0.5)
        self.widens = out >= width

    def forward(self, features: Tensor) -> Tensor:
        """Return features [..., E] of features [..., D]."""
        features = widen(features)
        q = torch.linalg.qr(widen(self.weight)).Q.to(features.dtype)
        projected: Tensor = features @ (q.T if self.widens else q)
        return projected


def cosine_distance(features: Tensor, teacher: Tensor) -> Tensor:
    """Compute the mean of one minus the cosine of two sets of vectors.

    Args:
        features: The student's, projected to the teacher's width, [..., D].
        teacher: The teacher's, of the same shape.

    Example:
        >>> round(cosine_distance(torch.eye(3), 5 * torch.eye(3)).item(), 6)
        0.0
    """
    return (1 - F.cosine_similarity(widen(features), widen(teacher), dim=-1)).mean()


def relational_distance(features: Tensor, teacher: Tensor) -> Tensor:
    """Compare the distances between the images of a batch.

    Distances are in multiples of their mean, so scale and rotation have no effect and
    the two widths may differ. Without two rows the loss is 0.

    Source: Park et al., "Relational knowledge distillation", CVPR 2019 (RKD-D).

    Args:
        features: The student's, [N, D].
        teacher: The teacher's, [N, E].

    Example:
        >>> round(relational_distance(torch.eye(3), 7 * torch.eye(3)).item(), 6)
        0.0
    """
    if len(features) < 2:
        return zero_of(features)
    own, other = (F.pdist(widen(values)) for values in (features, teacher))
    own, other = (d / d.mean().clamp_min(torch.finfo(d.dtype).tiny) for d in (own, other))
    return F.smooth_l1_loss(own, other)


def relational_angle(features: Tensor, teacher: Tensor) -> Tensor:
    """Compare the angles of all triangles of a batch's images.

    Scale and rotation have no effect, and the two widths may differ. At most 64 images
    are compared. Without three rows the loss is 0.

    Source: Park et al., "Relational knowledge distillation", CVPR 2019 (RKD-A).

    Args:
        features: The student's, [N, D].
        teacher: The teacher's, [N, E].

    Example:
        >>> round(relational_angle(torch.eye(3), 7 * torch.eye(3)).item(), 6)
        0.0
    """
    if len(features) < 3:
        return zero_of(features)
    own, other = (_angles(widen(values[:ANGLE_ROWS])) for values in (features, teacher))
    return F.smooth_l1_loss(own, other)


def _angles(values: Tensor) -> Tensor:
    """Return the cosine at each vertex to each pair of other rows, [N, N, N]."""
    edges = F.normalize(values[None] - values[:, None], dim=2)
    cosines: Tensor = edges @ edges.transpose(1, 2)
    return cosines


def map_distance(features: Tensor, teacher: Tensor) -> Tensor:
    """Compute the mean cosine distance of the cells of two feature maps.

    The teacher's channels are standardised over the batch; otherwise their common mean
    decides the cosine. Its grid is averaged or repeated to the student's.

    Args:
        features: The student's map, projected to the teacher's channels, [N, C, h, w].
        teacher: The teacher's map, [N, C, H, W].

    Example:
        >>> features = torch.tensor([[-2.0, 2.0], [2.0, -2.0]]).view(1, 2, 1, 2)
        >>> round(map_distance(features, 3 * features + 5).item(), 4)
        0.0
    """
    goal = F.adaptive_avg_pool2d(widen(teacher), (features.shape[2], features.shape[3]))
    cells = standardise(goal.movedim(1, -1).flatten(0, 2), dim=0)
    return cosine_distance(features.movedim(1, -1).flatten(0, 2), cells)
