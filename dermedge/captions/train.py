"""`train_caption`: teach a language model to describe what a frozen teacher sees."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dermedge.captions.fit import CaptionSet, copy_trained, fit_captioner
from dermedge.captions.folder import (
    CaptionModel,
    describe_language_model,
    describe_teacher,
    read_captioner,
    save_captioner,
)
from dermedge.captions.language_model import (
    LanguageModel,
    check_memory,
    find_language_model,
    load_language_model,
)
from dermedge.captions.model import Captioner
from dermedge.captions.options import CaptionOptions
from dermedge.captions.prompt import encode_captions, make_prompt
from dermedge.captions.rows import CaptionRows, read_captions
from dermedge.data.table import LOGGER, Table, digests, table_digest
from dermedge.models.folder_metadata import WEIGHTS
from dermedge.models.model_folder import load_model_folder
from dermedge.probing.context import default_cache
from dermedge.probing.features import Features, extract_features
from dermedge.train.distributed import (
    explained_loss_of_ranks,
    rank,
    start_processes,
    wait_for_ranks,
)
from dermedge.train.lineage import add_seen_images
from dermedge.train.run_record import RunRecord
from dermedge_runtime.files import sha256_file, sha256_hex
from dermedge_runtime.progress import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dermedge.models import TrainedModel


def train_caption(
    teacher: Path | str,
    lm: Path | str,
    data: Path | str,
    out: Path | str,
    options: CaptionOptions | None = None,
    *,
    cache: Path | str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> CaptionModel:
    """Train a captioner: a linear layer on a teacher's features, and LoRA.

    The teacher is frozen, so its features are computed once and stored. They are the
    class token if the backbone pools by it. One linear layer makes visual tokens of
    them, which a language model gets between the words of the prompt. The loss counts
    the tokens of the captions only. The weights of the epoch with the lowest val loss
    are kept.

    The images go through the teacher's preprocessing without augmentation. A finished
    run with the same settings, data and models is not repeated. A killed run continues.

    Args:
        teacher: Folder of a teacher or student.
        lm: Folder, GGUF file or hub name of a causal language model.
        data: Folder or table file of a data set with the column `caption`.
        out: Folder for the captioner. It holds the trained weights only, and the
            digests of the teacher and the language model.
        options: Settings of the training.
        cache: Folder of stored features; see `probe`.
        overwrite: Replace another run in `out`.
        progress: Called after every step.

    Raises:
        DataError: The table has no train or val captions; or the language model cannot
            be loaded, has no tokenizer, or does not fit into the memory.
        UsageError: `out` holds another run, and `overwrite` is false.
        MissingExtraError: A package of the extra `captions` is not installed.

    Sources: DermINO (arXiv:2508.12190); Liu et al., Visual Instruction Tuning, NeurIPS
    2023; Hu et al., LoRA, ICLR 2022.

    Example:
        >>> from dermedge.captions.table import caption_data
        >>> from dermedge.data.draw import draw_data_set
        >>> _ = draw_data_set("drawn", count=24, size=(32, 32))
        >>> _ = caption_data("drawn", overwrite=True)
        >>> model = train_caption("teacher", "language-model", "drawn", "captioner")
        >>> sorted(model.metrics)
        ['loss', 'val_loss']
    """
    progress = start_processes(progress)
    options = options or CaptionOptions()
    folder, encoder = Path(out), Path(teacher)
    model, weights = load_model_folder(encoder), sha256_file(encoder / WEIGHTS)
    files = find_language_model(lm)
    check_memory(files, bf16=options.bf16)
    rows = read_captions(data)
    train, val = rows.select("train"), rows.select("val")
    images = digests(rows.table).tolist()
    settings: dict[str, Any] = {
        "data": table_digest(rows.table),
        "teacher": weights,
        "language_model": files.digest,
        "options": asdict(options),
    }
    run = RunRecord(folder, "caption train", settings, sha256_hex("\n".join(images).encode()))
    if run.is_finished(overwrite=overwrite):
        return read_captioner(folder)
    store = Path(cache) if cache is not None else default_cache(encoder)
    with explained_loss_of_ranks():
        features = [
            _extract_on_rank_0(model, weights, part, store, progress) for part in (train, val)
        ]
        captioner, tokenizer = _make_captioner(model, files, options)
        learned, selected = (
            CaptionSet(found, _encode(tokenizer, part, captioner, options))
            for found, part in zip(features, (train, val), strict=True)
        )
        wait_for_ranks()
        if rank() == 0:
            run.open(overwrite=overwrite)
        wait_for_ranks()
        fitted = fit_captioner(
            captioner,
            learned,
            selected,
            options,
            folder=folder,
            fingerprint=run.fingerprint,
            progress=progress,
        )
        trained = CaptionModel(
            folder,
            describe_teacher(encoder, model, weights),
            describe_language_model(files, lm),
            options,
            fitted.metrics,
            add_seen_images(_split_rows(rows, images), model.split),
        )
        if rank() == 0:
            save_captioner(trained, copy_trained(captioner))
            run.close(fitted)
        wait_for_ranks()
    return trained


def _extract_on_rank_0(
    model: "TrainedModel", weights: str, table: Table, cache: Path, progress: Progress | None
) -> Features:
    """Return the features of a table. Rank 0 computes them, and the others read them."""
    if rank() != 0:
        wait_for_ranks()
    found = extract_features(model, weights, table, cache=cache, progress=progress)
    if rank() == 0:
        wait_for_ranks()
    return found


def _make_captioner(
    model: "TrainedModel", files: LanguageModel, options: CaptionOptions
) -> "tuple[Captioner, PreTrainedTokenizerBase]":
    """Return a captioner with random trained weights that depend on the seed only."""
    import torch

    language, tokenizer = load_language_model(files, bf16=options.bf16)
    torch.manual_seed(options.seed)
    width = model.module.backbone.num_features_out
    return Captioner(language, width, make_prompt(tokenizer), options), tokenizer


def _encode(
    tokenizer: "PreTrainedTokenizerBase",
    table: Table,
    captioner: Captioner,
    options: CaptionOptions,
) -> Sequence[Sequence[int]]:
    """Return the token ids of a table's captions. Log the number that were cut."""
    captions = table.frame["caption"].tolist()
    encoded, cut = encode_captions(tokenizer, captions, captioner.prompt.end, options.max_tokens)
    if cut:
        split = table.frame["split"].iloc[0]
        LOGGER.info(
            "%s: %d of %d %s captions were cut at %d tokens.",
            *(table.file, cut, len(table), split, options.max_tokens),
        )
    return encoded


def _split_rows(rows: CaptionRows, images: Sequence[str]) -> tuple[tuple[str, str, str], ...]:
    frame = rows.table.frame
    return tuple(zip(frame["image_id"], images, frame["split"], strict=True))
