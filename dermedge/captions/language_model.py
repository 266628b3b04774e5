"""Find, check and load a causal language model with its tokenizer."""

import contextlib
import json
import logging
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dermedge.train.memory import format_bytes, machine_memory
from dermedge_runtime.errors import DataError, MissingExtraError, first_line
from dermedge_runtime.files import sha256_file, sha256_hex

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Files of a model on the hub. Pickled weights are not among them.
HUB_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
# A tokenizer may have fewer tokens than the model has rows, because rows are padded to
# a round number. A smaller share means a tokenizer of another model.
LEAST_SHARE = 0.9
SAMPLE = "a melanoma of the left forearm, 6 mm"


@dataclass(frozen=True)
class LanguageModel:
    """Files of a causal language model.

    Attributes:
        name: Name of its file or folder, or its name on the hub.
        folder: Folder of the files.
        weights: The weights: safetensors files, or one GGUF file.
        parameters: Number of parameters, as the headers of the weights give it.
        digest: Digest of the weights.

    Example:
        >>> model = find_language_model("language-model")
        >>> model.name, model.gguf
        ('language-model', None)
    """

    name: str
    folder: Path
    weights: tuple[Path, ...]
    parameters: int
    digest: str

    @property
    def gguf(self) -> str | None:
        """Name of the GGUF file, None for safetensors."""
        return self.weights[0].name if self.weights[0].suffix == ".gguf" else None

    def memory(self, *, bf16: bool) -> int:
        """Return the memory of the loaded weights in bytes."""
        # GGUF files are dequantized to float32 first, tensor by tensor.
        return self.parameters * (2 if bf16 else 4)


def find_language_model(name: str | Path) -> LanguageModel:
    """Find the files of a language model, and read their headers only.

    Args:
        name: A folder with config.json, safetensors and a tokenizer; a GGUF file, or a
            folder with one; or a name on the hub, which is looked up in the local cache
            first.

    Raises:
        DataError: There is no such model, or its headers are damaged.
        MissingExtraError: A package of the extra `captions` is not installed.

    Example:
        >>> find_language_model("language-model").parameters > 1000
        True
    """
    path = Path(name)
    if path.is_file() and path.suffix == ".gguf":
        return _describe(path.name, path.parent, (path,))
    if not path.exists():
        return _describe(str(name), *_download(str(name)))
    return _describe(path.resolve().name, path, _find_weights(path))


def _find_weights(folder: Path) -> tuple[Path, ...]:
    """Return the weights in a folder."""
    safetensors = tuple(sorted(folder.glob("*.safetensors")))
    gguf = tuple(sorted(folder.glob("*.gguf")))
    if safetensors and (folder / "config.json").is_file():
        return safetensors
    if len(gguf) == 1:
        return gguf
    held = f"holds {len(gguf)} GGUF files" if gguf else "holds no language model"
    raise DataError(
        f"{folder} {held}. Give a folder with config.json and safetensors weights, or the path of "
        "one GGUF file."
    )


def _download(name: str) -> tuple[Path, tuple[Path, ...]]:
    """Return the folder and weights of a model on the hub, from the cache if there."""
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise MissingExtraError("transformers", "captions", "A language model") from error
    try:
        try:
            found = snapshot_download(name, allow_patterns=HUB_FILES, local_files_only=True)
        except OSError:
            found = snapshot_download(name, allow_patterns=HUB_FILES)
        folder = Path(found)
    except (OSError, ValueError) as error:  # A name without a slash is a ValueError.
        raise DataError(
            f"There is no language model {name!r} here or on the hub ({first_line(error)}). Give "
            "its folder, its GGUF file or its name on the hub."
        ) from error
    return folder, _find_weights(folder)


def _describe(name: str, folder: Path, weights: tuple[Path, ...]) -> LanguageModel:
    count = _count_gguf if weights[0].suffix == ".gguf" else _count_safetensors
    try:
        parameters = sum(map(count, weights))
    except ImportError as error:
        raise MissingExtraError("gguf", "captions", "A GGUF language model") from error
    except (OSError, ValueError, KeyError, IndexError, TypeError, struct.error) as error:
        raise DataError(
            f"The weights of the language model {folder} are damaged ({first_line(error)}). Fetch "
            "them again."
        ) from error
    # Sorted, so that the names of the files do not matter.
    digest = sha256_hex("\n".join(sorted(map(sha256_file, weights))).encode())
    return LanguageModel(name, folder, weights, parameters, digest)


def _count_safetensors(path: Path) -> int:
    """Return the parameters of a safetensors file from its JSON header."""
    with path.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        if length > path.stat().st_size:
            raise ValueError(f"{path.name} is shorter than its header says")
        header = json.loads(stream.read(length))
    return sum(
        math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__"
    )


def _count_gguf(path: Path) -> int:
    """Return the parameters of a GGUF file, which is mapped and not read."""
    from gguf import GGUFReader

    return sum(int(tensor.n_elements) for tensor in GGUFReader(path).tensors)


def check_memory(model: LanguageModel, *, bf16: bool) -> None:
    """Check that the weights fit into the memory of the GPU, or of this machine.

    Raises:
        DataError: They do not fit.
    """
    import torch

    place, available = "this machine", machine_memory()
    if torch.cuda.is_available():
        place, available = "the GPU", torch.cuda.get_device_properties(0).total_memory
    needed = model.memory(bf16=bf16)
    if needed <= available:
        return
    half = model.memory(bf16=True)
    advice = "Pass --bf16, which halves it" if not bf16 and half <= available else "Choose another"
    raise DataError(
        f"The language model {model.name} needs {format_bytes(needed)} for its weights, and "
        f"{place} has {format_bytes(available)}. {advice}."
    )


def load_language_model(
    model: LanguageModel, *, bf16: bool
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Load a language model, in eval mode and without gradients, and its tokenizer.

    Nothing is downloaded, and no code of the model's folder runs.

    Raises:
        DataError: The model does not fit into the memory, is no causal language model,
            or has no tokenizer or one of another model.
        MissingExtraError: A package of the extra `captions` is not installed.
    """
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging as verbosity
    except ImportError as error:
        raise MissingExtraError("transformers", "captions", "A language model") from error
    import torch

    check_memory(model, bf16=bf16)
    verbosity.disable_progress_bar()
    verbosity.set_verbosity_error()
    where: dict[str, Any] = {"gguf_file": model.gguf} if model.gguf else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(model.folder, local_files_only=True, **where)
    except Exception as error:  # transformers raises many types for missing files
        raise _no_tokenizer(model, f"cannot be loaded ({first_line(error)})") from error
    try:
        with _quiet_torchao():
            language = AutoModelForCausalLM.from_pretrained(
                model.folder,
                local_files_only=True,
                dtype=torch.bfloat16 if bf16 else torch.float32,
                **where,
            )
    except Exception as error:  # transformers raises many types for unknown architectures
        raise DataError(
            f"{model.folder} cannot be loaded as a causal language model ({first_line(error)}). "
            "Choose another model."
        ) from error
    _check_tokenizer(model, tokenizer, language.get_input_embeddings().weight.shape[0])
    return language.eval().requires_grad_(False), tokenizer


@contextlib.contextmanager
def _quiet_torchao() -> Iterator[None]:
    """Hide torch's log of deprecated calls by torchao, which transformers imports."""
    logger = logging.getLogger("torch.utils._pytree")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _check_tokenizer(model: LanguageModel, tokenizer: "PreTrainedTokenizerBase", rows: int) -> None:
    """Check that a tokenizer has an end, fits the model, and can encode English."""
    count = len(tokenizer)
    if not LEAST_SHARE * rows <= count <= rows:
        raise _no_tokenizer(model, f"has {count} tokens, but the model has {rows}")
    if tokenizer.eos_token_id is None:
        raise _no_tokenizer(model, "has no token that ends a text")
    ids = tokenizer(SAMPLE, add_special_tokens=False)["input_ids"]
    text = tokenizer.decode(ids, skip_special_tokens=True)
    if "melanoma" not in text.replace(" ", ""):
        raise _no_tokenizer(model, f"reads {SAMPLE!r} as {text[:60]!r}")


def _no_tokenizer(model: LanguageModel, reason: str) -> DataError:
    return DataError(
        f"The tokenizer of the language model {model.name} {reason}. Give a folder with the "
        "model's own tokenizer."
    )
