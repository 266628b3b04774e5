"""A language model is found, measured and checked before it is loaded."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from dermedge.captions import language_model
from dermedge.captions.language_model import find_language_model, load_language_model
from dermedge.captions.options import QUESTION
from dermedge.captions.prompt import encode_captions, make_prompt
from dermedge_runtime.errors import DataError
from support import language


@pytest.fixture
def folder(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the small language model, which a test may damage."""
    whole = language.language_model_folder(tmp_path_factory.getbasetemp())
    return Path(shutil.copytree(whole, tmp_path / "lm"))


def message(folder: Path, **options: bool) -> str:
    with pytest.raises(DataError) as caught:
        load_language_model(find_language_model(folder), **{"bf16": False, **options})
    return str(caught.value)


def test_parameters_are_counted_from_the_headers(folder: Path) -> None:
    found = find_language_model(folder)
    counted = sum(p.numel() for p in LlamaForCausalLM.from_pretrained(folder).parameters())
    assert found.parameters == counted
    assert found.memory(bf16=True) == 2 * counted


def test_the_digest_is_of_the_weights_and_not_of_their_place(folder: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(folder, tmp_path / "moved"))
    assert find_language_model(moved).digest == find_language_model(folder).digest
    weights = bytearray((moved / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (moved / "model.safetensors").write_bytes(weights)
    assert find_language_model(moved).digest != find_language_model(folder).digest


def test_the_memory_is_named_before_anything_is_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = find_language_model(folder)
    (folder / "tokenizer.json").unlink()
    (folder / "model.safetensors").unlink()
    monkeypatch.setattr(language_model, "machine_memory", lambda: 3 * files.parameters)
    with pytest.raises(DataError, match=r"needs 0 MB .* this machine has 0 MB\. Pass --bf16"):
        load_language_model(files, bf16=False)
    monkeypatch.setattr(language_model, "machine_memory", lambda: files.parameters)
    with pytest.raises(DataError, match="Choose another"):
        load_language_model(files, bf16=True)


def without_tokenizer(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / name).unlink(missing_ok=True)


def with_few_tokens(folder: Path) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    kept = {token: id_ for token, id_ in content["model"]["vocab"].items() if id_ < 100}
    content["model"]["vocab"], content["model"]["merges"] = kept, []
    path.write_text(json.dumps(content))


def without_end(folder: Path) -> None:
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = folder / name
        if path.is_file():
            content = json.loads(path.read_text())
            content.pop("eos_token", None)
            path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (without_tokenizer, "tokenizer"),
        (with_few_tokens, "has 100 tokens, but the model has"),
        (without_end, "has no token that ends a text"),
    ],
)
def test_a_tokenizer_that_is_missing_or_of_another_model_is_refused(
    folder: Path, damage: Callable[[Path], None], reason: str
) -> None:
    damage(folder)
    text = message(folder)
    assert reason in text
    assert text.endswith("Give a folder with the model's own tokenizer.")


def test_a_damaged_file_is_named(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(DataError, match="are damaged"):
        find_language_model(folder)


def test_a_folder_without_weights_is_no_language_model(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(DataError, match="holds no language model"):
        find_language_model(folder)


def test_pickled_weights_are_not_read(folder: Path) -> None:
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(DataError, match="holds no language model"):
        find_language_model(folder)


def test_a_name_that_is_nowhere_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match="There is no language model 'no such model'"):
        find_language_model("no such model")


def test_the_chat_format_is_used_where_there_is_one(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    plain = make_prompt(tokenizer)
    assert tokenizer.decode(plain.before) == "<s>"
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}[INST] {{ m['content'] }} [/INST]{% endfor %}"
    )
    chat = make_prompt(tokenizer)
    assert tokenizer.decode(chat.before) == "<s>[INST] "
    assert tokenizer.decode(chat.after) == f" {QUESTION} [/INST]"


def test_a_long_caption_is_cut_and_gets_no_end(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    end = tokenizer.eos_token_id
    (short, long), cut = encode_captions(tokenizer, ["A nevus.", "melanoma " * 50], end, 20)
    assert short[-1] == end
    assert len(long) == 20
    assert end not in long
    assert cut == 1
