"""R20: output that is closed, full, without a reader, or a terminal that went, never costs a run its results.

In a forked child with real descriptors, and with ``sys.stdout`` as Python makes it of them at its start.
"""

import os
import sys

import pytest

from nanolm.training import find_checkpoint
from tests.faults.injection import in_child
from tests.faults.runs import TINY, run, run_script

WAYS = ["full", "closed", "no reader", "terminal"]


def open_way(way):
    """Return a descriptor to write to that fails in this way, or None."""
    if way == "full":
        return os.open("/dev/full", os.O_WRONLY)
    if way == "closed":
        return None
    ours, theirs = os.pipe() if way == "no reader" else os.openpty()
    os.close(ours)
    return theirs


def lose(way, *names):
    """From now on these streams of the process are gone in this way."""
    for name in names:
        number = ["stdin", "stdout", "stderr"].index(name)
        descriptor = open_way(way)
        if descriptor is None:
            os.close(number)
        else:
            os.dup2(descriptor, number)
        stream = None if descriptor is None else open(number, "w", closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def script_without(way, names, script, arguments, code=0):
    """Run a script in a child whose streams are gone, and check its exit code."""

    def action():
        lose(way, *names)
        os._exit(run_script(script, arguments))

    assert in_child(action) == code << 8


@pytest.fixture
def train_arguments(corpus_file, data_root):
    return [*TINY, f"data.path={corpus_file}", f"data.root={data_root}", "trainer.max_steps=3"]


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert run(tiny(), folder) == 0
    return folder


@pytest.mark.parametrize("way", WAYS)
def test_a_run_ends_whole_without_a_display(train_arguments, tmp_path, way):
    names = ["stdin", "stdout", "stderr"] if way == "closed" else ["stdout", "stderr"]
    script_without(way, names, "train", [*train_arguments, f"hydra.run.dir={tmp_path / 'run'}"])
    assert (tmp_path / "run" / "evaluation.json").exists()
    assert find_checkpoint(tmp_path / "run").step == 3
    log = (tmp_path / "run" / "train.log").read_text()
    assert log.count(" is gone (") == 2
    assert "ERROR" not in log
    assert "step 3/3" in log


def test_a_sweep_ends_all_its_jobs_without_a_reader(train_arguments, tmp_path):
    arguments = ["-m", *train_arguments, "seed=0,1", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    script_without("no reader", ["stdout", "stderr"], "train", arguments)
    assert len(list(tmp_path.glob("sweep/*/evaluation.json"))) == 2
    assert (tmp_path / "sweep" / "comparison.csv").exists()


def test_every_other_script_leaves_its_files_without_a_display(trained, corpus_file, tmp_path):
    quick = ["task.epochs=2", "cross_validation.repeats=1", "separation.epochs=null", "wandb.mode=disabled"]
    for script, arguments, result in (
        ("evaluate", [f"checkpoint={trained}", f"out={tmp_path}"], "evaluation-val.json"),
        ("compare", [f"runs={trained.parent}", f"out={tmp_path}"], "comparison.csv"),
        ("tokenize", ["data=jsonl", f"data.path={corpus_file}", "tokenizer=char", f"data.root={tmp_path}"], "jsonl*"),
        ("baseline", [*quick, f"hydra.run.dir={tmp_path / 'baseline'}"], "baseline/evaluation.json"),
        ("first_principles", [f"hydra.run.dir={tmp_path / 'path'}"], "path/first_principles.html"),
    ):
        script_without("full", ["stdout", "stderr"], script, arguments)
        assert list(tmp_path.glob(result)), script


@pytest.mark.parametrize(("way", "code"), [("full", 1), ("closed", 1), ("terminal", 1), ("no reader", 0)])
def test_a_command_whose_output_is_its_result_fails_with_it_unless_the_reader_has_left(trained, way, code, capfd):
    script_without(way, ["stdout"], "sample", [f"checkpoint={trained}", "max_new_tokens=3"], code)
    script_without("no reader", ["stderr"], "sample", [f"checkpoint={trained}", "max_new_tokens=3"])
    script_without(way, ["stdout"], "train", ["--cfg", "job"], code)
    capfd.readouterr()
    script_without(way, ["stdout"], "sample", ["--help"], code)
    assert ("error: standard output" in capfd.readouterr().err) == bool(code)


def test_a_prompt_from_a_closed_standard_input_is_the_users_mistake(trained):
    script_without("closed", ["stdin"], "sample", [f"checkpoint={trained}", "prompt=-"], 2)


def test_a_pipe_that_does_not_wait_is_waited_for(tmp_path):
    """Standard output may share its pipe with a process that has made it non-blocking; it holds 64 KiB."""
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    pid = os.fork()
    if pid == 0:
        os.close(theirs)
        total = 0
        while piece := os.read(ours, 1000):
            total += len(piece)
        os._exit(total == 300_001)
    os.close(ours)

    def write():
        from nanolm.config.streams import displays, require_output

        os.dup2(theirs, 1)
        sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)  # noqa: SIM115
        with displays():
            print("x" * 300_000)
            require_output()

    assert in_child(write) == 0
    os.close(theirs)
    assert os.waitpid(pid, 0)[1] == 1 << 8
