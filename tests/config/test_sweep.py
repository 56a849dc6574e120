import pickle
from pathlib import Path

import pytest

from nanolm.config.sweep import JobError
from nanolm.errors import DataError


@pytest.fixture
def task(recorder):
    """Fails, stops or works as the seed says."""
    return recorder(seed1=RuntimeError("boom"), seed2=DataError("corpus.txt: empty"), seed3=3)


def seeds(task) -> list[int]:
    return [config.seed for config in task.configs]


def study(here: Path, text: str) -> list[str]:
    """The arguments for a study of the user's own."""
    (here / "mine/experiment").mkdir(parents=True)
    (here / "mine/experiment/study.yaml").write_text("# @package _global_\n" + text)
    return ["--config-dir", "mine", "experiment=study"]


def test_each_combination_is_a_job_in_a_directory_without_time(task, here: Path, call) -> None:
    for _ in range(2):  # the same command, the same directories: this is how a sweep continues
        assert call(task, "-m", "seed=5,6", "name=study one", "sample.prompt='a, b',c")[0] == 0
    jobs = [(config.seed, config.sample.prompt) for config in task.configs]
    assert jobs == 2 * [(5, "a, b"), (5, "c"), (6, "a, b"), (6, "c")]
    assert list(map(str, task.directories)) == 2 * [f"sweeps/study one/{number}" for number in range(4)]
    assert task.commands[0].startswith("python scripts/train.py -m seed=5,6 ")
    assert (here / "sweeps/study one/0/train.log").exists()
    assert not list(here.rglob(".hydra"))


def test_a_failed_job_does_not_stop_the_others_and_is_listed(task, call) -> None:
    code, _, printed = call(task, "-m", "seed=0,1,2,4")
    assert (code, seeds(task)) == (1, [0, 1, 2, 4])
    assert printed.count("Traceback") == 1  # of the bug, not of the user's mistake
    summary = printed[printed.index("error: 2 of 4 jobs") :].splitlines()
    assert summary[1:5] == [
        "  sweeps/sotu-nano/1: seed=1",
        "    RuntimeError: boom",
        "  sweeps/sotu-nano/2: seed=2",
        "    corpus.txt: empty",
    ]
    assert summary[-1].endswith("python scripts/train.py -m seed=0,1,2,4")


@pytest.mark.parametrize("sizes", ["32,8", "8,32"])
def test_a_job_whose_values_contradict_each_other_fails_alone(sizes: str, task, call) -> None:
    code, _, printed = call(task, "-m", f"trainer.micro_batch_size={sizes}")
    assert code == 1
    assert [config.trainer.micro_batch_size for config in task.configs] == [8]
    assert "1 of 2 jobs" in printed
    assert "    trainer.micro_batch_size: " in printed
    assert "Traceback" not in printed


def test_a_job_stopped_on_request_stops_the_sweep(task, call) -> None:
    with pytest.raises(SystemExit) as raised:
        call(task, "-m", "seed=0,3,4")
    assert raised.value.code == 3
    assert seeds(task) == [0, 3]


@pytest.mark.parametrize(
    "arguments",
    [
        *(["trainer.max_step=1,2"], ["seed=0,1", "trainer.device=cuuda"], ["model=nano,nanoo"]),
        *(["experiment=null,tinyshakespeare"], ["seed=interval(0,3)"], ["seed=range(3,3)"], ["seed=glob(*)"]),
        *(["seed=0,1", "model.dropout=range(0.2,0.1)"], ["schedule=glob(nothing*)"], ["schedule=glob(*,exclude=*)"]),
        *(["seed=0,(1"], ["hydra.job.chdir=true,false"], ["seed=5,6", "hydra.sweep.dir=file/below"]),
    ],
)
def test_what_is_wrong_with_all_jobs_ends_with_2_before_any(arguments: list[str], task, here: Path, call) -> None:
    (here / "file").write_text("")
    code, _, printed = call(task, "-m", *arguments)
    assert (code, task.configs) == (2, [])
    assert printed.startswith("error: ")
    assert "Traceback" not in printed
    assert "HYDRA_FULL_ERROR" not in printed


@pytest.mark.parametrize(
    ("given", "kinds"),
    [("glob(*)", ["constant", "cosine", "wsd"]), ("glob([c*,w*],exclude=con*)", ["cosine", "wsd"])],
)
def test_a_glob_sweeps_over_the_choices_of_a_group(given: str, kinds: list[str], task, call) -> None:
    assert call(task, "-m", f"schedule={given}")[0] == 0
    assert [config.schedule.name for config in task.configs] == kinds


@pytest.mark.parametrize("mode", ["-m", "hydra.mode=MULTIRUN"])
def test_a_range_and_the_keys_of_one_choice_are_swept_too(mode: str, task, call) -> None:
    assert call(task, mode, "seed=range(5,7)", "optimizer.momentum=0.8,0.9")[0] == 0
    jobs = [(config.seed, config.optimizer.momentum) for config in task.configs]
    assert jobs == [(5, 0.8), (5, 0.9), (6, 0.8), (6, 0.9)]


def test_what_is_swept_can_stand_in_a_file(task, here: Path, call) -> None:
    given = study(here, "hydra:\n  sweeper:\n    params:\n      seed: 5,6\n      sample.prompt: a,b\n")
    assert call(task, "-m", *given)[0] == 0
    jobs = [(config.seed, config.sample.prompt) for config in task.configs]
    assert jobs == [(5, "a"), (5, "b"), (6, "a"), (6, "b")]
    assert call(task, "-m", *given, "seed=7")[0] == 0  # the command line has the last word
    assert [(config.seed, config.sample.prompt) for config in task.configs[4:]] == [(7, "a"), (7, "b")]
    code, _, printed = call(task, *given)
    assert (code, len(task.configs)) == (2, 6)
    assert "-m to run it: python scripts/train.py -m " in printed


def test_a_study_sweeps_over_its_cells(task, here: Path, call) -> None:
    given = study(
        here,
        "trainer: {max_steps: 9}\nmodel: {dropout: 0.1}\n"
        "cells:\n"
        "  none: {}\n"
        "  both: {trainer: {max_steps: 5}, model: {dropout: 0.2}, loss: {distillation: {weight: 0.0}}}\n"
        "hydra: {sweeper: {params: {+cell: 'none,both'}}, sweep: {subdir: '${cell}'}}\n",
    )
    assert call(task, "-m", *given, "hydra.sweep.dir=a")[0] == 0
    assert call(task, "-m", *given, "hydra.sweep.dir=b", "model.dropout=0.3")[0] == 0
    jobs = [(config.trainer.max_steps, config.model.dropout) for config in task.configs]
    assert jobs == [(9, 0.1), (5, 0.2), (9, 0.3), (5, 0.3)]  # the command line has the last word
    assert list(map(str, task.directories)) == ["a/none", "a/both", "b/none", "b/both"]


@pytest.mark.parametrize("params", ["seed: 'five,6'", "+cell: 'none,nothing'", "+cell: nothing"])
def test_what_is_wrong_in_a_file_ends_with_2_before_any_job(params: str, task, here: Path, call) -> None:
    given = study(here, f"cells: {{other: {{}}}}\nhydra: {{sweeper: {{params: {{{params}}}}}}}\n")
    code, _, printed = call(task, "-m", *given)
    assert (code, task.configs) == (2, [])
    assert printed.startswith(f"error: {params.lstrip('+').partition(':')[0]}: expected")


def test_the_sweep_is_summarized_when_all_jobs_have_had_their_turn(task, call) -> None:
    seen: list[tuple[Path, int]] = []

    def summarize(sweep: Path) -> None:
        seen.append((sweep, len(task.configs)))

    assert call(task, "-m", "seed=0,1,4", "name=mine", summarize=summarize)[0] == 1
    assert seen == [(Path("sweeps/mine"), 3)]
    with pytest.raises(SystemExit):
        call(task, "-m", "seed=0,3", summarize=summarize)
    assert len(seen) == 1  # a sweep that was stopped has no end to summarize


def test_a_summary_that_fails_hides_no_failed_job(task, call) -> None:
    def summarize(sweep: Path) -> None:
        raise ValueError("no table")

    code, _, printed = call(task, "-m", "seed=0,2", summarize=summarize)
    assert code == 1
    assert "no table" in printed
    assert "1 of 2 jobs" in printed
    assert call(task, "-m", "seed=0,4", summarize=summarize)[0] == 1


def test_runs_of_a_sweep_are_one_group_at_wandb(recorder, call) -> None:
    task = recorder()
    for arguments in (["-m", "seed=0,1", "name=mine"], ["-m", "seed=0,1", "wandb.group=ours"], ["seed=0"]):
        assert call(task, *arguments)[0] == 0
    assert [config.wandb.group for config in task.configs] == ["mine", "mine", "ours", "ours", None]


def test_a_failure_can_come_from_another_process() -> None:
    assert str(pickle.loads(pickle.dumps(JobError("sweeps/a/0: seed=1")))) == "sweeps/a/0: seed=1"
