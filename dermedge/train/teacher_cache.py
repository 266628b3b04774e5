"""Store views of train images, and the outputs of teachers for them.

A pass of the teacher costs more than a training step of a small student, and an image
costs more to decode and crop than to read. Both are therefore stored, and an epoch costs
the student alone. The files depend on the image, the number of the view and the teacher's
weights, so several runs can share them. `fill_teacher_cache` writes them.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dermedge.models.network import POOLED
from dermedge.train.distillation_loss import EXTRA
from dermedge.train.lineage import describe_backbone
from dermedge.train.samples import RowIndices, Samples
from dermedge.train.teacher_member import Member
from dermedge.train.teacher_outputs import concatenate_embeddings
from dermedge.train.teachers import Teacher
from dermedge.train.view_store import ViewStore
from dermedge.train.views import FRAME_MARGIN, Coverage, Pixels, make_augmentation
from dermedge.train.whitening import Whitening
from dermedge_runtime.files import sha256_file
from dermedge_runtime.packages import find_version

SCHEMA = "dermedge.views/1"
# Views have numbers and no other seed, so that runs of several seeds share them. The
# symmetry and the order of each epoch depend on the run's seed.
VIEW_SEED = 0
# Train images that the whitening is fitted on: 200 MB of features of width 2560.
WHITENING_IMAGES = 20_000


@dataclass(frozen=True, eq=False)
class TeacherCache:
    """Stored views of the train images of one run.

    Attributes:
        samples: The rows of the table.
        teacher: The teacher, fitted to the student's tasks and size.
        views: Number of views of each image.
        masked: Store the lesion masks too.
        maps: Store the teacher's feature maps too.
        pixels: Images of the student's size, and masks.
        outputs: Outputs of each member of the teacher.

    Example:
        >>> from dermedge.train.fill_teacher_cache import fill_teacher_cache
        >>> from dermedge.train.samples import read_samples
        >>> from dermedge.train.teachers import load_teacher
        >>> teacher = load_teacher("teacher")
        >>> samples, _ = read_samples("lesions", teacher.spec.tasks)
        >>> cache = TeacherCache.open(Path("cache"), samples, teacher, views=2)
        >>> fill_teacher_cache(cache, samples.rows("train"))
        >>> pixels, _, outputs = cache.read(samples.rows("train")[:8], view=1)
        >>> pixels.shape, outputs["diagnosis"].shape
        ((8, 32, 32, 3), (8, 6))
    """

    samples: Samples
    teacher: Teacher
    views: int
    masked: bool
    maps: bool
    pixels: ViewStore
    outputs: tuple[ViewStore, ...]

    @classmethod
    def open(
        cls,
        folder: Path,
        samples: Samples,
        teacher: Teacher,
        *,
        views: int,
        masked: bool = False,
        maps: bool = False,
    ) -> "TeacherCache":
        """Open the stores of a folder; nothing is computed.

        Args:
            folder: Folder of all stores.
            samples: The rows of the table.
            teacher: The teacher, fitted to the student's tasks and size.
            views: Number of views of each image.
            masked: Store the lesion masks too.
            maps: Store the teacher's feature maps too.
        """
        preprocess = teacher.spec.preprocess
        cut = max(teacher.size, preprocess.size)
        # Everything that changes the pixels of a view.
        common = {
            "schema": SCHEMA,
            "cut": cut,
            "margin": FRAME_MARGIN,
            "seed": VIEW_SEED,
            "background": list(preprocess.background),
            # Its transforms, their settings and the version of albumentations.
            "augmentation": make_augmentation(cut).to_dict(),
        }
        pixels = ViewStore(folder, {**common, "size": preprocess.size, "masks": masked})
        outputs = tuple(
            ViewStore(folder, {**common, **_describe(member), "map": maps})
            for member in teacher.members
        )
        return cls(samples, teacher, views, masked, maps, pixels, outputs)

    @property
    def stores(self) -> tuple[ViewStore, ...]:
        """All stores: the pixels, then the outputs of each member."""
        return (self.pixels, *self.outputs)

    def read(
        self, rows: RowIndices, view: int, needs: Collection[str] = ()
    ) -> tuple[Pixels, Coverage | None, dict[str, NDArray[np.float32]]]:
        """Return one view of some rows.

        Args:
            rows: Row indices, [N].
            view: Number of the view.
            needs: `embedding`, `map`, both or none.

        Returns:
            Images uint8 [N, S, S, 3], masks float32 [N, S/4, S/4] or None, and the
            teacher's outputs float32 [N, ...] by task and by `EXTRA[name]` of `needs`.
        """
        keys = [self.pixel_keys[row] for row in rows]
        stored = self.pixels.read(keys, view, ["image", "mask"] if self.masked else ["image"])
        masks = stored["mask"].astype(np.float32) if self.masked else None
        images = [self.samples.digests[row] for row in rows]
        wanted = {task.name for task in self.teacher.spec.tasks}
        extra, parts = [EXTRA[name] for name in needs], []
        for member, store in zip(self.teacher.members, self.outputs, strict=True):
            own = {task.name for task in member.model.spec.tasks}
            parts.append(store.read(images, view, [*sorted(own & wanted), *extra]))
        return stored["image"], masks, self.teacher.combine(parts)

    def whiten(self, rows: RowIndices) -> "TeacherCache":
        """Return the cache with whitened embeddings.

        Args:
            rows: Rows whose first views the whitening is fitted on, or on a part of them
                if there are more than 20,000.
        """
        if len(rows) > WHITENING_IMAGES:
            chosen = np.random.default_rng(VIEW_SEED).choice(len(rows), WHITENING_IMAGES, False)
            rows = rows[np.sort(chosen)]
        whitening = Whitening.fit(self.read_embeddings(rows, 0))
        return replace(self, teacher=replace(self.teacher, whitening=whitening))

    def describe(self) -> dict[str, Any]:
        """Return what the run's record says of the stored views and the whitening."""
        views = {"pixels": self.pixels.name, "outputs": [store.name for store in self.outputs]}
        whitening = self.teacher.whitening
        return {
            "teacher": self.teacher.digest,
            "views": views,
            **({"whitening": whitening.describe()} if whitening else {}),
        }

    def read_embeddings(self, rows: RowIndices, view: int) -> NDArray[np.float32]:
        """Return the features [N, D] of all members side by side, without whitening."""
        images = [self.samples.digests[row] for row in rows]
        parts = [store.read(images, view, [POOLED]) for store in self.outputs]
        return concatenate_embeddings(parts)

    @cached_property
    def pixel_keys(self) -> tuple[str, ...]:
        """Keys of every row in `pixels`: digest of its image, and of its mask if stored."""
        rows = zip(self.samples.digests, self.samples.masks, strict=True)
        return tuple(
            f"{image}/{sha256_file(mask)}" if self.masked and mask is not None else image
            for image, mask in rows
        )


def _describe(member: Member) -> Mapping[str, Any]:
    return {
        "teacher": member.digest,
        "backbone": describe_backbone(member.model.backbone),
        "size": member.size,
        "timm": find_version("timm"),
    }
