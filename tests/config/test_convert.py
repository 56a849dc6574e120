"""From plain containers and YAML to configurations and back, and what is hostile on the way."""

import contextlib
import dataclasses
import math
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import Discriminator

from nanolm.config import differences, flatten, from_yaml, load, to_yaml
from nanolm.config.convert import convert
from nanolm.config.keys import Configuration, key
from nanolm.config.schema import STEEPEST, Count, Epsilon, OnOff, Switch, Text, TrainConfig, Weight
from nanolm.errors import ConfigError

TRAIN = load("train")


class Inner(Configuration):
    rate: Epsilon = key("a rate")


class Near(Configuration):
    name: Literal["near"] = "near"
    reach: Count = key("a reach")


class Far(Configuration):
    name: Literal["far", "further"] = key("a name")
    distance: Count = key("a distance")


class Example(Configuration):
    count: Count = key("a count")
    flag: Switch = key("a flag")
    mode: OnOff = key("a mode")
    limit: Weight | Literal["fitted"] = key("a limit")
    path: Text | None = key("a path")
    tags: tuple[Text, ...] = key("tags")
    inner: Inner
    other: Inner | None
    choice: Annotated[Near | Far, Discriminator("name")]


VALID: dict[str, Any] = {
    "count": 3,
    "flag": True,
    "mode": "auto",
    "limit": 0.5,
    "path": None,
    "tags": ["a"],
    "inner": {"rate": 0.1},
    "other": None,
    "choice": {"name": "near", "reach": 1},
}


def test_values_become_frozen_objects_of_the_schema() -> None:
    built = convert(Example, VALID)
    expected = (3, True, "auto", 0.5, None, ("a",), Inner(rate=0.1), None, Near(reach=1))
    assert tuple(getattr(built, item.name) for item in dataclasses.fields(built)) == expected
    with pytest.raises(dataclasses.FrozenInstanceError):
        built.count = 4  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "given_value", "converted"),
    [
        ("count", 1e3, 1000),
        ("limit", 2, 2.0),
        ("limit", "fitted", "fitted"),
        ("mode", True, "on"),  # YAML 1.1 reads a bare on as true
        ("mode", False, "off"),
        ("path", "", ""),
        ("tags", [], ()),
        ("other", {"rate": 1}, Inner(rate=1.0)),
        ("choice", {"name": "further", "distance": 2}, Far(name="further", distance=2)),
    ],
)
def test_values_that_pass(name: str, given_value: object, converted: object) -> None:
    value = getattr(convert(Example, {**VALID, name: given_value}), name)
    assert value == converted
    assert type(value) is type(converted)


@pytest.mark.parametrize(
    ("name", "given_value", "parts"),
    [
        ("count", "3", ["count: ", "whole number >= 1", "the text '3'"]),
        ("count", True, ["count: ", "found true"]),
        ("count", 1.5, ["count: ", "found 1.5"]),
        ("count", 0, ["count: ", ">= 1", "found 0"]),
        ("count", None, ["count: required", "a count"]),
        ("count", math.inf, ["count: ", "found inf"]),
        ("flag", 1, ["flag: ", "true or false", "found 1"]),
        ("flag", "true", ["flag: ", "the text 'true'"]),
        ("mode", "of", ["mode: ", "auto, on, off", "mean off"]),
        ("limit", math.nan, ["limit: ", "number >= 0", "fitted", "found nan"]),
        ("limit", -1, ["limit: ", "found -1"]),
        ("limit", "fited", ["limit: ", "mean fitted"]),
        ("limit", 10**400, ["limit: ", "number"]),
        ("path", 3, ["path: ", "text, or null", "found 3", "quotes"]),
        ("tags", "a", ["tags: ", "list of texts", "tags=[first,second]"]),
        ("tags", ["a", 1], ["tags: ", 'as "1"']),
        ("inner", None, ["inner: ", "keys and values", "found null"]),
        ("inner", {"rate": 0}, ["inner.rate: ", "> 0 and <= 1", "found 0"]),
        ("inner", {"rate": 1, "rat": 1}, ["inner.rat: ", "mean inner.rate"]),
        ("inner", {}, ["inner.rate: required", "a rate"]),
        ("inner", {"rate": 1, 7: 1}, ["inner.7: no such key"]),
        ("inner", {"rate": 1, "_target_": "os.system"}, ["inner._target_: no such key"]),
        ("choice", {"name": "neat", "reach": 1}, ["choice.name: ", "near, far, further", "mean near"]),
        ("choice", {"reach": 1}, ["choice.name: required", "near, far"]),
        ("choice", {"name": "near", "reach": 1, "distance": 1}, ["choice.distance: ", "only choice=far|further"]),
        ("choice", {"name": "far"}, ["choice.distance: required", "a distance"]),
        ("choice", None, ["choice: ", "found null"]),
    ],
)
def test_a_problem_has_the_key_what_was_expected_and_what_was_found(
    name: str, given_value: object, parts: list[str]
) -> None:
    with pytest.raises(ConfigError) as raised:
        convert(Example, {**VALID, name: given_value})
    assert str(raised.value).startswith(parts[0])
    assert [part for part in parts if part not in str(raised.value)] == []


def test_all_problems_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as raised:
        convert(Example, {**VALID, "count": 0, "flag": 2, "inner": {"rate": 3}, "limit": "x"})
    first, *lines = str(raised.value).splitlines()
    assert first.startswith("4 ")
    assert [line.strip().partition(":")[0] for line in lines] == ["count", "flag", "limit", "inner.rate"]


def test_differences_show_values_as_they_are_typed_but_not_those_that_a_continued_run_may_change() -> None:
    before = load("train", ["trainer.eval_every=null", "sample.prompt=", "trainer.max_steps=5"])
    given = ["trainer.eval_every=2", "sample.prompt=its own", "model.tie_word_embeddings=false", "schedule=constant"]
    assert differences(before, load("train", [*given, "trainer.max_steps=9", "data.root=elsewhere"])) == [
        "  model.tie_word_embeddings: true there, false now",
        "  schedule.decay_fraction: 0.6 there, null now",
        "  schedule.final_fraction: 0.0 there, null now",
        "  schedule.name: wsd there, constant now",
        "  trainer.eval_every: null there, 2 now",
    ]


@pytest.mark.parametrize(("script", "differ"), [("train", False), ("baseline", True)])
def test_another_teacher_may_continue_the_run_of_a_language_model_alone(
    script: str, differ: bool, tmp_path: Path
) -> None:
    """Its weights are compared with those that the checkpoints name; a baseline has none."""
    assert bool(differences(load(script), load(script, [f"loss.distillation.teacher={tmp_path}"]))) == differ


def test_flatten_gives_every_leaf_by_its_dotted_name() -> None:
    flat = flatten(TRAIN)
    assert flat["trainer.max_steps"] == TRAIN.trainer.max_steps
    assert flat["name"] == TRAIN.name
    assert not {"trainer", "data.path"} & flat.keys()


@given(
    prompt=st.text(st.characters(exclude_categories=[], exclude_characters="\0")),  # lone surrogates: bytes of no UTF-8
    tags=st.lists(st.text(), max_size=3),
    rate=st.floats(min_value=0, max_value=STEEPEST, exclude_min=True),
    seed=st.integers(0, 2**63 - 1),
)
@example(prompt="\x85", tags=["null", "1e5", "on", "", "\u2028\ufeff\r\n\t"], rate=5e-324, seed=2**63 - 1)
@settings(max_examples=40, deadline=None)
def test_yaml_round_trip_is_exact(prompt: str, tags: list[str], rate: float, seed: int) -> None:
    config = dataclasses.replace(
        TRAIN,
        seed=seed,
        sample=dataclasses.replace(TRAIN.sample, prompt=prompt),
        wandb=dataclasses.replace(TRAIN.wandb, tags=tuple(tags)),
        optimizer=dataclasses.replace(TRAIN.optimizer, learning_rate=rate),
    )
    text = to_yaml(config)
    text.encode()
    assert from_yaml(text, TrainConfig) == config


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1, 2]",
        "a: [",
        "\x00",
        "a: &a [*a]",
        "[" * 5000,
        "name: !!python/object/apply:os.system ['touch hacked']",
        "!!python/name:os.system",
        to_yaml(TRAIN) + "_target_: os.system\n",
        to_yaml(TRAIN) + "seed: 5\n",
        to_yaml(TRAIN).replace("seed: 0", "seed: '0'"),
        to_yaml(TRAIN).replace("seed: 0", "seed: 2001-99-99"),
        to_yaml(TRAIN).replace("seed: 0", "seed: 1" + "0" * 5000),
        to_yaml(TRAIN).replace("seed: 0\n", ""),
        to_yaml(TRAIN).replace("name:", "nmae:", 1),
        to_yaml(TRAIN).replace("name: sotu\n", "name: [sotu]\n"),
        to_yaml(TRAIN).replace("tags: []", "tags: &a [*a]"),
        to_yaml(TRAIN).replace("data:\n", "data: &a\n  more: *a\n"),
    ],
)
def test_hostile_and_damaged_yaml_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        from_yaml(text, TrainConfig)


def test_yaml_that_would_run_code_runs_none(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    for tag in ("object/apply:pathlib.Path.touch", "object/new:pathlib.Path.touch"):
        with pytest.raises(ConfigError, match="constructor"):
            from_yaml(f"name: !!python/{tag} [!!python/object/apply:pathlib.Path ['{trace}']]", TrainConfig)
    assert not trace.exists()


def test_a_message_about_an_exponential_value_stays_short() -> None:
    levels = [f"l{n}: &l{n} [{','.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 12)]
    bomb = "\n".join(["l0: &l0 [a, a, a, a, a, a, a, a, a]", *levels])
    with pytest.raises(ConfigError) as raised:
        from_yaml(bomb + "\nseed: *l11\n", TrainConfig)
    assert len(str(raised.value)) < 20_000


PIECES = ["null", "true", "1e999", ".inf", "!!binary_x", "&a", "*a", "<<:_", "'", "{", "-_", "\t", "2001-01-01", "1:30"]


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_mutated_yaml_is_accepted_or_refused_but_never_breaks(data: st.DataObject) -> None:
    text = to_yaml(TRAIN)
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        stop = data.draw(st.integers(start, min(start + 12, len(text))))
        piece = st.sampled_from(PIECES).map(lambda piece: piece.replace("_", " ")) | st.text(max_size=6)
        text = text[:start] + data.draw(piece) + text[stop:]
    with contextlib.suppress(ConfigError):
        assert isinstance(from_yaml(text, TrainConfig), TrainConfig)
