"""Presets and files of distillation recipes."""

import json
from pathlib import Path

import pytest

from dermedge.train.distill_recipe import (
    DISTILLATION_LOSSES,
    RECIPES,
    DistillRecipe,
    Term,
    read_recipe,
)
from dermedge_runtime.errors import UsageError

LOSSES = ", ".join(DISTILLATION_LOSSES)
MINE = """
name = "mine"
mixup = 0.2
task_weights = "uncertainty"

[[terms]]
loss = "labels"
weight = 0.5

[[terms]]
loss = "dkd"
weight = 2
beta = 8.0
"""


def test_a_toml_and_a_json_file_give_the_same_recipe(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(MINE)
    recipe = read_recipe(tmp_path / "mine.toml")
    assert recipe.terms == (Term("labels", 0.5), Term("dkd", 2, {"beta": 8.0}))
    assert (recipe.name, recipe.mixup, recipe.task_weights) == ("mine", 0.2, "uncertainty")
    (tmp_path / "mine.json").write_text(json.dumps(recipe.to_json()))
    again = read_recipe(str(tmp_path / "mine.json"))
    assert again.to_json() == recipe.to_json()
    assert recipe.to_json()["terms"][1] == {
        "loss": "dkd",
        "weight": 2,
        "temperature": 4.0,
        "alpha": 1.0,
        "beta": 8.0,
    }


def test_a_recipe_without_a_name_has_its_files_name(tmp_path: Path) -> None:
    (tmp_path / "short.toml").write_text('[[terms]]\nloss = "kl"\n')
    assert read_recipe(tmp_path / "short.toml") == DistillRecipe("short", (Term("kl"),))


def test_the_presets_are_recipes_that_say_what_they_need() -> None:
    assert list(RECIPES) == ["hinton", "standard", "features", "full"]
    assert all(read_recipe(name) is recipe for name, recipe in RECIPES.items())
    needs = {name: sorted(recipe.needs) for name, recipe in RECIPES.items()}
    assert needs == {"hinton": [], "standard": [], "features": ["embedding"], "full": ["embedding"]}
    assert DistillRecipe("none", (Term("kl"), Term("map", 0))).needs == frozenset()


def test_hinton_is_the_loss_before_there_were_recipes() -> None:
    assert RECIPES["hinton"].to_json() == {
        "name": "hinton",
        "mixup": 0.0,
        "task_weights": "uniform",
        "terms": [
            {"loss": "labels", "weight": 0.3},
            {"loss": "kl", "weight": 0.7, "temperature": 2.0},
        ],
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[[terms]]\nloss = "kd"', f"Unknown term 'kd'. Use one of {LOSSES}"),
        ('[[terms]]\nloss = "kl"\nheat = 2', "no option 'heat'.*loss, weight, temperature"),
        ('[[terms]]\nloss = "kl"\nweight = "much"', "of 'kl' is 'much', which is not a number"),
        ('[[terms]]\nloss = "kl"\nweight = true', "is True, which is not a number"),
        ('[[terms]]\nloss = "kl"\nweight = nan', "is nan, which is not a number"),
        ('[[terms]]\nloss = "kl"\nweight = -1', "cannot be -1"),
        ('[[terms]]\nloss = "kl"\ntemperature = 0', "temperature of 'kl' cannot be 0"),
        ('[[terms]]\nloss = "kl"\nweight = 0', "No term has a weight above 0"),
        ('[[terms]]\nloss = "kl"\n[[terms]]\nloss = "kl"', "'kl' is listed twice"),
        ("[[terms]]\nweight = 1", "A term has no 'loss'"),
        ('mixup = -0.5\n[[terms]]\nloss = "kl"', "mixup cannot be -0.5"),
        ('task_weights = "best"\n[[terms]]\nloss = "kl"', "uniform, uncertainty"),
        ('speed = 1\n[[terms]]\nloss = "kl"', "Unknown key 'speed'.*name, mixup"),
        ('terms = "kl"', "'terms' must be a list of tables"),
        ("", "'terms' must be a list of tables"),
        ("terms = [", "cannot be read"),
    ],
)  # fmt: skip
def test_an_invalid_file_is_named_with_its_fault(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=rf"wrong\.toml .*{message}"):
        read_recipe(path)


@pytest.mark.parametrize("content", ["[]", "3", "{", "\udcff"])
def test_a_json_file_must_hold_an_object(tmp_path: Path, content: str) -> None:
    path = tmp_path / "wrong.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(UsageError, match=r"wrong\.json"):
        read_recipe(path)


@pytest.mark.parametrize("name", ["hintn", "missing.toml", ".", "full.yaml"])
def test_an_unknown_recipe_lists_the_presets(name: str) -> None:
    with pytest.raises(UsageError, match=r"Unknown recipe.*hinton, standard, features, full"):
        read_recipe(name)
