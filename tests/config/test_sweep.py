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


def test_a_range_is_a_sweep_too(task: Task) -> None:
    assert command_line.run("train", task, ["-m", "seed=range(5,8)"]) == 0
    assert [seed for seed, *_ in task.calls] == [5, 6, 7]


def test_a_failure_can_come_from_another_process() -> None:
    assert str(pickle.loads(pickle.dumps(JobError("sweeps/a/0: seed=1")))) == "sweeps/a/0: seed=1"
