import pickle
from pathlib import Path
from typing import Any

import pytest

from nanolm.config import command_line
from nanolm.config.sweep import JobError
from nanolm.errors import DataError


class Task:
    """Fails, stops or works as the seed says."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, str, Path, str]] = []

    def __call__(self, config: Any, directory: Path, command: str) -> int | None:
        self.calls.append((config.seed, config.sample.prompt, directory, command))
        if config.seed == 1:
            raise RuntimeError("boom")
        if config.seed == 2:
            raise DataError("corpus.txt: empty")
        return 3 if config.seed == 3 else None


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Task:
    monkeypatch.chdir(tmp_path)
    return Task()


def test_each_combination_is_a_job_in_a_directory_without_time(task: Task, tmp_path: Path) -> None:
    arguments = ["-m", "seed=5,6", "name=study one", "sample.prompt='a, b',c"]
    for _ in range(2):  # the same command, the same directories: this is how a sweep continues
        assert command_line.run("train", task, arguments) == 0
    jobs = [(seed, prompt, str(directory)) for seed, prompt, directory, _ in task.calls]
    expected = [(5, "a, b"), (5, "c"), (6, "a, b"), (6, "c")]
    assert jobs[:4] == [(*values, f"sweeps/study one/{number}") for number, values in enumerate(expected)]
    assert jobs[4:] == jobs[:4]
    assert task.calls[0][3].startswith("python scripts/train.py -m seed=5,6 ")
    assert (tmp_path / "sweeps/study one/0/train.log").exists()
    assert not list(tmp_path.rglob(".hydra"))


def test_a_failed_job_does_not_stop_the_others_and_is_listed(task: Task, capfd: pytest.CaptureFixture[str]) -> None:
    assert command_line.run("train", task, ["-m", "seed=0,1,2,4"]) == 1
    assert [seed for seed, *_ in task.calls] == [0, 1, 2, 4]
    told = capfd.readouterr().err
    assert told.endswith(
        "error: 2 of 4 jobs failed:\n"
        "  sweeps/sotu-nano/1: seed=1\n    RuntimeError: boom\n"
        "  sweeps/sotu-nano/2: seed=2\n    corpus.txt: empty\n"
        "error: to run what is left, finished jobs stay as they are: python scripts/train.py -m seed=0,1,2,4\n"
    )
    assert told.count("Traceback") == 1  # of the bug, not of the user's mistake


def test_a_job_whose_values_contradict_each_other_fails_alone(task: Task, capfd: pytest.CaptureFixture[str]) -> None:
    assert command_line.run("train", task, ["-m", "tokenizer.vocab_size=257,256"]) == 1
    assert len(task.calls) == 1
    told = capfd.readouterr().err
    assert "1 of 2 jobs failed" in told
    assert "expected at least 257" in told
    assert "Traceback" not in told


def test_a_job_stopped_on_request_stops_the_sweep(task: Task) -> None:
    with pytest.raises(SystemExit) as raised:
        command_line.run("train", task, ["-m", "seed=0,3,4"])
    assert raised.value.code == 3
    assert [seed for seed, *_ in task.calls] == [0, 3]


@pytest.mark.parametrize(
    "arguments",
    [
        ["-m", "trainer.max_step=1,2"],
        ["-m", "seed=0,1", "trainer.device=cuuda"],
        ["-m", "model=nano,nanoo"],
        ["-m", "experiment=null,tinyshakespeare"],
        ["-m", "seed=interval(0,3)"],
        ["-m", "seed=range(3,3)"],
        ["-m", "seed=0,1", "model.dropout=range(0.2,0.1)"],
        ["-m", "schedule=glob(nothing*)"],
        ["-m", "schedule=glob(*,exclude=*)"],
        ["-m", "seed=glob(*)"],
        ["-m", "seed=0,(1"],
        ["-m", "hydra.job.chdir=true,false"],
        ["-m", "seed=5,6", "hydra.sweep.dir=file/below"],
        ["seed=5,6", "hydra.mode=MULTIRUN", "hydra.sweeper.nothing=1"],
    ],
)
def test_what_is_wrong_with_all_jobs_ends_with_2_before_any(
    arguments: list[str], task: Task, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert command_line.run("train", task, arguments) == 2
    assert task.calls == []
    told = capfd.readouterr().err
    assert told.startswith("error: ")
    assert "Traceback" not in told
    assert "HYDRA_FULL_ERROR" not in told


@pytest.mark.parametrize(
    ("given", "kinds"),
    [("glob(*)", ["constant", "cosine", "wsd"]), ("glob([c*,w*],exclude=con*)", ["cosine", "wsd"])],
)
def test_a_glob_sweeps_over_the_choices_of_a_group(task: Task, monkeypatch, given: str, kinds: list[str]) -> None:
    seen = []
    monkeypatch.setattr(type(task), "__call__", lambda self, config, *_: seen.append(config.schedule.name))
    assert command_line.run("train", task, ["-m", f"schedule={given}"]) == 0
    assert seen == kinds


def test_what_is_swept_can_stand_in_a_file(task: Task, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine/experiment").mkdir(parents=True)
    study = "# @package _global_\nhydra:\n  sweeper:\n    params:\n      seed: 5,6\n      sample.prompt: a,b\n"
    (tmp_path / "mine/experiment/study.yaml").write_text(study)
    given = ["--config-dir", "mine", "experiment=study"]
    assert command_line.run("train", task, ["-m", *given]) == 0
    assert [(seed, prompt) for seed, prompt, *_ in task.calls] == [(5, "a"), (5, "b"), (6, "a"), (6, "b")]
    assert command_line.run("train", task, ["-m", *given, "seed=7"]) == 0  # the command line has the last word
    assert [(seed, prompt) for seed, prompt, *_ in task.calls[4:]] == [(7, "a"), (7, "b")]
    assert command_line.run("train", task, given) == 2
    assert len(task.calls) == 6
    assert "add -m to run it: python scripts/train.py -m " in capfd.readouterr().err


def test_what_is_wrong_in_a_file_ends_with_2_before_any_job(
    task: Task, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine/experiment").mkdir(parents=True)
    study = "# @package _global_\nhydra:\n  sweeper:\n    params:\n      seed: five,6\n"
    (tmp_path / "mine/experiment/study.yaml").write_text(study)
    assert command_line.run("train", task, ["-m", "--config-dir", "mine", "experiment=study"]) == 2
    assert task.calls == []
    assert "seed: expected a whole number" in capfd.readouterr().err


def test_the_sweep_is_summarized_when_all_jobs_have_had_their_turn(task: Task) -> None:
    seen: list[tuple[Path, int]] = []

    def summarize(sweep: Path) -> None:
        seen.append((sweep, len(task.calls)))

    assert command_line.run("train", task, ["-m", "seed=0,1,4", "name=mine"], summarize=summarize) == 1
    assert seen == [(Path("sweeps/mine"), 3)]
    with pytest.raises(SystemExit):
        command_line.run("train", task, ["-m", "seed=0,3"], summarize=summarize)
    assert len(seen) == 1  # a sweep that was stopped has no end to tell of


def test_a_summary_that_fails_hides_no_failed_job(task: Task, capfd: pytest.CaptureFixture[str]) -> None:
    def summarize(sweep: Path) -> None:
        raise ValueError("no table")

    assert command_line.run("train", task, ["-m", "seed=0,2"], summarize=summarize) == 1
    told = capfd.readouterr().err
    assert "no table" in told
    assert "1 of 2 jobs failed" in told
    assert command_line.run("train", task, ["-m", "seed=0,4"], summarize=summarize) == 1


def test_runs_of_a_sweep_are_one_group_at_wandb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    groups: list[str | None] = []

    def task(config: Any, directory: Path, command: str) -> None:
        groups.append(config.wandb.group)

    assert command_line.run("train", task, ["-m", "seed=0,1", "name=mine"]) == 0
    assert command_line.run("train", task, ["-m", "seed=0,1", "wandb.group=ours"]) == 0
    assert command_line.run("train", task, ["seed=0"]) == 0
    assert groups == ["mine", "mine", "ours", "ours", None]


def test_a_range_is_a_sweep_too(task: Task) -> None:
    assert command_line.run("train", task, ["-m", "seed=range(5,8)"]) == 0
    assert [seed for seed, *_ in task.calls] == [5, 6, 7]


def test_a_failure_can_come_from_another_process() -> None:
    assert str(pickle.loads(pickle.dumps(JobError("sweeps/a/0: seed=1")))) == "sweeps/a/0: seed=1"
