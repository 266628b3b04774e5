"""The weighted terms of a recipe on one pass of a student."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dermedge.models.backbone import Backbone
from dermedge.models.network import LAST_MAP, POOLED, Network
from dermedge.train import losses
from dermedge.train.distill_recipe import RECIPES, DistillRecipe, Term
from dermedge.train.distillation_loss import DistillationBatch, DistillationLoss, mix_logits
from dermedge.train.loop import Schedule, fit
from dermedge.train.supervision import labelled_losses
from support.every_kind import TASKS, UNKNOWN
from support.small import EXPORTED

ROWS, SIZE = 6, 32
PRIOR = torch.tensor([-0.5, -1.5, -2.0])
WIDTHS = {"embedding": 7, "map": 9}
EVERYTHING = DistillRecipe(
    "everything",
    tuple(Term(name, 0.5) for name in ("labels", "kl", "standardised", "dkd", "mask", "embedding"))
    + tuple(Term(name, 0.5) for name in ("distances", "angles", "map")),
    mixup=0.4,
    task_weights="uncertainty",
)


def student() -> Network:
    torch.manual_seed(3)
    return Network(Backbone(EXPORTED), TASKS)


def batch(needs: Any = ("embedding", "map"), seed: int = 0) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    side = SIZE // 4
    masks = torch.rand(ROWS, side, side, generator=draw)
    masks[1] = UNKNOWN
    targets = [
        torch.tensor([0, -1, 2, 1, -1, 2]),
        torch.tensor([0, 1, UNKNOWN, 1, 0, UNKNOWN]),
        torch.tensor([-1, -1, 0, 1, 2, 0]),
        masks,
        torch.full((ROWS,), UNKNOWN),
    ]
    shapes = {"diagnosis": (3,), "malignancy": (1,), "severity": (2,), "lesion": (1, side, side)}
    soft = [2 * torch.randn(ROWS, *shape, generator=draw) for shape in shapes.values()]
    soft.append(torch.nn.functional.normalize(torch.randn(ROWS, 8, generator=draw)))
    extra = {
        "embedding": torch.randn(ROWS, WIDTHS["embedding"], generator=draw),
        "map": torch.randn(ROWS, WIDTHS["map"], 3, 3, generator=draw),
    }
    image = torch.randint(0, 256, (ROWS, SIZE, SIZE, 3), generator=draw, dtype=torch.uint8)
    return [image, *targets, *soft, *(extra[name] for name in needs)]


def make(recipe: DistillRecipe, network: Network) -> DistillationLoss:
    loss = DistillationLoss(TASKS, recipe, PRIOR, WIDTHS)
    loss.start(network)
    return loss


def test_hinton_is_the_weighted_sum_of_divergence_and_labels() -> None:
    network, parts = student().eval(), batch(())
    value = make(RECIPES["hinton"], network)(network, parts)
    outputs = network(parts[0])
    hard = sum(labelled_losses(TASKS, outputs, parts[1:6], PRIOR).values())
    soft = sum(
        losses.distillation_loss(task.kind, outputs[task.name], teacher, 2.0)
        for task, teacher in zip(TASKS, parts[6:], strict=True)
    )
    expected = torch.lerp(torch.as_tensor(hard), torch.as_tensor(soft), 0.7)
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)


def test_every_term_is_named_and_the_weights_add_up() -> None:
    network, parts = student().eval(), batch()
    plain = DistillRecipe("plain", EVERYTHING.terms)
    loss = make(plain, network)
    value = loss(network, parts)
    assert list(loss.parts) == [term.loss for term in EVERYTHING.terms]
    assert all(part.isfinite() and part > 0 for part in loss.parts.values())
    assert value.item() == pytest.approx(0.5 * sum(map(float, loss.parts.values())), rel=1e-5)


@pytest.mark.parametrize("term", [term.loss for term in EVERYTHING.terms])
def test_each_term_alone_gives_the_student_a_gradient(term: str) -> None:
    network = student().train()
    loss = make(
        DistillRecipe("one", (Term(term), Term("kl", 0) if term != "kl" else Term("dkd", 0))),
        network,
    )
    loss(network, batch(loss.needs)).backward()
    first = next(iter(network.backbone.parameters())).grad
    assert first is not None
    assert first.isfinite().all()
    assert first.any()
    assert len(loss.projectors) == (term in ("embedding", "map"))
    assert all(p.grad is not None and p.grad.any() for p in loss.parameters())


def test_a_row_that_the_teacher_has_no_output_for_does_not_count() -> None:
    network, parts = student().eval(), batch(())
    lacking = [part.clone() for part in parts]
    for soft in lacking[6:]:
        soft[2:] = UNKNOWN
    recipe = DistillRecipe("soft", (Term("kl"), Term("standardised"), Term("dkd"), Term("mask")))
    loss = make(recipe, network)
    few = loss(network, lacking)
    kept = loss(network, [part[:2] for part in parts])
    assert few.item() == pytest.approx(kept.item(), rel=1e-5)
    for soft in lacking[6:]:
        soft[:] = UNKNOWN
    none = loss(network, lacking)
    none.backward()
    assert none.item() == 0


class TestMixup:
    def test_probabilities_are_mixed_for_every_kind(self) -> None:
        parts, partner = batch(()), torch.tensor([1, 2, 3, 4, 5, 0])
        for task, logits in zip(TASKS, parts[6:], strict=True):
            mixed = mix_logits(task, logits, partner, 0.7)
            if task.kind == "embed":
                expected = 0.7 * logits + 0.3 * logits[partner]
                expected = expected / expected.norm(dim=1, keepdim=True)
            else:
                into = (lambda z: z.softmax(1)) if task.kind == "classify" else torch.sigmoid
                expected = 0.7 * into(logits) + 0.3 * into(logits[partner])
                mixed = into(mixed)
            torch.testing.assert_close(mixed, expected)

    def test_image_labels_and_teacher_get_the_same_mix(self, monkeypatch: Any) -> None:
        partner, share = torch.tensor([1, 2, 3, 4, 5, 0]), 0.7
        monkeypatch.setattr(DistillationLoss, "_draw_mix", lambda self, count: (partner, share))
        seen: list[Tensor] = []
        network, parts = student().eval(), batch(["embedding"])

        class Watched(Network):
            def forward(self, image: Tensor, extra: Any = ()) -> dict[str, Tensor]:
                seen.append(image)
                return super().forward(image, extra)

        network.__class__ = Watched
        recipe = DistillRecipe("mixed", (Term("labels"), Term("embedding")), mixup=0.2)
        loss = make(recipe, network)
        loss(network, parts)
        image = parts[0].float()
        torch.testing.assert_close(seen[0], 0.7 * image + 0.3 * image[partner])
        outputs = network(seen[0], [POOLED])
        both = [
            sum(labelled_losses(TASKS, outputs, targets, PRIOR).values())
            for targets in (parts[1:6], [target[partner] for target in parts[1:6]])
        ]
        assert loss.parts["labels"].item() == pytest.approx((0.7 * both[0] + 0.3 * both[1]).item())
        teacher = 0.7 * parts[11] + 0.3 * parts[11][partner]
        cosine = torch.cosine_similarity(loss.projectors["embedding"](outputs[POOLED]), teacher)
        assert loss.parts["embedding"].item() == pytest.approx((1 - cosine).mean().item(), rel=1e-4)

    def test_it_is_repeated_from_the_epochs_seed_and_never_all_of_one_image(self) -> None:
        loss = DistillationLoss(TASKS, EVERYTHING, PRIOR, WIDTHS)
        draws = []
        for _ in range(2):
            torch.manual_seed(9)
            draws.append([loss._draw_mix(4) for _ in range(50)])
        assert [share for _, share in draws[0]] == [share for _, share in draws[1]]
        assert all(torch.equal(a[0], b[0]) for a, b in zip(*draws, strict=True))
        assert all(0.5 <= share < 1 for _, share in draws[0])

    def test_without_mixup_no_random_number_is_drawn(self) -> None:
        network = student().eval()
        loss = make(RECIPES["standard"], network)
        before = torch.get_rng_state()
        loss(network, batch(()))
        assert torch.equal(torch.get_rng_state(), before)


class TestNetwork:
    def test_features_and_map_come_with_the_outputs_of_the_same_pass(self) -> None:
        network, image = student().eval(), batch()[0]
        plain, more = network(image), network(image, (POOLED, LAST_MAP))
        assert list(plain) == [task.name for task in TASKS]
        assert set(more) - set(plain) == {POOLED, LAST_MAP}
        assert all(torch.equal(plain[name], more[name]) for name in plain)
        torch.testing.assert_close(more[POOLED], network.features(image))
        assert more[LAST_MAP].shape == (ROWS, network.backbone.num_features_map, 1, 1)
        torch.testing.assert_close(
            plain["embedding"], torch.nn.functional.normalize(more[POOLED], dim=1)
        )

    def test_the_embedding_follows_the_teachers_by_the_cosine(self, tmp_path: Path) -> None:
        """The projector is not kept: the network has no tensor more than before."""
        network, parts = student(), batch(["embedding"])
        names = list(network.state_dict())
        recipe = DistillRecipe("cosine", (Term("embedding"),))
        loss = DistillationLoss(TASKS, recipe, PRIOR, WIDTHS)
        found = fit(
            network,
            steps=4,
            batches=lambda epoch: [tuple(parts)] * 4,
            loss=loss,
            score=lambda network: {"score": 1.0},
            schedule=Schedule(epochs=4, batch_size=ROWS, lr=5e-3),
            seed=0,
            folder=tmp_path,
            fingerprint="this",
        )
        assert found.history[-1]["loss"] < 0.7 * found.history[0]["loss"]
        assert list(network.state_dict()) == names

    def test_a_map_of_the_embedding_is_trained_by_each_term_of_the_embedding(self) -> None:
        """Without the map they compare the pooled features."""
        for term in ("embedding", "distances", "angles"):
            torch.manual_seed(3)
            network = Network(Backbone(EXPORTED), TASKS, embedding_width=5)
            loss = make(DistillRecipe("one", (Term(term),)), network)
            loss(network, batch(["embedding"])).backward()
            (weights,) = network.heads["embedding"].parameters()
            assert weights.grad is not None
            assert weights.grad.any(), term
        assert network(batch()[0])["embedding"].shape == (ROWS, 5)

    @pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
    def test_every_term_trains_in_the_loop_in_every_precision(
        self, tmp_path: Path, precision: Any
    ) -> None:
        parts = tuple(batch())
        found = fit(
            student(),
            steps=2,
            batches=lambda epoch: [parts] * 2,
            loss=DistillationLoss(TASKS, EVERYTHING, PRIOR, WIDTHS),
            score=lambda network: {"score": 1.0},
            schedule=Schedule(epochs=2, batch_size=ROWS, precision=precision),
            seed=0,
            folder=tmp_path,
            fingerprint="this",
        )
        weights = [name for name in found.history[1] if name.startswith("weight_")]
        assert weights == [f"weight_{task.name}" for task in TASKS]
        assert len({found.history[1][name] for name in weights}) > 1


def test_a_batch_is_read_in_the_order_of_tasks_and_needs() -> None:
    parts = batch()
    read = DistillationBatch.read(parts, TASKS, ["embedding", "map"])
    assert list(read.soft) == [task.name for task in TASKS]
    assert read.soft["lesion"] is parts[9]
    assert read.features["map"] is parts[12]
    with pytest.raises(ValueError, match="zip"):
        DistillationBatch.read(parts[:-1], TASKS, ["embedding", "map"])
