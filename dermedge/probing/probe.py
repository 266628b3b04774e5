"""`probe`: a teacher's frozen features, measured by the published protocols."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from dermedge.data.split import with_split
from dermedge.data.table import SPLITS, digests, read_table, table_digest
from dermedge.probing import knn
from dermedge.probing.config import FRACTIONS, ProbeConfig, check_config, choose_recipe
from dermedge.probing.protocols import RUN
from dermedge.probing.report import ProbeReport, ProbeResult
from dermedge.probing.scores import Bootstrap
from dermedge.probing.segment import HEADS
from dermedge.probing.task import make_probe_task, shared_groups
from dermedge_runtime.files import sha256_file
from dermedge_runtime.progress import Progress
from dermedge_runtime.spec import to_json


def probe(
    teacher: str | Path,
    data: str | Path,
    *,
    task: str | None = None,
    protocol: str = "linear",
    fraction: float | Sequence[float] | None = None,
    heads: Sequence[str] = HEADS,
    normalise: bool = False,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    seed: int = 0,
    cache: str | Path | None = None,
    replicates: int = 1000,
    progress: Progress | None = None,
) -> ProbeReport:
    """Measure how much of a task a teacher's features already hold.

    Everything is fitted on train; val only chooses the malignancy threshold (and when fine-tuning stops); test is read
    once. Images go through the teacher's own contracted preprocessing, as they will on a device, and not through the
    resize to 256 and crop to 224 of the paper: that is what a student will be distilled from.

    Protocols, with the paper's settings:

    - `linear`: one linear layer on the frozen features (the class token, where the backbone pools by it); Adam, rate
      5e-3 x batch / 256, batches of 256, 50 epochs.
    - `knn`: the 20 nearest train images by cosine similarity vote with exp(s / 0.07); and what retrieval finds.
    - `fewshot`: `linear` on 1, 5 and 10 % of the train labels, whole lesions or patients, at least one of each class.
    - `segment`: decoders on the frozen feature maps; Adam, rate 1e-3, batches of 64, 20 epochs. Of two kinds: `linear`
      (batch norm, dropout, 1x1 convolution on the last map) and `upernet`.
    - `finetune`: the whole network is trained by `dermedge.train.finetune`, with that function's own settings, in a
      folder that is deleted afterwards.

    Args:
        teacher: folder of a teacher or student.
        data: a table's folder or file; it is split by lesion and patient where it has no split.
        task: diagnosis (by default), malignancy, severity (ordinal), or segment (by default of the protocol segment).
        protocol: one of PROTOCOLS.
        fraction: shares of the train labels, for fewshot only.
        heads: decoders, for segment only.
        normalise: standardise the features before a linear layer; see `fit_linear`.
        epochs: instead of the protocol's.
        batch_size: instead of the protocol's.
        lr: instead of the protocol's.
        seed: of initial weights, orders, draws and the bootstrap.
        cache: folder in which features are kept by the content of weights and images, so that ten probes of them cost
            one forward pass; by default `TEACHER.features` beside the teacher's folder. (The maps of a segmentation are
            large: they are kept in memory, as far as they fit, while the probe runs.)
        replicates: bootstrap replicates over lesions or patients.
        progress: told how far it is.

    Raises:
        UsageError: a task, a protocol or settings that do not go together.
        DataError: the teacher's folder or the table cannot be used.

    Source: DermINO (arXiv:2508.12190).
    """
    from dermedge.models.model_folder import WEIGHTS, load_model_folder

    task = task or ("segment" if protocol == "segment" else "diagnosis")
    fractions = (fraction,) if isinstance(fraction, (int, float)) else tuple(fraction or ())
    recipe = choose_recipe(protocol, epochs, batch_size, lr)
    check_config(task, protocol, fractions, tuple(heads), normalise, replicates)
    student = load_model_folder(teacher)
    question = make_probe_task(task, with_split(read_table(data)), student.spec)
    setup = ProbeConfig(
        teacher=student,
        folder=Path(teacher),
        weights=sha256_file(Path(teacher) / WEIGHTS),
        data=Path(data),
        question=question,
        test=question.part("test"),
        recipe=recipe,
        normalise=normalise,
        fractions=fractions or FRACTIONS,
        heads=tuple(heads),
        seed=seed,
        bootstrap=Bootstrap(replicates, seed),
        cache=Path(cache) if cache is not None else default_cache(Path(teacher)),
        progress=progress,
    )
    return _report(setup, protocol, RUN[protocol](setup))


def default_cache(teacher: Path) -> Path:
    """Where a teacher's features are kept: beside its folder, which holds nothing but the model."""
    folder = teacher.resolve()
    return folder.with_name(f"{folder.name}.features")


def _report(setup: ProbeConfig, protocol: str, results: tuple[ProbeResult, ...]) -> ProbeReport:
    question, test = setup.question, setup.test
    split = question.table.frame["split"].to_numpy()
    known = question.labels >= 0
    counts = np.bincount(test.labels, minlength=len(question.names)).tolist()
    return ProbeReport(
        task=question.task,
        protocol=protocol,
        teacher=setup.teacher.spec.name,
        teacher_weights=setup.weights,
        data=question.table.name,
        data_digest=table_digest(question.table),
        images={name: int((known & (split == name)).sum()) for name in SPLITS},
        test_groups=len(set(test.groups.tolist())),
        labels=question.names,
        support={}
        if question.kind == "segment"
        else dict(zip(question.names, counts, strict=True)),
        settings=_settings(setup, protocol),
        results=results,
        warnings=tuple(_warnings(setup, protocol)),
    )


def _settings(setup: ProbeConfig, protocol: str) -> dict[str, Any]:
    found: dict[str, Any] = {"seed": setup.seed, "replicates": setup.bootstrap.replicates}
    found["preprocess"] = to_json(setup.teacher.spec.preprocess)
    if protocol == "finetune":
        from dermedge.train import Schedule

        found |= {"optimizer": "AdamW", **asdict(Schedule(**setup.training))}
    elif setup.recipe is not None:
        found |= {"optimizer": "Adam", **setup.training}
    if protocol in ("linear", "fewshot"):
        found["normalise"] = setup.normalise
    if protocol == "fewshot":
        found["fractions"] = list(setup.fractions)
    if protocol == "knn":
        found |= {"neighbours": knn.NEIGHBOURS, "temperature": knn.TEMPERATURE}
    if protocol == "segment":
        found["heads"] = list(setup.heads)
    return found


def _warnings(setup: ProbeConfig, protocol: str) -> Iterator[str]:
    learned = set(setup.teacher.training_images)
    seen = learned & set(digests(setup.test.table))
    if seen:
        yield (
            f"The teacher was TRAINED ON {len(seen)} of the {len(setup.test)} test images: their numbers say nothing "
            "about new patients."
        )
    known = (
        learned & set(digests(setup.question.part("train").table))
        if protocol == "fewshot" and learned
        else ()
    )
    if known:
        yield (
            f"The teacher has learned from {len(known)} of the train images already: where it saw their labels, few "
            "labels here are not few."
        )
    shared = shared_groups(setup.question)
    if shared:
        yield (
            f"{len(shared)} lesions or patients stand in train and in test, that of {shared[0]!r} first: split the "
            "table anew with `dermedge data split --redo`."
        )
    if left := setup.question.unanswered("test"):
        yield f"{left} test images are left out: nothing is known of them, or no class of train covers it."
