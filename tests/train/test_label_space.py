"""Check the targets of labels from several sources, and the prototypes of the label head."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from dermedge.data.taxonomy import TAXONOMY
from dermedge.models.backbone import Backbone
from dermedge.models.network import Network
from dermedge.train.hybrid.label_space import label_space, label_targets, source_vocabulary
from dermedge.train.hybrid.prepare import FEATURES, make_branches
from dermedge.train.hybrid.prototypes import make_prototypes
from dermedge.train.hybrid.recipe import make_recipe
from dermedge_runtime.errors import DataError

SPACE = label_space()


def named(flags: np.ndarray) -> set[str]:
    return {name for name, flag in zip(SPACE, flags, strict=True) if flag}


class TestTargets:
    def test_the_ancestors_of_a_diagnosis_are_positive_too(self) -> None:
        true, _ = label_targets(["sk"], source_vocabulary(["sk", "mel"]), SPACE)
        assert named(true[0]) == {"sk", "bkl", "keratinocytic"}

    def test_classes_that_a_source_cannot_label_are_not_allowed(self) -> None:
        _, known = label_targets(["mel"], source_vocabulary(["sk", "mel"]), SPACE)
        assert named(known[0]) == {"sk", "bkl", "keratinocytic", "mel", "melanocytic"}

    def test_descendants_of_a_diagnosis_are_not_allowed(self) -> None:
        true, known = label_targets(["bkl", "sk"], source_vocabulary(["bkl", "sk", "nv"]), SPACE)
        assert "sk" not in named(known[0])
        assert named(true[1]) & named(known[1]) == {"sk", "bkl", "keratinocytic"}

    def test_an_unlabelled_row_has_no_target_and_no_allowed_entry(self) -> None:
        true, known = label_targets(["", "nv"], source_vocabulary(["nv", "mel"]), SPACE)
        assert not true[0].any()
        assert not known[0].any()

    def test_all_diagnoses_of_a_row_are_positive(self) -> None:
        cells = ["sk;mel", "bkl;mel", "sk"]
        true, known = label_targets(cells, source_vocabulary([*cells, "nv"]), SPACE)
        wider = {"bkl", "keratinocytic", "mel", "melanocytic"}
        assert named(true[0]) == {"sk"} | wider
        assert named(known[0]) == {"sk", "nv"} | wider
        # The label bkl leaves sk open.
        assert named(true[1]) == wider
        assert named(known[1]) == {"nv"} | wider

    def test_a_class_below_a_diagnosis_is_known_if_the_row_has_it_too(self) -> None:
        true, known = label_targets(["bkl;sk"], source_vocabulary(["bkl;sk", "lplk"]), SPACE)
        assert named(true[0] & known[0]) == {"sk", "bkl", "keratinocytic"}
        assert "lplk" not in named(known[0])


class TestPrototypes:
    def test_the_taxonomys_cosines_follow_the_distance_in_the_tree(self) -> None:
        rows = make_prototypes("taxonomy", SPACE, 512)
        at = dict(zip(SPACE, rows, strict=True))
        assert torch.allclose(rows.norm(dim=1), torch.ones(len(SPACE)), atol=1e-5)
        sibling, parent, stranger = (
            at["bowen"] @ at["ak"],
            at["akiec"] @ at["ak"],
            at["psoriasis"] @ at["ak"],
        )
        assert parent > sibling > stranger
        assert parent == pytest.approx(
            3 / (3 * 4) ** 0.5, abs=1e-4
        )  # root, keratinocytic, akiec of ak's four

    def test_a_narrow_backbone_keeps_the_order_of_neighbours(self) -> None:
        rows = make_prototypes("taxonomy", SPACE, 64)
        at = dict(zip(SPACE, rows, strict=True))
        assert rows.shape == (len(SPACE), 64)
        assert at["akiec"] @ at["ak"] > at["psoriasis"] @ at["ak"]

    def test_random_rows_are_unit_vectors_and_depend_on_the_seed(self) -> None:
        rows = make_prototypes("random", SPACE, 48, seed=1)
        assert torch.allclose(rows.norm(dim=1), torch.ones(len(SPACE)), atol=1e-5)
        assert torch.equal(rows, make_prototypes("random", SPACE, 48, seed=1))
        assert not torch.equal(rows, make_prototypes("random", SPACE, 48, seed=2))

    @pytest.mark.parametrize("width", [16, 40])
    def test_a_vector_file_keeps_its_cosines_at_any_width_that_has_room(
        self, tmp_path: Path, width: int
    ) -> None:
        vectors = np.random.default_rng(0).standard_normal((len(SPACE), 16)).astype(np.float32)
        path = tmp_path / "vectors.safetensors"
        save_file(dict(zip(SPACE, vectors, strict=True)), path)
        rows = make_prototypes(str(path), SPACE, width).numpy()
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        assert np.allclose(rows @ rows.T, unit @ unit.T, atol=1e-5)

    def test_a_vector_file_that_lacks_a_diagnosis_names_it(self, tmp_path: Path) -> None:
        path = tmp_path / "vectors.npz"
        np.savez(path, **{name: np.ones(4) for name in SPACE if name != "mel"})
        with pytest.raises(DataError, match=r"vectors.npz lacks mel. It must hold one vector"):
            make_prototypes(str(path), SPACE, 8)

    def test_an_unknown_source_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(
            DataError, match=r"no text encoder.*Give its folder or hub name, a vector file"
        ):
            make_prototypes(str(tmp_path / "nothing"), SPACE, 8)

    def test_a_local_text_encoder_embeds_the_names_of_the_diagnoses(self, tmp_path: Path) -> None:
        folder = bert(tmp_path)
        rows = make_prototypes(str(folder), SPACE, 24)
        from transformers import AutoModel, AutoTokenizer

        tokenizer, model = (
            AutoTokenizer.from_pretrained(folder),
            AutoModel.from_pretrained(folder).eval(),
        )
        words = [TAXONOMY[name].name for name in ("mel", "nv")]
        tokens = tokenizer(
            words, padding="max_length", truncation=True, max_length=32, return_tensors="pt"
        )
        with torch.inference_mode():
            expected = torch.cosine_similarity(*model(**tokens).pooler_output, dim=0)
        assert rows[SPACE.index("mel")] @ rows[SPACE.index("nv")] == pytest.approx(
            float(expected), abs=1e-4
        )

    def test_padding_is_hidden_from_the_encoder_or_attended_to_as_released(
        self, tmp_path: Path
    ) -> None:
        from transformers import AutoModel, AutoTokenizer

        folder = bert(tmp_path)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModel.from_pretrained(folder).eval()
        words = [TAXONOMY[name].name for name in ("mel", "nv")]
        padded = tokenizer(words, padding="max_length", max_length=32, return_tensors="pt")
        with torch.inference_mode():
            # The released code passes no attention mask.
            pooled = model(input_ids=padded["input_ids"]).pooler_output
        released = make_prototypes(str(folder), ("mel", "nv"), 24, mask_padding=False)
        expected = torch.nn.functional.normalize(pooled, dim=1)
        assert torch.allclose(released, expected, atol=1e-5)
        masked = make_prototypes(str(folder), ("mel", "nv"), 24)
        assert not torch.allclose(masked, expected, atol=2e-4)
        # Without padding to attend to, a name's vector depends on the name alone.
        alone = tokenizer(words[:1], return_tensors="pt")
        with torch.inference_mode():
            own = torch.nn.functional.normalize(model(**alone).pooler_output, dim=1)
        assert torch.allclose(masked[:1], own, atol=1e-5)

    @pytest.mark.parametrize("mask_padding", [True, False])
    def test_the_recipe_decides_about_padding(self, tmp_path: Path, mask_padding: bool) -> None:
        folder, backbone = str(bert(tmp_path)), Backbone("test_efficientnet")
        recipe = make_recipe("mobile", prototypes=folder, mask_padding=mask_padding)
        student, _ = make_branches(Network(backbone, (FEATURES,)), backbone, recipe, seed=0)
        width = student.branch.width
        assert student.labels is not None
        assert torch.equal(
            student.labels.weight,
            make_prototypes(folder, SPACE, width, mask_padding=mask_padding),
        )


def bert(folder: Path) -> Path:
    """Save a random two-layer BERT with the taxonomy's words, as Hugging Face stores it."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = sorted({word for name in SPACE for word in TAXONOMY[name].name.casefold().split()})
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]), "utf-8"
    )
    out = folder / "encoder"
    config = BertConfig(
        vocab_size=5 + len(words),
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
    )
    torch.manual_seed(0)
    BertModel(config).save_pretrained(out)
    BertTokenizerFast(str(vocabulary)).save_pretrained(out)
    return out
