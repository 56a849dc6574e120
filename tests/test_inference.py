"""Scoring with a finished checkpoint: which text, and how much of it."""

import json
import random

import pytest

from nanolm.config import load
from nanolm.data import open_prepared, prepare
from nanolm.errors import DataError
from nanolm.inference import evaluate_checkpoint
from tests.conftest import WORDS
from tests.faults.runs import evaluation, run, run_script

NUMBERS = ("num_tokens", "num_documents", "num_bytes")
TEXT = "An entirely different text. " * 30


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    """A folder of two finished runs that differ in their seed."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        assert run(tiny(f"seed={seed}", "trainer.max_steps=4"), folder / str(seed)) == 0
    return folder


@pytest.fixture
def evaluate(runs, tmp_path, data_root):
    """``evaluate("split=all", …)``: the content of the JSON file that evaluating run 0 leaves in ``tmp_path/out``."""

    def evaluate(*overrides, checkpoint="0"):
        if any(override.startswith("data=") for override in overrides):
            overrides = (*overrides, f"data.root={data_root}")
        given = [f"checkpoint={runs / checkpoint}", f"out={tmp_path / 'out'}", *overrides]
        folder = evaluate_checkpoint(load("evaluate", given))
        (path,) = folder.glob("evaluation-*.json")
        split = path.stem.removeprefix("evaluation-")
        assert {path.name for path in folder.iterdir()} == {path.name, f"documents-{split}.npz", f"report-{split}.html"}
        content = json.loads(path.read_text())
        assert content["split"] == split
        return content

    return evaluate


@pytest.fixture
def other(tmp_path):
    """The command line of another text."""
    (tmp_path / "other.txt").write_text(TEXT)
    return ["data=text", f"data.path={tmp_path / 'other.txt'}"]


def numbers(content):
    return [content[name] for name in NUMBERS]


def test_all_of_the_text_trained_on_is_every_document_once_with_a_warning(evaluate, tiny, corpus_file, capsys):
    config = tiny()
    splits = open_prepared(prepare(config.data, config.tokenizer)).splits.values()
    content = evaluate("split=all")
    assert numbers(content) == [sum(getattr(split, name) for split in splits) for name in NUMBERS]
    assert content["num_documents"] == 20
    assert content["temperature"]["value"] > 0
    err = capsys.readouterr().err
    assert "warning: split=all" in err
    assert f"{content['num_tokens']:,} of {content['num_tokens']:,}" in err
    assert evaluate("data=jsonl", f"data.path={corpus_file}")["nll"] == content["nll"]  # under another name
    assert "warning: split=all" in capsys.readouterr().err


def test_another_text_is_scored_as_a_whole_unless_a_split_is_named(evaluate, other, capsys):
    content = evaluate(*other)
    assert content["split"] == "all"
    assert numbers(content) == [len(TEXT) + 1, 1, len(TEXT)]  # a document is not divided: it has one end-of-text
    err = capsys.readouterr().err
    assert f"{len(TEXT) + 1} of {len(TEXT) + 1} tokens" in err
    assert "warning" not in err


def test_a_split_of_another_text_says_which_part_was_scored(evaluate, other, capsys):
    assert numbers(evaluate(*other, "split=val")) == [len(TEXT) // 10 + 1, 1, len(TEXT) // 10]
    assert f"{len(TEXT) // 10 + 1} of {len(TEXT) + 3} tokens" in capsys.readouterr().err


def test_a_text_too_short_to_be_split_can_be_scored(evaluate, other, tmp_path):
    (tmp_path / "other.txt").write_text("a")
    assert numbers(evaluate(*other)) == [2, 1, 1]


def test_settings_of_the_splits_do_not_matter_to_the_whole(evaluate, tmp_path, data_root):
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text(" ".join(random.Random(number).choices(WORDS, k=40)))
    before = set(data_root.iterdir())
    texts = ["data=text", f"data.path={tmp_path}/*.txt"]
    assert evaluate(*texts) == evaluate(*texts, "split=all", "data.val_fraction=0.4", "data.split_seed=7")
    made = {path for path in data_root.iterdir() if path.is_dir()} - before
    assert len(made) == 1


def test_a_checkpoint_of_the_middle_of_a_run_fits_its_temperature_if_it_can(evaluate, other):
    checkpoint = "0/checkpoints/step-00000002"
    assert evaluate("split=all", checkpoint=checkpoint)["calibration"]["split"] == "calibration"
    calibration = evaluate(*other, checkpoint=checkpoint)["calibration"]
    assert calibration["temperature"] is None
    assert "split=all" in calibration["reason"]


def test_a_split_that_is_not_there_names_those_that_are(evaluate):
    with pytest.raises(DataError, match=r"split=shifted: .* val.* all"):
        evaluate("split=shifted")


def test_a_comparison_on_all(runs, tmp_path):
    for seed in (0, 1):
        evaluate_checkpoint(load("evaluate", [f"checkpoint={runs / str(seed)}", "split=all"]))
        assert evaluation(runs / str(seed), "all")["split"] == "all"
    assert run_script("compare", [f"runs={runs}", "split=all", f"out={tmp_path}"]) == 0
    assert (tmp_path / "comparison-all.html").exists()
    assert (tmp_path / "comparison-all.csv").read_text().count(",all,") > 0
