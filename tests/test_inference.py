"""Scoring with a finished checkpoint: which text, and how much of it."""

import json
import random

import pytest

from nanolm.comparison import compare_runs
from nanolm.config import load
from nanolm.data import open_prepared, prepare
from nanolm.errors import DataError
from nanolm.inference import evaluate_checkpoint
from nanolm.report import write_run_report
from nanolm.report.comparison import write_comparison_page
from nanolm.training import train
from tests.conftest import WORDS


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory):
    """A folder of two finished runs that differ in their seed."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        (folder / str(seed)).mkdir()
        config = tiny(f"seed={seed}", "trainer.max_steps=4")
        assert train(config, folder / str(seed), "python scripts/train.py", write_run_report) == 0
    return folder


@pytest.fixture
def evaluate(runs, tmp_path, data_root):
    """``evaluate("split=all", …)``: the content of the JSON file that evaluating run 0 leaves in ``tmp_path/out``."""

    def evaluate(*overrides, checkpoint="0"):
        if any(override.startswith("data=") for override in overrides):
            overrides = (*overrides, f"data.root={data_root}")
        folder = evaluate_checkpoint(
            load("evaluate", [f"checkpoint={runs / checkpoint}", f"out={tmp_path / 'out'}", *overrides])
        )
        (path,) = folder.glob("evaluation-*.json")
        content = json.loads(path.read_text())
        assert path.name == f"evaluation-{content['split']}.json"
        names = {path.name, f"documents-{content['split']}.npz", f"report-{content['split']}.html"}
        assert {path.name for path in folder.iterdir()} == names
        return content

    return evaluate


def num(content):
    return [content[name] for name in ("num_tokens", "num_documents", "num_bytes")]


def test_all_of_the_text_trained_on_is_every_document_once_with_a_warning(evaluate, tiny, capsys):
    config = tiny()
    splits = open_prepared(prepare(config.data, config.tokenizer)).splits.values()
    content = evaluate("split=all")
    assert num(content) == [sum(getattr(split, name) for split in splits) for name in NUMBERS]
    assert content["num_documents"] == 20
    assert content["temperature"]["value"] > 0
    err = capsys.readouterr().err
    assert "warning: split=all" in err
    assert f"{content['num_tokens']:,} of {content['num_tokens']:,} tokens" in err
    assert "20 of 20 documents" in err


NUMBERS = ("num_tokens", "num_documents", "num_bytes")


def test_another_text_is_scored_as_a_whole_unless_a_split_is_named(evaluate, tmp_path, capsys):
    text = "An entirely different text. " * 30
    (tmp_path / "other.txt").write_text(text)
    other = ["data=text", f"data.path={tmp_path / 'other.txt'}"]
    content = evaluate(*other)
    assert content["split"] == "all"
    assert num(content) == [len(text) + 1, 1, len(text)]  # a document is not divided: it has one end-of-text
    err = capsys.readouterr().err
    assert f"{len(text) + 1} of {len(text) + 1} tokens" in err
    assert "warning" not in err


def test_a_split_of_another_text_says_which_part_was_scored(evaluate, tmp_path, capsys):
    text = "An entirely different text. " * 30
    (tmp_path / "other.txt").write_text(text)
    content = evaluate("data=text", f"data.path={tmp_path / 'other.txt'}", "split=val")
    assert num(content) == [len(text) // 10 + 1, 1, len(text) // 10]
    err = capsys.readouterr().err
    assert f"split=val: {len(text) // 10 + 1} of {len(text) + 3} tokens" in err
    assert "split=all" in err


def test_a_text_too_short_to_be_split_can_be_scored(evaluate, tmp_path):
    (tmp_path / "other.txt").write_text("a")
    assert num(evaluate("data=text", f"data.path={tmp_path / 'other.txt'}")) == [2, 1, 1]


def test_settings_of_the_splits_do_not_matter_to_the_whole(evaluate, tmp_path, data_root):
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text(" ".join(random.Random(number).choices(WORDS, k=40)))
    before = set(data_root.iterdir())
    other = ["data=text", f"data.path={tmp_path}/*.txt"]
    assert evaluate(*other) == evaluate(*other, "split=all", "data.val_fraction=0.4", "data.split_seed=7")
    made = {path for path in data_root.iterdir() if path.is_dir()} - before
    assert len(made) == 1


def test_the_same_text_under_another_name_is_warned_of_too(evaluate, corpus_file, tiny, capsys):
    whole = evaluate("split=all")
    capsys.readouterr()
    assert evaluate("data=jsonl", f"data.path={corpus_file}")["nll"] == whole["nll"]
    assert "warning: split=all" in capsys.readouterr().err


def test_a_checkpoint_of_the_middle_of_a_run_fits_its_temperature_where_it_can(evaluate, tmp_path):
    checkpoint = "0/checkpoints/step-00000002"
    assert evaluate("split=all", checkpoint=checkpoint)["calibration"]["split"] == "calibration"
    (tmp_path / "other.txt").write_text("Some other text. " * 20)
    calibration = evaluate("data=text", f"data.path={tmp_path / 'other.txt'}", checkpoint=checkpoint)["calibration"]
    assert calibration["temperature"] is None
    assert "split=all" in calibration["reason"]


def test_a_split_that_is_not_there_names_those_that_are(evaluate):
    with pytest.raises(DataError, match=r"split=shifted: .* val.* all"):
        evaluate("split=shifted")


def test_a_comparison_on_all(runs, tmp_path, capsys):
    for seed in (0, 1):
        evaluate_checkpoint(load("evaluate", [f"checkpoint={runs / str(seed)}", "split=all"]))
    page = compare_runs(load("compare", [f"runs={runs}", "split=all", f"out={tmp_path}"]), write_comparison_page)
    assert page.name == "comparison-all.html"
    assert (tmp_path / "comparison-all.csv").read_text().count(",all,") > 0
    assert "all" in capsys.readouterr().out
