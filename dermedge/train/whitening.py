"""Whiten the embedding of a teacher, so that every direction of it counts equally."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from dermedge.train.teacher_outputs import Array
from dermedge_runtime.errors import DataError
from dermedge_runtime.files import sha256_hex

# Principal components that are kept.
COMPONENTS = 256


@dataclass(frozen=True, eq=False)
class Whitening:
    """A linear map that gives features mean 0 and unit covariance.

    Directions with little variance are left out, because whitening would enlarge their
    noise. At most 256 are kept, which bounds the cost of the student's projector.

    Attributes:
        mean: Mean of the features, [D].
        matrix: Map to the principal components, [D, E].

    Example:
        >>> features = np.random.default_rng(0).normal(size=(500, 8)).astype(np.float32)
        >>> white = Whitening.fit(features @ features[:8]).apply(features @ features[:8])
        >>> np.allclose(np.cov(white.T), np.eye(8), atol=1e-3)
        True
    """

    mean: Array
    matrix: Array

    @classmethod
    def fit(cls, features: Array) -> "Whitening":
        """Fit to features [N, D]; N must be at least 2.

        Raises:
            DataError: All features are equal.
        """
        mean = features.mean(0, dtype=np.float64)
        values, vectors = np.linalg.eigh(
            np.cov(features.T, dtype=np.float64).reshape(len(mean), -1)
        )
        kept = values > max(values.max(), 1e-12) * 1e-4
        kept[:-COMPONENTS] = False  # the values rise
        if not kept.any():
            raise DataError(
                "The embedding of the teacher is the same for all train images. Use another "
                "teacher, or a recipe without terms of the embedding."
            )
        matrix = vectors[:, kept] / np.sqrt(values[kept])
        return cls(mean.astype(np.float32), matrix[:, ::-1].astype(np.float32))

    def describe(self) -> dict[str, Any]:
        """Return the widths and a digest of the map, as JSON types."""
        content = self.mean.tobytes() + np.ascontiguousarray(self.matrix).tobytes()
        width, components = self.matrix.shape
        return {"width": width, "components": components, "sha256": sha256_hex(content)}

    def apply(self, features: Array) -> Array:
        """Return features [N, D] as principal components [N, E] of unit variance."""
        return np.asarray((features - self.mean) @ self.matrix, np.float32)
