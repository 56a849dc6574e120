"""Every command of README.md and docs/ works: it is run here, shortened, or stands below with the reason why not.

The commands are taken from the documents, so that one that is added there is run as well.
"""

import importlib.util
import os
import random
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from nanolm.config import command_line, load
from nanolm.config.catalog import choices, find_configs
from nanolm.config.schema import SCHEMAS
from tests.conftest import WORDS

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"`([^`\n]+)`")
PROGRAMS = ("python ", "make ", "pytest ", "wandb ", "echo ", "pip ", "torchrun ", "nanolm ", ". ")

TINY = {
    "train": [
        *("model.hidden_size=32", "model.num_hidden_layers=1", "model.num_attention_heads=2"),
        *("model.num_key_value_heads=2", "model.intermediate_size=48", "trainer.device=cpu", "trainer.max_steps=2"),
        *("trainer.batch_size=4", "trainer.sequence_length=32", "trainer.eval_every=null", "data.max_documents=8"),
        *("sample.max_new_tokens=3", "wandb.mode=disabled"),
    ],
    "baseline": [
        *("task.epochs=2", "cross_validation.folds=2", "cross_validation.repeats=1", "separation.epochs=2"),
        "wandb.mode=disabled",
    ],
    "sample": ["max_new_tokens=3"],
}
FLOWERS = "task=softmax task.path=flowers.csv task.target=species"
SHORTER = {
    "loss.label_smoothing=0,0.01,0.05,0.1,0.2 seed=0,1,2": "loss.label_smoothing=0,0.1 seed=0",
    "task=binary,softmax task.l2=0,0.01 seed=0,1,2": f"{FLOWERS} task.l2=0,0.01 seed=0",
    "task=softmax task.model=linear": f"{FLOWERS} task.model=linear",
    "checkpoint=RUN": "checkpoint=runs/sotu-nano/TIME",
    "data.max_documents=null data.val_fraction=0.87 data.calibration_fraction=0.05 trainer.max_steps=200": "",
    "data.path=…": "data.path=book.txt",
}
NOT_RUN = {
    r"make [\w-]+": "takes minutes; that its recipe exists is tested",
    r"python benchmarks/\w+\.py.*": "takes minutes; that its options exist is tested",
    r"pytest tests/.*": "is a test",
    r"wandb sweep .*": "needs an account; its file is composed",
    r"\. \.venv/bin/activate": "is made by make",
    r"python scripts/\w+\.py -m experiment=(\w+/)?study_\w+": "takes minutes; tests/config/test_studies.py composes it",
}


def commands() -> list[str]:
    """All commands of the documents, each once, without comments."""
    found = []
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for language, block in FENCED.findall(text):
            lines = block.replace("\\\n", " ").splitlines()
            if language == "sh":
                found += [line for line in lines if not line.startswith("# ")]
            else:
                found += [line[2:] for line in lines if line.startswith("$ ")]
        found += [code for code in INLINE.findall(FENCED.sub("", text)) if code.startswith(PROGRAMS)]
    return list(dict.fromkeys(" ".join(re.sub(r"(\s#.*)$", "", line).split()) for line in found if line.strip()))


COMMANDS = commands()
RUN = [command for command in COMMANDS if not any(re.fullmatch(pattern, command) for pattern in NOT_RUN)]


def call(line: str, *more: str) -> int:
    """Run ``python scripts/NAME.py …`` here, with what makes it short behind it."""
    python, script, *arguments = shlex.split(line)
    assert python == "python"
    assert script.startswith("scripts/"), line
    name = Path(script).stem
    spec = importlib.util.spec_from_file_location(f"script_{name}", ROOT / script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    short = list(TINY.get(name, []))
    if name in ("train", "tokenize") and not re.search(r"tokenizer=|experiment=", line):
        short.append("tokenizer.vocab_size=300")
    if name == "train" and not re.search(r"data=|experiment=", line):
        short.append("data.shifted_from_year=1793")
    arguments = [*arguments, *short, *more]
    return command_line.run(name, module.task, arguments, summarize=getattr(module, "summarize", None))


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a user who has files of their own and has done what the README does first."""
    folder = tmp_path_factory.mktemp("user")
    generator = random.Random(0)

    def text(length: int) -> str:
        return " ".join(generator.choices(WORDS, k=length))

    (folder / "texts" / "inner").mkdir(parents=True)
    for number in range(8):
        (folder / "texts" / "inner" / f"{number}.txt").write_text(text(60))
    for name in ("book.txt", "other.txt", "tinyshakespeare.txt"):
        (folder / name).write_text(text(1500))
    (folder / "documents.jsonl").write_text("".join(f'{{"body": "{text(60)}"}}\n' for _ in range(8)))
    rows = [f"{x:.2f},{generator.random():.2f},{'abc'[int(3 * x)]}" for x in (generator.random() for _ in range(90))]
    (folder / "flowers.csv").write_text("length,width,species\n" + "\n".join(rows) + "\n")
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert call("python scripts/train.py", "trainer.max_steps=30", "hydra.run.dir=runs/sotu-nano/TIME") == 0
        assert call(f"python scripts/baseline.py {FLOWERS}", "hydra.run.dir=runs/softmax-mlp/TIME") == 0
        assert call("python scripts/train.py -m experiment=small loss.label_smoothing=0,0.1") == 0
    finally:
        os.chdir(before)
    return folder


def test_the_commands_are_found() -> None:
    assert "make train" in COMMANDS
    assert "python scripts/train.py" in RUN
    assert "python scripts/train.py data=text data.path=book.txt tokenizer=char" in RUN
    assert "python scripts/baseline.py -m experiment=baseline/study_overfit" in COMMANDS
    for script in SCHEMAS:
        assert any(f"scripts/{script}.py" in command for command in RUN), script
    for pattern in NOT_RUN:
        assert any(re.fullmatch(pattern, command) for command in COMMANDS), f"{pattern}: no document has it any more"


@pytest.mark.parametrize("command", RUN)
def test_a_command_does_its_work_and_prints_something(
    command: str, user: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(user)
    for long, short in SHORTER.items():
        command = command.replace(long, short)
    if command.startswith("echo "):
        command = f"{command} {' '.join(TINY['sample'])}".replace("python scripts", f"{sys.executable} {ROOT}/scripts")
        assert subprocess.run(command, shell=True, env={**os.environ, "PYTHONPATH": str(ROOT)}).returncode == 0
    else:
        assert call(command) == 0
    assert capfd.readouterr().out.strip()


@pytest.mark.parametrize("command", [command for command in COMMANDS if command not in RUN])
def test_a_command_that_is_not_run_names_what_there_is(command: str) -> None:
    program, *arguments = shlex.split(command)
    if program == "make":
        assert subprocess.run(["make", "-n", *arguments], cwd=ROOT, stdout=subprocess.DEVNULL).returncode == 0
    elif arguments[0].startswith("benchmarks/"):
        source = (ROOT / arguments[0]).read_text(encoding="utf-8")
        assert all(f'"{option}"' in source for option in arguments if option.startswith("--"))
    elif program == "pytest":
        assert (ROOT / arguments[0]).exists()
    elif program == "wandb":
        sweep = yaml.safe_load((ROOT / arguments[1]).read_text(encoding="utf-8"))
        values = [f"{name}={value}" for name, entry in sweep["parameters"].items() for value in entry["values"]]
        given = [part for part in sweep["command"] if "=" in part]
        for value in values:
            load(Path(sweep["program"]).stem, [*given, value])
    elif program == "python":
        script, experiment = Path(arguments[0]).stem, arguments[-1].removeprefix("experiment=")
        assert experiment in choices(find_configs(script), "experiment", script)


def test_the_python_of_the_readme_runs() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(500, 4, generator=generator), torch.randn(7, 4, generator=generator).requires_grad_()
    targets = torch.multinomial((hidden @ weight.T).softmax(1), 1, generator=generator)[:, 0]
    names = {"hidden": hidden, "weight": weight, "targets": targets}
    fenced = FENCED.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    blocks = [block for language, block in fenced if language == "python"]
    assert len(blocks) >= 2
    for block in blocks:
        exec(block, names)


@pytest.mark.parametrize("name", ["README.md", "ARCHITECTURE.md"])
def test_the_reading_path_names_files_and_their_lengths(name):
    """A length that is a tenth off, or a sum that does not add up, misleads who plans an evening."""
    text = (ROOT / name).read_text(encoding="utf-8")
    rows = re.findall(r"^\| \d \| \[(\S+)\]\(\1\) \| (\d+) \|", text, re.MULTILINE)
    assert 6 <= len(rows) <= 8
    for path, lines in rows:
        assert int(lines) == pytest.approx(len((ROOT / path).read_text(encoding="utf-8").splitlines()), rel=0.1), path
    assert f"{sum(int(lines) for _, lines in rows):,} lines" in text
