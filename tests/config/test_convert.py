# ruff: noqa: RUF009
import contextlib
import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nanolm.config import differences, flatten, from_yaml, load, to_yaml
from nanolm.config.convert import convert
from nanolm.config.schema import STEEPEST, TrainConfig, key, section
from nanolm.errors import ConfigError

TRAIN = load("train")
CONTAINER = yaml.safe_load(to_yaml(TRAIN))


@dataclass(frozen=True)
class Inner:
    rate: float = key("a rate", above=0, maximum=1)


@dataclass(frozen=True)
class Example:
    count: int = key("a count", minimum=1)
    flag: bool = key("a flag")
    mode: Literal["auto", "on", "off"] = key("a mode")
    limit: float | Literal["fitted"] = key("a limit", minimum=0)
    path: str | None = key("a path", text=True)
    tags: tuple[str, ...] = key("tags")
    inner: Inner = section()
    other: Inner | None = key("another")


VALID: dict[str, Any] = {
    "count": 3,
    "flag": True,
    "mode": "auto",
    "limit": 0.5,
    "path": None,
    "tags": ["a"],
    "inner": {"rate": 0.1},
    "other": None,
}


def test_values_become_frozen_objects_of_the_schema() -> None:
    example = convert(Example, VALID)
    assert example == Example(3, True, "auto", 0.5, None, ("a",), Inner(0.1), None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        example.count = 4  # type: ignore[misc]


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
        ("other", {"rate": 1}, Inner(1.0)),
    ],
)
def test_values_that_pass(name: str, given_value: object, converted: object) -> None:
    value = getattr(convert(Example, {**VALID, name: given_value}), name)
    assert value == converted
    assert type(value) is type(converted)


@pytest.mark.parametrize(
    ("name", "given_value", "told"),
    [
        ("count", "3", "count: expected a whole number >= 1, found the text '3'"),
        ("count", True, "found true"),
        ("count", 1.5, "found 1.5"),
        ("count", 0, ">= 1, found 0"),
        ("count", None, "count: not given; expected a whole number >= 1, a count"),
        ("count", math.inf, "found inf"),
        ("flag", 1, "flag: expected true or false, found 1"),
        ("flag", "true", "found the text 'true'"),
        ("mode", "atuo", "expected one of auto, on, off, found the text 'atuo'; did you mean auto?"),
        ("limit", math.nan, "expected a number >= 0, or fitted, found nan"),
        ("limit", -1, "found -1"),
        ("limit", "fited", "did you mean fitted?"),
        ("limit", 10**400, "limit: expected a number"),
        ("path", 3, "path: expected text, or null, found 3; write it in quotes"),
        ("tags", "a", "expected a list of texts, found the text 'a'; write tags=[first,second]"),
        ("tags", ["a", 1], 'numbers as "1"'),
        ("inner", None, "inner: expected keys and values, found null"),
        ("inner", {"rate": 0}, "inner.rate: expected a number > 0 and <= 1, found 0"),
        ("inner", {"rate": 1, "rat": 1}, "inner.rat: no such key; did you mean inner.rate?"),
        ("inner", {}, "inner.rate: missing; expected a number > 0 and <= 1, a rate"),
        ("inner", {"rate": 1, 7: 1}, "inner.7: no such key"),
        ("inner", {"rate": 1, "_target_": "os.system"}, "inner._target_: no such key"),
    ],
)
def test_problems_name_the_key_what_was_expected_and_what_was_found(name: str, given_value: object, told: str) -> None:
    with pytest.raises(ConfigError) as raised:
        convert(Example, {**VALID, name: given_value})
    assert told in str(raised.value)


def test_a_hint_for_who_writes_none() -> None:
    with pytest.raises(ConfigError, match="found the text 'None'; write null for none"):
        load("train", ["trainer.eval_every=None"])


def test_differences_show_values_as_they_are_typed() -> None:
    before = load("train", ["trainer.eval_every=null", "evaluate.further_splits=[test]", "sample.prompt="])
    given = ["trainer.eval_every=2", "wandb.tags=[a,b]", "sample.prompt=its own", "model.tie_word_embeddings=false"]
    after = load("train", given)
    assert differences(before, after, ()) == [
        "  evaluate.further_splits: [test] there, [] now",
        "  model.tie_word_embeddings: true there, false now",
        "  sample.prompt: the text '' there, its own now",
        "  trainer.eval_every: null there, 2 now",
        "  wandb.tags: [] there, [a,b] now",
    ]


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as raised:
        convert(Example, {**VALID, "count": 0, "flag": 2, "inner": {"rate": 3}})
    assert str(raised.value).startswith("3 problems in the configuration:\n  count: ")
    assert len(str(raised.value).splitlines()) == 4


def test_flatten_gives_every_leaf_by_its_dotted_name() -> None:
    flat = flatten(TRAIN)
    assert flat["trainer.max_steps"] == TRAIN.trainer.max_steps
    assert flat["name"] == TRAIN.name
    assert "trainer" not in flat
    assert flatten(convert(Example, VALID))["other.rate"] is None


@given(
    prompt=st.text(st.characters(exclude_categories=[])),  # lone surrogates too: they stand for bytes that are no UTF-8
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
    ],
)
def test_hostile_and_damaged_yaml_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        from_yaml(text, TrainConfig)


def test_yaml_that_would_run_code_runs_none(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    for tag in ("object/apply:pathlib.Path.touch", "object/new:pathlib.Path.touch"):
        with pytest.raises(ConfigError, match="could not determine a constructor"):
            from_yaml(f"name: !!python/{tag} [!!python/object/apply:pathlib.Path ['{trace}']]", TrainConfig)
    assert not trace.exists()


def test_a_message_about_an_exponential_value_stays_short() -> None:
    levels = [f"l{n}: &l{n} [{','.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 12)]
    bomb = "\n".join(["l0: &l0 [a, a, a, a, a, a, a, a, a]", *levels])
    with pytest.raises(ConfigError) as raised:
        from_yaml(bomb + "\nseed: *l11\n", TrainConfig)
    assert len(str(raised.value)) < 20_000


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_mutated_yaml_is_accepted_or_refused_but_never_breaks(data: st.DataObject) -> None:
    text = to_yaml(TRAIN)
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        stop = data.draw(st.integers(start, min(start + 12, len(text))))
        piece = st.sampled_from(
            [
                "null",
                "true",
                "1e999",
                ".inf",
                "!!binary x",
                "&a",
                "*a",
                "<<: ",
                "'",
                "{",
                "- ",
                "\t",
                "2001-01-01",
                "1:30",
            ]
        )
        text = text[:start] + data.draw(piece | st.text(max_size=6)) + text[stop:]
    with contextlib.suppress(ConfigError):
        assert isinstance(from_yaml(text, TrainConfig), TrainConfig)
