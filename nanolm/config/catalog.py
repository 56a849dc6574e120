"""The scripts that there are, and what ``configs/`` holds for each: groups, their choices, the values by default."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nanolm.config.convert import dotted
from nanolm.config.schema import EvaluateScriptConfig, SampleScriptConfig, TokenizeConfig, TrainConfig
from nanolm.config.schema_baseline import BaselineConfig
from nanolm.config.schema_compare import CompareConfig
from nanolm.config.schema_first_principles import FirstPrinciplesConfig
from nanolm.errors import ConfigError


@dataclass(frozen=True)
class Script:
    """One command: ``python scripts/<name>.py``.

    Attributes:
        schema: the dataclass that its configuration becomes.
        purpose: what it does and what it leaves, for its help page.
        examples: pairs of arguments and what they are for.
        has_run_directory: whether it makes ``hydra.run.dir`` and works in it.
        output_is_result: whether all that it leaves is what it prints.
    """

    name: str
    schema: type
    purpose: str
    examples: tuple[tuple[str, str], ...]
    has_run_directory: bool = False
    output_is_result: bool = False


SCRIPTS = {
    script.name: script
    for script in (
        Script(
            "train",
            TrainConfig,
            "Trains a GPT on text, evaluates it, and leaves a run directory, runs/<name>/<time>/, with config.yaml, "
            "metrics.jsonl, checkpoints/, samples.txt, report.html and, last of all, evaluation.json. "
            "The corpus is tokenized first where it is not there yet.",
            (
                ("", "the default: a small model on the State of the Union messages"),
                ("data=text data.path=book.txt tokenizer=char", "text of your own, character by character"),
                ("data=text 'data.path=texts/**/*.txt' model=micro", "many files, one document each; a larger model"),
                ("trainer.max_steps=null trainer.max_seconds=3600", "an hour of training, the schedule fitted to it"),
                ("hydra.run.dir=runs/sotu-nano/2026-01-31_12-00-00", "continue that run; add what it was started with"),
                ("-m loss.label_smoothing=0,0.1 seed=0,1,2", "a sweep: six runs under sweeps/<name>/, and their table"),
                ("-m experiment=study_label_smoothing", "a study: a sweep that is written down"),
                (
                    "data=fineweb_edu model=gpt2 trainer.device=cuda",
                    "a corpus from the Hub, on a GPU (never run yet)",
                ),
            ),
            has_run_directory=True,
        ),
        Script(
            "tokenize",
            TokenizeConfig,
            "Prepares a corpus for training: splits it by document, trains the tokenizer on the train split, writes "
            "shards of token ids and a manifest into <data.root>/<name>-<tokenizer>-<hash>/. Done once; called again "
            "it finds the corpus there. Training does this by itself; here it can be done ahead, on another machine.",
            (
                ("", "the default corpus and tokenizer"),
                ("data=text data.path=book.txt tokenizer=byte", "text of your own, byte by byte"),
                ("data=jsonl 'data.path=dumps/*.jsonl' data.text_column=body", "one document a line, under that field"),
                ("data=tinystories tokenizer.vocab_size=8192", "a corpus from the Hub"),
            ),
        ),
        Script(
            "evaluate",
            EvaluateScriptConfig,
            "Scores every token of a split, or with split=all of a text, once and leaves evaluation-<split>.json, "
            "documents-<split>.npz and report-<split>.html in the run directory, or in out=DIR. NLL in nats per token, "
            "perplexity, bits per byte, accuracy, calibration.",
            (
                ("checkpoint=runs/sotu-nano/2026-01-31_12-00-00", "the newest checkpoint of a run, on val"),
                ("checkpoint=RUN split=shifted", "the years after those trained on"),
                ("checkpoint=RUN evaluate.stride=32", "overlapping windows: more context for every token"),
                (
                    "checkpoint=RUN data=text data.path=other.txt out=scores",
                    "the whole of another text, results elsewhere",
                ),
            ),
        ),
        Script(
            "sample",
            SampleScriptConfig,
            "Continues a prompt and prints the text.",
            (
                (
                    "checkpoint=RUN prompt='My fellow citizens,'",
                    "continue a prompt; RUN is the path that training printed last",
                ),
                ('checkpoint=RUN prompt="What\'s up? (x=1), yes"', "any text will do, in the shell's quotes"),
                ("checkpoint=RUN prompt=- < prompt.txt", "a prompt from standard input"),
                ("checkpoint=RUN temperature=fitted num_samples=3 seed=7", "at the temperature fitted for calibration"),
            ),
            output_is_result=True,
        ),
        Script(
            "first_principles",
            FirstPrinciplesConfig,
            "Walks from the probability of a dataset to the training of a language model in a few seconds, computes "
            "and prints every identity on the way, and leaves one page of figures, first_principles.html, in "
            "runs/<name>/<time>/. An identity that does not hold makes the exit code 1.",
            (
                ("", "the whole path; the sentence is scored by a character bigram"),
                (
                    "checkpoint=RUN sentence='The state of the Union is strong.'",
                    "the surprisal of each token under a trained model",
                ),
            ),
            has_run_directory=True,
        ),
        Script(
            "baseline",
            BaselineConfig,
            "Fits a classifier by the same loss, and measures it by the same figures, as a language model: repeated "
            "stratified cross-validation, a temperature fitted within the training folds, calibrators compared, and "
            "what happens to confidence when training goes on. Leaves a run directory, runs/<task>-<model>/<time>/, "
            "with config.yaml, metrics.jsonl, report.html and, last of all, evaluation.json.",
            (
                ("", "the default: logistic regression on the breast cancer data"),
                ("task=softmax", "ten handwritten digits, one hidden layer; task.model=linear without it"),
                ("task=softmax task.path=flowers.csv task.target=species", "your own CSV file: numbers and a class"),
                ("task.l2=0.01", "a penalty on the weights"),
                ("-m task=binary,softmax loss.label_smoothing=0,0.1 seed=0,1,2", "a sweep: twelve runs"),
                ("-m experiment=baseline/study_label_smoothing", "a study: a sweep that is written down"),
            ),
            has_run_directory=True,
        ),
        Script(
            "compare",
            CompareConfig,
            "Compares finished runs: for each cell of equal configuration the mean and the spread over seeds, and the "
            "difference from the baseline cell with its interval over documents, paired, and over seeds. Prints a "
            "table, and leaves comparison.csv and comparison.html in the folder of the runs or in out=DIR.",
            (
                ("runs=sweeps/sotu-nano", "the runs of a sweep; the first one's cell is the baseline"),
                ("runs=sweeps/sotu-nano baseline=loss.label_smoothing=0.1", "another baseline"),
                ("runs=runs out=comparisons", "all runs there are, results elsewhere"),
                ("runs=sweeps/study-temperature split=shifted", "on another split, where the runs were scored on it"),
            ),
        ),
    )
}


def find_configs(script: str) -> Path:
    """``configs/`` beside the folder of the script that runs, else that of the source tree nanolm is imported from."""
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    places = [Path(main).resolve().parents[1]] if main and len(Path(main).resolve().parents) > 1 else []
    places.append(Path(__file__).resolve().parents[2])
    for place in places:
        if (place / "configs" / f"{script}.yaml").is_file():
            return place / "configs"
    looked = " and ".join(str(place / "configs") for place in places)
    raise ConfigError(f"configs/{script}.yaml: not found; looked in {looked}. Run from a clone, or give config_dir.")


def default_choices(config_dir: Path, script: str) -> dict[str, str | None]:
    """The groups of a script in their order, each with its choice by default; None where nothing is chosen."""
    return {
        group: choice
        for entry in _read(config_dir / f"{script}.yaml").get("defaults", [])
        if isinstance(entry, dict)
        for group, choice in entry.items()
    }


def choices(config_dir: Path, group: str, script: str = "") -> dict[str, str]:
    """The choices of a group, each with its description: the comment that its file begins with.

    Where the group has a folder with the script's name, the choices in that are the script's, ``<script>/<choice>``.
    """
    descriptions = {}
    own = f"{script}/" if script and (config_dir / group / script).is_dir() else ""
    for file in sorted((config_dir / group / own).glob("*.yaml")):
        comments = [line for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("# ")]
        words = [line[2:].strip() for line in comments if not line.startswith("# @")]
        descriptions[own + file.stem] = words[0] if words else ""
    return descriptions


def default_values(config_dir: Path, script: str) -> dict[str, Any]:
    """The values by default as they stand in the YAML files, by dotted name."""
    values = dict(dotted(_read(config_dir / f"{script}.yaml")))
    for group, choice in default_choices(config_dir, script).items():
        if choice is not None:
            values.update(dotted(_read(config_dir / group / f"{choice}.yaml"), f"{group}."))
    return values


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected keys and values, found {type(content).__name__}")
    return content
