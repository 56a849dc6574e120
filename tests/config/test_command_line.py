import errno
import logging
import math
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from nanolm.config.catalog import description, find_configs
from nanolm.config.keys import leaves
from nanolm.config.schema import SCHEMAS, TrainConfig, has_run_directory
from nanolm.errors import DataError, NonFiniteError

CONFIGS = find_configs("train")
SCRIPT = """
import sys
from nanolm.config import command_line

def task(config, directory, command):
    print(config.seed, config.sample.prompt)
    print(directory)

if __name__ == "__main__":
    sys.exit(command_line.run("train", task))
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A script of a clone: beside its folder is configs/."""
    path = tmp_path / "clone" / "scripts" / "train.py"
    path.parent.mkdir(parents=True)
    path.write_text(SCRIPT)
    configs = tmp_path / "clone" / "configs"
    shutil.copytree(CONFIGS, configs)
    default = (configs / "train.yaml").read_text()
    (configs / "train.yaml").write_text(default.replace("\nseed: 0\n", "\nseed: 11\n"))
    return path


ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
ENVIRONMENT["PYTHONPATH"] = str(CONFIGS.parent)


def start(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# Runs and their directories


def test_a_run_gets_its_configuration_its_directory_and_the_command_that_continues_it(here, recorder, call) -> None:
    task = recorder()
    assert call(task, "seed=4", "sample.prompt=a, b", "hydra.run.dir=runs/my run")[0] == 0
    assert isinstance(task.configs[0], TrainConfig)
    assert task.configs[0].seed == 4
    assert task.directories == [Path("runs/my run")]
    assert task.commands == ["python scripts/train.py seed=4 'sample.prompt=a, b' 'hydra.run.dir=runs/my run'"]
    assert files(here) == ["runs", "runs/my run", "runs/my run/train.log"]


def test_a_directory_is_new_unless_it_is_given(here, recorder, call) -> None:
    task = recorder()
    for arguments in ([], [], ["hydra.run.dir=a"], ["hydra.run.dir=a"]):  # two runs begin in the same second
        assert call(task, *arguments)[0] == 0
    assert len(set(task.directories)) == 3
    assert files(here / "a") == ["train.log"]
    assert len((here / "a/train.log").read_text().splitlines()) == 2


@pytest.mark.parametrize("name", [name for name, schema in SCHEMAS.items() if not has_run_directory(schema)])
def test_other_scripts_get_their_configuration_and_leave_nothing(name: str, here, recorder, call) -> None:
    task = recorder()
    given = {"tokenize": [], "compare": [f"runs={here}"]}.get(name, [f"checkpoint={here}"])
    assert call(task, *given, script=name)[0] == 0
    assert [type(config) for config in task.configs] == [SCHEMAS[name]]
    assert files(here) == []


def test_a_mistake_found_by_the_task_leaves_no_new_empty_directory(here, recorder, call) -> None:
    assert call(recorder(DataError("empty")), "hydra.run.dir=a/b/c")[0] == 2
    assert files(here) == []
    (here / "a").mkdir()
    assert call(recorder(DataError("empty")), "hydra.run.dir=a/b")[0] == 2
    assert files(here) == ["a"]


def test_a_mistake_found_by_the_task_takes_nothing_away(here: Path, call) -> None:
    def task(config: object, directory: Path, command: str) -> int:
        (directory / "metrics.jsonl").write_text("{}")
        raise DataError("shard damaged")

    assert call(task, "hydra.run.dir=a")[0] == 2
    assert files(here) == ["a", "a/metrics.jsonl", "a/train.log"]
    assert "ERROR" in (here / "a" / "train.log").read_text()


# Endings


@pytest.mark.parametrize(
    ("result", "code", "word"),
    [
        (None, 0, ""),
        (0, 0, ""),
        (3, 3, ""),
        (DataError("corpus.txt: empty"), 2, "corpus.txt: empty"),
        (NonFiniteError("NaN at step 3"), 1, "NaN at step 3"),
        (KeyboardInterrupt(), 1, "python scripts/train.py hydra.run.dir=a"),
    ],
)
def test_exit_codes(result: Any, code: int, word: str, recorder, call) -> None:
    ended, _, printed = call(recorder(result), "hydra.run.dir=a")
    assert ended == code
    assert printed.startswith("error: ") if word else printed == ""
    assert printed.endswith(f"{word}\n" if word else "")
    assert printed.count("\n") == bool(word)


@pytest.mark.parametrize("arguments", [["seed=1", "name=a b"], ["-m", "seed=1,2", "name=a b"]])
def test_ctrl_c_outside_of_training_names_the_command_that_continues(arguments: list[str], recorder, call) -> None:
    task, again = recorder(KeyboardInterrupt()), recorder()
    code, _, printed = call(task, *arguments)
    assert code == 1
    (command,) = task.commands
    assert printed.endswith(f"{command}\n")
    assert call(again, *shlex.split(command)[2:])[0] == 0
    assert again.directories[0] == task.directories[0]


def test_a_bug_shows_its_traceback_and_the_log_keeps_it(here, recorder, call) -> None:
    code, _, printed = call(recorder(RuntimeError("boom")), "hydra.run.dir=a")
    assert code == 1
    assert "RuntimeError: boom" in printed
    assert "RuntimeError: boom" in (here / "a" / "train.log").read_text()


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EMFILE, errno.ENOSPC, errno.ENODEV, errno.ESTALE])
def test_an_error_of_the_system_is_reported_by_its_cause(number: int, here, recorder, call) -> None:
    code, _, printed = call(recorder(OSError(number, os.strerror(number), "some/file")), "hydra.run.dir=a")
    assert code == 1
    (line,) = printed.splitlines()
    assert line.startswith(f"error: some/file: {os.strerror(number)}")
    assert "Traceback" in (here / "a" / "train.log").read_text()


@pytest.mark.parametrize("arguments", [["hydra.run.dir=a"], ["-m", "seed=1,2"]], ids=["run", "sweep"])
@pytest.mark.parametrize(
    "error",
    [
        MemoryError("Unable to allocate 745. GiB for an array"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.\nC++ frames"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
    ],
    ids=["numpy", "python", "torch", "cuda", "cublas"],
)
def test_no_memory_is_reported_with_the_keys_that_take_it(
    error: Exception, arguments: list[str], recorder, call
) -> None:
    code, _, printed = call(recorder(error), *arguments)
    assert code == 1
    assert "Traceback" not in printed
    for part in ("out of memory", "trainer.micro_batch_size", "trainer.sequence_length", str(error).split("\n")[0]):
        assert part in printed


def test_a_working_directory_that_was_deleted_is_reported(here, recorder, call) -> None:
    (here / "gone").mkdir()
    os.chdir(here / "gone")
    (here / "gone").rmdir()
    for arguments in ([], ["-m", "seed=1,2"], ["--help"]):
        code, _, printed = call(recorder(), *arguments)
        assert code == 2
        assert "working directory" in printed


@pytest.mark.parametrize(
    "arguments",
    [
        *(["trainer.max_step=3"], ["--unknown"], ["--config-name=other"], ["--experimental-rerun=a.pickle"]),
        *(["--config-dir=/nowhere"], ["--cfg", "job", "--info"], ["--cfg", "other"], ["--resolve"]),
        *(["--cfg", "job", "--package", "nowhere"], ["--package", "trainer"], ["-m", "--cfg", "job"]),
        *(["hydra.run.dir=file/below"], ["hydra.run.dir=file"], ["hydra.run.dir="], ["hydra.run.dir=~/runs"]),
        *(["data.root=~/data"], [f"hydra.run.dir={'a' * 300}"]),
    ],
)
def test_mistakes_end_with_2_one_message_and_no_file(arguments: list[str], here, recorder, call) -> None:
    (here / "file").write_text("")
    task = recorder(DataError("the task has begun"))
    code, out, printed = call(task, *arguments)
    assert (code, out, task.configs, files(here)) == (2, "", [], ["file"])
    assert "Traceback" not in printed
    assert "HYDRA_FULL_ERROR" not in printed
    assert printed.strip()


# Hydra's flags


def test_hydras_flags_show_what_they_should_in_any_order(here, recorder, call) -> None:
    for arguments, words in [
        (["seed=7", "--cfg", "job", "sample.prompt=a, (b"], ["seed: 7", "prompt: a, (b"]),
        (["--cfg=job", "--package=trainer", "trainer.max_steps=9"], ["max_steps: 9"]),
        (["--info", "searchpath"], ["configs"]),
        (["-c", "hydra"], ["sweeper"]),
    ]:
        code, out, _ = call(recorder(), *arguments)
        assert code == 0
        assert all(word in out for word in words)
    assert files(here) == []


@pytest.mark.parametrize("full_error", [None, "0"])
def test_hydra_leaves_nothing_behind_in_this_process(
    full_error: str | None, recorder, call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    if full_error is not None:
        monkeypatch.setenv("HYDRA_FULL_ERROR", full_error)
    root = logging.getLogger()
    before = (list(sys.argv), list(root.handlers), root.level)
    for arguments in (["--info", "searchpath"], ["-m", "seed=5,6"]):
        assert call(recorder(), *arguments)[0] == 0
    assert (sys.argv, root.handlers, root.level) == before
    assert os.environ.get("HYDRA_FULL_ERROR") == full_error


# As a process


def test_a_script_works_from_any_folder(script: Path, here: Path) -> None:
    done = start(script, "sample.prompt=What's up? (x=1), yes", "hydra.run.dir=my run")
    assert (done.returncode, done.stdout, done.stderr) == (0, "11 What's up? (x=1), yes\nmy run\n", "")
    assert files(here) == ["my run", "my run/train.log"]


def test_output_that_nobody_reads_to_the_end_is_no_traceback(script: Path, here: Path) -> None:
    """The reader takes one line and goes, at the worst moment: after the last word, before Python ends."""
    waits = SCRIPT.replace("sys.exit(command_line.run", "code = (command_line.run")
    script.write_text(
        waits + "    print('said', file=sys.stderr, flush=True)\n    sys.stdin.readline()\n    sys.exit(code)\n"
    )
    command = [sys.executable, str(script), "--help"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=ENVIRONMENT, text=True, **pipes) as process:
        assert process.stderr.readline() == "said\n"
        process.stdout.close()
        process.stdin.write("\n")
        process.stdin.close()
        assert process.stderr.read() == ""
    assert process.returncode in (0, 1)


# Help


def test_help_is_quick_because_it_needs_neither_torch_nor_hydra(script: Path) -> None:
    check = SCRIPT.replace('sys.exit(command_line.run("train", task))', 'command_line.run("train", task)')
    script.write_text(check + "    print([name for name in ('torch', 'hydra', 'omegaconf') if name in sys.modules])\n")
    done = start(script, "data=nonsense", "-h")
    assert done.returncode == 0
    assert done.stdout.endswith("[]\n")


@pytest.mark.parametrize("name", SCHEMAS)
def test_help_has_every_key_and_every_choice_in_100_columns(name: str, call) -> None:
    _, text, _ = call(print, "--help", script=name)
    for key, item in leaves(SCHEMAS[name]).items():
        assert f"  {key} = " in text
        assert item.meaning[:20] in text
    for word in ("EXAMPLES", "EXIT CODES", "SWEEPS", f"python scripts/{name}.py"):
        assert word in text
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_examples_of_the_help_work(name: str, here, recorder, call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for path in ("book.txt", "other.txt", "texts/a/b.txt", "dumps/a.jsonl", "flowers.csv"):
        (here / path).parent.mkdir(parents=True, exist_ok=True)
        (here / path).write_text("text")
    for path in ("RUN", "runs/sotu-nano/2026-01-31_12-00-00"):
        (here / path).mkdir(parents=True)
    examples = [line for line in description(CONFIGS / f"{name}.yaml") if line.startswith("python ")]
    assert len(examples) >= 2
    for example in examples:
        task = recorder()
        program, *given = shlex.split(example.replace("< prompt.txt", ""))[1:]
        assert program == f"scripts/{name}.py"
        assert call(task, *given, script=name)[0] == 0, example
        num_jobs = math.prod(argument.count(",") + 1 for argument in given if "=" in argument)
        if "study" in example:  # what is swept stands in its file: five weights and three seeds for each task
            num_jobs = 25 if name == "train" else 30
        assert len(task.configs) == (num_jobs if "-m" in given else 1)
