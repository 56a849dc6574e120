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

from nanolm.config import command_line
from nanolm.config.catalog import SCRIPTS, find_configs
from nanolm.config.help import WIDTH, page
from nanolm.config.schema import TrainConfig, leaves
from nanolm.errors import DataError, NonFiniteError

SCRIPT = """
import sys
from nanolm.config import command_line

def task(config, directory, command):
    if config.seed == 1:
        raise RuntimeError("boom")
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
    shutil.copytree(find_configs("train"), configs)
    default = (configs / "train.yaml").read_text()
    (configs / "train.yaml").write_text(default.replace("\nseed: 0\n", "\nseed: 11\n"))
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


class Recorder:
    """A task that remembers its calls and does what it is told."""

    def __init__(self, result: int | BaseException | None = None) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.result = result

    def __call__(self, *arguments: Any) -> int | None:
        self.calls.append(arguments)
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result


def start(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(script), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(find_configs("train").parent)},
    )


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_run_gets_its_configuration_its_directory_and_the_command_that_continues_it(here: Path) -> None:
    task = Recorder()
    assert command_line.run("train", task, ["seed=4", "sample.prompt=a, b", "hydra.run.dir=runs/my run"]) == 0
    ((config, directory, command),) = task.calls
    assert isinstance(config, TrainConfig)
    assert config.seed == 4
    assert directory == Path("runs/my run")
    assert command == "python scripts/train.py seed=4 'sample.prompt=a, b' 'hydra.run.dir=runs/my run'"
    assert files(here) == ["runs", "runs/my run", "runs/my run/train.log"]


def test_two_runs_in_one_second_have_two_directories(here: Path) -> None:
    task = Recorder()
    for _ in range(3):
        assert command_line.run("train", task, []) == 0
    assert len({directory for _, directory, _ in task.calls}) == 3


def test_the_same_directory_is_used_again_when_it_is_given(here: Path) -> None:
    task = Recorder()
    for _ in range(2):
        assert command_line.run("train", task, ["hydra.run.dir=a"]) == 0
    assert files(here) == ["a", "a/train.log"]
    assert len((here / "a" / "train.log").read_text().splitlines()) == 2


@pytest.mark.parametrize("name", [name for name, script in SCRIPTS.items() if not script.has_run_directory])
def test_other_scripts_get_their_configuration_and_leave_nothing(name: str, here: Path) -> None:
    task = Recorder()
    given = {"tokenize": [], "compare": [f"runs={here}"]}.get(name, [f"checkpoint={here}"])
    assert command_line.run(name, task, given) == 0
    ((config,),) = task.calls
    assert type(config) is SCRIPTS[name].schema
    assert files(here) == []


@pytest.mark.parametrize(
    ("result", "code", "told"),
    [
        (None, 0, ""),
        (0, 0, ""),
        (3, 3, ""),
        (DataError("corpus.txt: empty"), 2, "error: corpus.txt: empty\n"),
        (NonFiniteError("NaN at step 3"), 1, "error: NaN at step 3\n"),
        (KeyboardInterrupt(), 1, "error: interrupted; to continue: python scripts/train.py hydra.run.dir=a\n"),
    ],
)
def test_exit_codes(result: Any, code: int, told: str, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert command_line.run("train", Recorder(result), ["hydra.run.dir=a"]) == code
    assert capfd.readouterr().err == told


@pytest.mark.parametrize("arguments", [["seed=1", "name=a b"], ["-m", "seed=1,2", "name=a b"]])
def test_ctrl_c_outside_of_training_names_the_command_that_continues(
    arguments: list[str], here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    task = Recorder(KeyboardInterrupt())
    assert command_line.run("train", task, arguments) == 1
    ((_, directory, command),) = task.calls
    printed = capfd.readouterr().err.strip()
    assert printed == f"error: interrupted; to continue: {command}"
    assert command.startswith("python scripts/train.py ")
    again = Recorder()
    assert command_line.run("train", again, shlex.split(command)[2:]) == 0
    assert again.calls[0][1] == directory


def test_a_bug_shows_its_traceback_and_the_log_keeps_it(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert command_line.run("train", Recorder(RuntimeError("boom")), ["hydra.run.dir=a"]) == 1
    assert "RuntimeError: boom" in capfd.readouterr().err
    assert "RuntimeError: boom" in (here / "a" / "train.log").read_text()


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EMFILE, errno.ENOSPC, errno.ENODEV, errno.ESTALE])
def test_an_error_of_the_system_is_told_by_its_cause(
    number: int, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    error = OSError(number, os.strerror(number), "some/file")
    assert command_line.run("train", Recorder(error), ["hydra.run.dir=a"]) == 1
    told = capfd.readouterr().err
    assert told.startswith(f"error: some/file: {os.strerror(number)}")
    assert len(told.splitlines()) == 1
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
def test_no_memory_is_told_with_the_keys_that_take_it(
    error: Exception, arguments: list[str], here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert command_line.run("train", Recorder(error), arguments) == 1
    told = capfd.readouterr().err
    assert "Traceback" not in told
    for part in ("out of memory", "trainer.micro_batch_size", "trainer.sequence_length", str(error).split("\n")[0]):
        assert part in told


def test_a_working_directory_that_was_deleted_is_told(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (here / "gone").mkdir()
    os.chdir(here / "gone")
    (here / "gone").rmdir()
    for arguments in ([], ["-m", "seed=1,2"], ["--help"]):
        assert command_line.run("train", Recorder(), arguments) == 2
        assert "the working directory was deleted" in capfd.readouterr().err


def test_an_exit_passes_through(here: Path) -> None:
    with pytest.raises(SystemExit) as raised:
        command_line.run("train", Recorder(SystemExit(3)), ["hydra.run.dir=a"])
    assert raised.value.code == 3


def test_a_mistake_found_by_the_task_leaves_no_new_empty_directory(here: Path) -> None:
    assert command_line.run("train", Recorder(DataError("empty")), ["hydra.run.dir=a/b/c"]) == 2
    assert files(here) == []
    (here / "a").mkdir()
    assert command_line.run("train", Recorder(DataError("empty")), ["hydra.run.dir=a/b"]) == 2
    assert files(here) == ["a"]


def test_a_mistake_found_by_the_task_takes_nothing_away(here: Path) -> None:
    def task(config: object, directory: Path, command: str) -> int:
        (directory / "metrics.jsonl").write_text("{}")
        raise DataError("shard damaged")

    assert command_line.run("train", task, ["hydra.run.dir=a"]) == 2
    assert files(here) == ["a", "a/metrics.jsonl", "a/train.log"]
    assert "ERROR" in (here / "a" / "train.log").read_text()


@pytest.mark.parametrize(
    "arguments",
    [
        ["trainer.max_step=3"],
        ["trainer.device=cuuda"],
        ["model.num_attention_heads=3"],
        ["data=text", "data.path=/nowhere"],
        ["--unknown"],
        ["--config-name=other"],
        ["--experimental-rerun=a.pickle"],
        ["--config-dir=/nowhere"],
        ["--cfg", "job", "--info"],
        ["--cfg", "other"],
        ["--cfg", "job", "--package", "nowhere"],
        ["--cfg", "job", "trainer.max_step=3"],
        ["--resolve"],
        ["--package", "trainer"],
        ["-m", "--cfg", "job"],
        ["hydra.run.dir=file/below"],
        ["hydra.run.dir=file"],
        ["hydra.run.dir="],
        ["hydra.run.dir=~/runs"],
        ["data.root=~/data"],
        [f"hydra.run.dir={'a' * 300}"],
    ],
)
def test_mistakes_end_with_2_one_message_and_no_file(
    arguments: list[str], here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (here / "file").write_text("")
    task = Recorder(DataError("the task has begun"))
    assert command_line.run("train", task, arguments) == 2
    told = capfd.readouterr()
    assert task.calls == []
    assert files(here) == ["file"]
    assert "Traceback" not in told.err
    assert "HYDRA_FULL_ERROR" not in told.err
    assert told.err.strip()
    assert told.out == ""


def test_hydras_flags_show_what_they_should_in_any_order(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert command_line.run("train", Recorder(), ["seed=7", "--cfg", "job", "sample.prompt=a, (b"]) == 0
    out = capfd.readouterr().out
    assert "seed: 7" in out
    assert "prompt: a, (b" in out
    assert command_line.run("train", Recorder(), ["--cfg=job", "--package=trainer", "trainer.max_steps=9"]) == 0
    assert "max_steps: 9" in capfd.readouterr().out
    assert command_line.run("train", Recorder(), ["--info", "searchpath"]) == 0
    assert "configs" in capfd.readouterr().out
    assert files(here) == []


@pytest.mark.parametrize("full_error", [None, "0"])
def test_hydra_leaves_nothing_behind_in_this_process(
    full_error: str | None, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    if full_error is not None:
        monkeypatch.setenv("HYDRA_FULL_ERROR", full_error)
    root = logging.getLogger()
    before = (list(sys.argv), list(root.handlers), root.level)
    assert command_line.run("train", Recorder(), ["--info", "searchpath"]) == 0
    assert command_line.run("train", Recorder(), ["-m", "seed=5,6"]) == 0
    assert (sys.argv, root.handlers, root.level) == before
    assert os.environ.get("HYDRA_FULL_ERROR") == full_error


def test_choices_of_ones_own(here: Path) -> None:
    (here / "mine" / "experiment").mkdir(parents=True)
    (here / "mine" / "experiment" / "quick.yaml").write_text("# @package _global_\ntrainer: {max_steps: 5}\n")
    task = Recorder()
    assert command_line.run("train", task, ["--config-dir", "mine", "experiment=quick"]) == 0
    assert task.calls[0][0].trainer.max_steps == 5


def test_a_script_works_from_any_folder(script: Path, here: Path) -> None:
    done = start(script, "sample.prompt=What's up? (x=1), yes", "hydra.run.dir=my run")
    assert (done.returncode, done.stdout, done.stderr) == (0, "11 What's up? (x=1), yes\nmy run\n", "")
    assert files(here) == ["my run", "my run/train.log"]


def test_a_mistake_is_told_in_one_line(script: Path, here: Path) -> None:
    done = start(script, "trainer.max_step=3")
    assert done.returncode == 2
    assert done.stderr == "error: trainer.max_step: scripts/train.py has no such key; did you mean trainer.max_steps?\n"
    assert done.stdout == ""


def test_output_that_nobody_reads_to_the_end_is_no_traceback(script: Path, here: Path) -> None:
    """The reader takes one line and goes, at the worst moment: after the last word, before Python ends."""
    waits = SCRIPT.replace("sys.exit(command_line.run", "code = (command_line.run")
    script.write_text(
        waits + "    print('said', file=sys.stderr, flush=True)\n    sys.stdin.readline()\n    sys.exit(code)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(find_configs("train").parent)}
    environment.pop("PYTHONUNBUFFERED", None)
    command = [sys.executable, str(script), "--help"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, text=True, **pipes) as process:
        assert process.stderr.readline() == "said\n"
        process.stdout.close()
        process.stdin.write("\n")
        process.stdin.close()
        assert process.stderr.read() == ""
    assert process.returncode in (0, 1)


def test_help_is_quick_because_it_needs_neither_torch_nor_hydra(script: Path) -> None:
    check = f"{SCRIPT}\n".replace('sys.exit(command_line.run("train", task))', 'command_line.run("train", task)')
    script.write_text(check + "    print([name for name in ('torch', 'hydra', 'omegaconf') if name in sys.modules])\n")
    done = start(script, "data=nonsense", "-h")
    assert done.returncode == 0
    assert done.stdout.endswith("[]\n")


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_tells_every_key_and_every_choice_in_100_columns(name: str) -> None:
    text = page(SCRIPTS[name], find_configs(name))
    for key, item in leaves(SCRIPTS[name].schema):
        assert f"  {key} = " in text
        assert " ".join(item.metadata["meaning"].split())[:20] in text
    for word in ("EXAMPLES", "EXIT CODES", "SWEEPS", f"python scripts/{name}.py"):
        assert word in text
    assert max(map(len, text.splitlines())) <= WIDTH


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_examples_of_the_help_work(name: str, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for path in ("book.txt", "other.txt", "texts/a/b.txt", "dumps/a.jsonl", "flowers.csv"):
        (here / path).parent.mkdir(parents=True, exist_ok=True)
        (here / path).write_text("text")
    for path in ("RUN", "runs/sotu-nano/2026-01-31_12-00-00"):
        (here / path).mkdir(parents=True)
    for arguments, _ in SCRIPTS[name].examples:
        task = Recorder()
        typed = ["bash", "-c", f"printf '%s\\0' {arguments.replace('< prompt.txt', '')}"]
        given = subprocess.run(typed, capture_output=True, text=True).stdout.split("\0")[:-1]
        assert command_line.run(name, task, [argument for argument in given if argument]) == 0, arguments
        num_jobs = math.prod(argument.count(",") + 1 for argument in given if "=" in argument)
        if "study" in arguments:  # what is swept stands in its file: five weights and three seeds for each task
            num_jobs = 25 if name == "train" else 30
        assert len(task.calls) == (num_jobs if "-m" in given else 1)
