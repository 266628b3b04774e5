"""`evaluate_caption`: compare generated captions with those of a table."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pandas as pd

from dermedge.captions.baseline import most_common_captions
from dermedge.captions.bert import bert_f1
from dermedge.captions.fit import CaptionSet, negative_log_likelihood
from dermedge.captions.folder import Generated, LoadedCaptioner, load_captioner
from dermedge.captions.metrics import (
    balanced_measure,
    mean_measure,
    overlap_measures,
    perplexity_measure,
)
from dermedge.captions.naming import check_names
from dermedge.captions.prompt import encode_captions
from dermedge.captions.report import CaptionExample, CaptionReport
from dermedge.captions.rows import read_captions
from dermedge.data.table import Table, digests, groups, table_digest
from dermedge.probing.context import default_cache
from dermedge.probing.features import Features, extract_features
from dermedge.probing.scores import Bootstrap, bootstrap_intervals
from dermedge_export.evaluation.metrics import Statistic
from dermedge_runtime.canonical_json import pretty_json
from dermedge_runtime.errors import UsageError
from dermedge_runtime.files import atomic_write, check_free
from dermedge_runtime.packages import find_version
from dermedge_runtime.progress import Progress, no_progress
from dermedge_runtime.report import Interval
from dermedge_runtime.spec import to_json

BATCH = 16
EXAMPLES = 5
LIBRARIES = ("sacrebleu", "rouge-score", "nltk", "pycocoevalcap", "transformers", "peft")
NO_BERT = "no text encoder was given (--bert FOLDER)"


@dataclass(frozen=True)
class CaptionEvaluation:
    """Options of `evaluate_caption`.

    Attributes:
        split: train, val, test or all.
        limit: Largest number of images; by default all.
        max_tokens: Longest generated caption; by default that of the training.
        bert: Folder of a text encoder for BERTScore. None leaves it out.
        replicates: Bootstrap replicates over lesions or patients.
        seed: Random seed of the bootstrap.

    Raises:
        UsageError: There are too few replicates.

    Example:
        >>> CaptionEvaluation(limit=10).split
        'test'
    """

    split: str = "test"
    limit: int | None = None
    max_tokens: int | None = None
    bert: Path | None = None
    replicates: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.replicates < 10:
            raise UsageError(
                f"{self.replicates} bootstrap replicates are too few for an interval. Use at "
                "least 10."
            )


def evaluate_caption(
    captioner: Path | str,
    data: Path | str,
    options: CaptionEvaluation | None = None,
    *,
    teacher: Path | str | None = None,
    lm: Path | str | None = None,
    out: Path | str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> CaptionReport:
    """Generate a caption for each image of a table, and compare it with the table's.

    Beside overlap metrics and the perplexity, the report says how many captions name
    the right diagnosis and the right site, and no other. A caption of the frequency
    baseline is the most common train caption of the label that the nearest train images
    predict.

    Args:
        captioner: Folder that `train_caption` wrote.
        data: Folder or table file of a data set with the column `caption`.
        options: Split, limits and bootstrap.
        teacher: Folder of the teacher; by default where it was in training.
        lm: The language model; by default where it was in training.
        out: File to write the report to, as JSON; by default none.
        overwrite: Replace `out` if it exists.
        progress: Called after every batch of captions.

    Raises:
        DataError: The table has no captions in the split, or a part of the captioner is
            missing.
        UsageError: `out` exists and `overwrite` is false.
        MissingExtraError: A package of the extra `captions` is not installed.

    Example:
        >>> from dermedge.captions.table import caption_data
        >>> from dermedge.captions.train import train_caption
        >>> from dermedge.data.draw import draw_data_set
        >>> _ = draw_data_set("drawn", count=24, size=(32, 32))
        >>> _ = caption_data("drawn", overwrite=True)
        >>> _ = train_caption("teacher", "language-model", "drawn", "captioner")
        >>> options = CaptionEvaluation(limit=2, max_tokens=4, replicates=10)
        >>> report = evaluate_caption("captioner", "drawn", options)
        >>> report.images, report.not_run["bertscore_f1"]
        (2, 'no text encoder was given (--bert FOLDER)')
    """
    options = options or CaptionEvaluation()
    if out is not None:
        check_free(Path(out), overwrite=overwrite)
    rows = read_captions(data)
    part = rows.table if options.split == "all" else rows.select(options.split)
    part = part.replace(part.frame.head(options.limit)) if options.limit else part
    loaded = load_captioner(captioner, teacher=teacher, lm=lm)
    weights = loaded.model.teacher["weights"]
    cache = default_cache(Path(teacher or loaded.model.teacher["folder"]))
    features = extract_features(loaded.teacher, weights, part, cache=cache, progress=progress)
    generated = _generate(loaded, features, options.max_tokens, progress or no_progress)
    baseline = _write_baseline(loaded, weights, rows.select("train"), features, cache)
    report = _make_report(loaded, part, options, generated, baseline, features)
    if out is not None:
        atomic_write(Path(out), pretty_json(to_json(report)))
    return report


def _generate(
    loaded: LoadedCaptioner, features: Features, max_tokens: int | None, progress: Progress
) -> list[Generated]:
    found: list[Generated] = []
    for first in range(0, len(features), BATCH):
        found += loaded.generate(features[first : first + BATCH], max_tokens)
        progress(len(found), len(features), "captions")
    return found


def _write_baseline(
    loaded: LoadedCaptioner, weights: str, train: Table, features: Features, cache: Path
) -> list[str]:
    """Return the caption of the frequency baseline for each image."""
    gallery = extract_features(loaded.teacher, weights, train, cache=cache)
    labels, captions = train.frame["dx"].tolist(), train.frame["caption"].tolist()
    return most_common_captions(gallery, labels, captions, features)


def _make_report(
    loaded: LoadedCaptioner,
    part: Table,
    options: CaptionEvaluation,
    generated: Sequence[Generated],
    baseline: Sequence[str],
    features: Features,
) -> CaptionReport:
    frame, model = part.frame, loaded.model
    captions = [text for text, _, _ in generated]
    group = groups(frame).to_numpy(str)
    bootstrap = Bootstrap(options.replicates, options.seed)

    def score(measures: Mapping[str, Statistic]) -> dict[str, Interval]:
        return bootstrap_intervals(measures, group, bootstrap)

    shown = zip(frame["image_id"], frame["caption"], captions, baseline, strict=True)
    return CaptionReport(
        captioner=model.folder.resolve().name,
        teacher=model.teacher["name"],
        language_model=model.language_model["name"],
        data=part.name,
        data_digest=table_digest(part),
        split=options.split,
        images=len(part),
        groups=len(set(group)),
        cut=sum(not complete for _, _, complete in generated),
        generated=score(
            _list_measures(captions, frame, options.bert) | _perplexity(loaded, frame, features)
        ),
        baseline=score(_list_measures(baseline, frame, options.bert)),
        reference=score(_naming_measures(frame["caption"].tolist(), frame)),
        not_run={} if options.bert else {"bertscore_f1": NO_BERT},
        versions={name: find_version(name) or "" for name in LIBRARIES},
        examples=tuple(CaptionExample(*texts) for texts in islice(shown, EXAMPLES)),
        warnings=tuple(_list_warnings(loaded, part)),
    )


def _list_measures(
    captions: Sequence[str], frame: pd.DataFrame, bert: Path | None
) -> dict[str, Statistic]:
    references = frame["caption"].tolist()
    measures = _naming_measures(captions, frame) | overlap_measures(captions, references)
    if bert is not None:
        measures["bertscore_f1"] = mean_measure(bert_f1(captions, references, bert))
    return measures


def _naming_measures(captions: Sequence[str], frame: pd.DataFrame) -> dict[str, Statistic]:
    """Return the shares of captions that name the right diagnosis, and the right site."""
    diagnoses = frame["dx"].tolist()
    diagnosis, site = check_names(captions, diagnoses, frame["site"].tolist())
    return {
        "names_diagnosis": mean_measure(diagnosis),
        "names_diagnosis_balanced": balanced_measure(diagnosis, diagnoses),
        "names_site": mean_measure(site),
    }


def _perplexity(
    loaded: LoadedCaptioner, frame: pd.DataFrame, features: Features
) -> dict[str, Statistic]:
    """Return the perplexity of the reference captions."""
    import torch

    captioner, options = loaded.captioner, loaded.model.options
    tokens, _ = encode_captions(
        loaded.tokenizer, frame["caption"].tolist(), captioner.prompt.end, options.max_tokens
    )
    device = captioner.projection.weight.device
    likelihoods = negative_log_likelihood(
        captioner,
        CaptionSet(features, tokens),
        range(len(tokens)),
        device,
        lambda: torch.autocast(device.type, torch.bfloat16, enabled=options.bf16),
    )
    return {"perplexity": perplexity_measure(likelihoods, list(map(len, tokens)))}


def _list_warnings(loaded: LoadedCaptioner, part: Table) -> Iterator[str]:
    """Yield a warning if the captioner or its teacher has seen the images."""
    seen = set(loaded.model.training_images)
    known = sum(digest in seen for digest in digests(part))
    if known:
        yield (
            f"The captioner or its teacher was TRAINED ON {known} of these {len(part)} images. "
            "Their scores do not predict its captions of new patients."
        )
    if not (part.frame["dx"] != "").any():
        yield "No row has a diagnosis, so it is unknown if the captions name the right one."
