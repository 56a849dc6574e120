"""The scripts as their users call them: in a process of their own, by their output and exit code."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.faults.runs import run_script

ROOT = Path(__file__).parent.parent
TINY = [
    "model.hidden_size=32",
    "model.num_hidden_layers=1",
    "model.num_attention_heads=2",
    "model.num_key_value_heads=2",
    "model.intermediate_size=48",
    "trainer.device=cpu",
    "trainer.max_steps=4",
    "trainer.batch_size=4",
    "trainer.checkpoint_every=2",
    "trainer.sequence_length=16",
    "sample.max_new_tokens=5",
    "wandb.mode=disabled",
]


def start(script, *arguments, cwd, **environment):
    return subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / f"{script}.py"), *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def call(script, *arguments, cwd, **environment):
    process = start(script, *arguments, cwd=cwd, **environment)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


@pytest.fixture(scope="session")
def trained(tmp_path_factory, corpus_file):
    """A folder in which a user has trained a model: its path, the run directory, and what was printed."""
    folder = tmp_path_factory.mktemp("user")
    code, out, err = call(
        "train", "data=jsonl", f"data.path={corpus_file}", "tokenizer=byte", "name=my run (1)", *TINY, cwd=folder
    )
    assert code == 0, err
    return folder, folder / out.splitlines()[-1], out, err


@pytest.mark.parametrize("script", sorted(path.stem for path in (ROOT / "scripts").glob("*.py")))
def test_a_script_of_a_clone_uses_the_code_of_the_clone(script, tmp_path):
    """Another nanolm is installed, which would end everything."""
    site = tmp_path / "site" / "nanolm"
    site.mkdir(parents=True)
    (site / "__init__.py").write_text("raise SystemExit('the nanolm that is installed')")
    for installed in ({"PYTHONPATH": str(site.parent)}, {"PYTHONPATH": str(site.parent), "PYTHONSAFEPATH": "1"}):
        code, out, err = call(script, "--help", cwd=tmp_path, **installed)
        assert code == 0, err
        assert f"scripts/{script}.py" in out


def test_train_prints_a_sample_a_table_and_the_run_directory(trained):
    folder, run_dir, out, err = trained
    assert run_dir.parent == folder / "runs" / "my run (1)"
    assert (run_dir / "samples.txt").read_text() in out
    assert "bits_per_byte" in out
    assert "to continue this run after an interruption: python" in err
    assert f"'hydra.run.dir={run_dir.relative_to(folder)}'" in err
    assert {"config.yaml", "metrics.jsonl", "train.log", "report.html", "evaluation.json"} <= set(os.listdir(run_dir))
    assert "step 4/4" in (run_dir / "train.log").read_text()
    assert not (run_dir / ".hydra").exists()


def test_a_prompt_that_the_vocabulary_lacks_costs_no_run(tmp_path):
    (tmp_path / "text.txt").write_text("some text, again and again. " * 100)
    code, out, err = call("train", "data=text", "data.path=text.txt", "tokenizer=char", *TINY, cwd=tmp_path)
    assert code == 0, err
    assert "sample.prompt: the text: character 'T'" in err
    assert (Path(tmp_path / out.splitlines()[-1]) / "evaluation.json").exists()


def test_evaluate_scores_any_split(trained):
    folder, run_dir, *_ = trained
    code, out, err = call("evaluate", f"checkpoint={run_dir}", "split=test", "evaluate.stride=4", cwd=folder)
    assert code == 0, err
    assert out.splitlines()[-1] == str(run_dir / "evaluation-test.json")
    assert {"evaluation-test.json", "documents-test.npz", "report-test.html"} <= set(os.listdir(run_dir))
    assert json.loads((run_dir / "evaluation-test.json").read_text())["stride"] == 4

    code, _, err = call("evaluate", f"checkpoint={run_dir}", "out=my results, 1", cwd=folder)
    assert code == 0, err
    at_the_end = json.loads((run_dir / "evaluation.json").read_text())
    of_the_run = {"calibration_sizes", "teacher"}  # which a checkpoint knows nothing of
    expected = {name: value for name, value in at_the_end.items() if name not in of_the_run}
    assert json.loads((folder / "my results, 1" / "evaluation-val.json").read_text()) == expected
    with np.load(run_dir / "documents-val.npz") as one, np.load(folder / "my results, 1/documents-val.npz") as other:
        np.testing.assert_array_equal(one["nll_sum"], other["nll_sum"])


def test_evaluate_scores_other_text_in_the_checkpoints_tokens(trained):
    folder, run_dir, *_ = trained
    (folder / "other.txt").write_text("Another text altogether. " * 30)
    code, _, err = call(
        "evaluate", f"checkpoint={run_dir}", "data=text", "data.path=other.txt", "out=other", cwd=folder
    )
    assert code == 0, err
    assert json.loads((folder / "other" / "evaluation-all.json").read_text())["num_bytes"] == 750
    assert "751 of 751 tokens" in err


def test_sample_continues_a_prompt_whatever_it_is(trained):
    folder, run_dir, *_ = trained
    prompt = "What's up? (x=1), yes"
    first, again, other = (
        call("sample", f"checkpoint={run_dir}", f"prompt={prompt}", f"seed={seed}", "max_new_tokens=20", cwd=folder)
        for seed in (1, 1, 2)
    )
    assert first[0] == 0, first[2]
    assert first[1].startswith(prompt)
    assert first[1] == again[1] != other[1]


def test_sample_reads_a_prompt_from_standard_input(trained):
    folder, run_dir, *_ = trained
    process = subprocess.run(
        [sys.executable, str(ROOT / "scripts/sample.py"), f"checkpoint={run_dir}", "prompt=-", "max_new_tokens=3"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        input="two\nlines é".encode(),
        capture_output=True,
    )
    assert process.returncode == 0, process.stderr
    assert process.stdout.decode().startswith("two\nlines é")


def test_first_principles_score_a_sentence_under_a_trained_model(trained):
    folder, run_dir, *_ = trained
    sentence = "our <b>Union</b>"
    code, out, err = call("first_principles", f"checkpoint={run_dir}", f"sentence={sentence}", cwd=folder)
    assert code == 0, err
    assert "UserWarning" not in err
    assert "68 of 68 identities hold" in out
    page = folder / out.splitlines()[-1]
    assert page.parent.parent == folder / "runs" / "first-principles"
    assert {"first_principles.html", "config.yaml", "first_principles.log"} <= set(os.listdir(page.parent))
    text = page.read_text(encoding="utf-8")
    assert "our &lt;b&gt;Union&lt;/b&gt;" in text
    assert "<b>Union" not in text
    assert "after step 4" in text


def test_tokenize_prints_the_folder(tmp_path, corpus_file):
    code, out, err = call("tokenize", "data=jsonl", f"data.path={corpus_file}", "tokenizer=char", cwd=tmp_path)
    assert code == 0, err
    folder = tmp_path / out.strip()
    assert folder.parent == tmp_path / "data"
    assert {"manifest.json", "tokenizer.json"} <= set(os.listdir(folder))


@pytest.mark.parametrize("script", ["train", "tokenize", "evaluate", "sample", "first_principles"])
def test_help_needs_no_torch(script, tmp_path):
    code, out, err = call(script, "--help", cwd=tmp_path, PYTHONPROFILEIMPORTTIME="1")
    assert code == 0
    assert f"scripts/{script}.py" in out
    assert "import time" in err
    assert "torch" not in err


@pytest.mark.parametrize("sweep", [False, True], ids=["run", "sweep"])
def test_a_stopped_run_continues_by_the_command_it_printed(tmp_path, corpus_file, sweep):
    process = start(
        "train",
        *(["-m", "seed=0,1"] if sweep else []),
        "data=jsonl",
        f"data.path={corpus_file}",
        "tokenizer=byte",
        "name=it's (mine)",
        *TINY,
        "trainer.max_steps=100000",
        "trainer.checkpoint_every=null",
        "trainer.log_every=1",
        cwd=tmp_path,
    )
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if line.startswith("step 3/"):
            process.send_signal(signal.SIGTERM)
            break
    _, err = process.communicate(timeout=60)
    assert process.returncode == 3, said
    (message,) = (line for line in err.splitlines() if line.startswith("stopped by SIGTERM after step"))
    (run_dir,) = [path.parent for path in tmp_path.rglob("metrics.jsonl")]
    (checkpoint,) = os.listdir(run_dir / "checkpoints")
    stopped_at = int(checkpoint.removeprefix("step-"))
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == stopped_at

    command = message.partition("to continue from there: ")[2].removeprefix("python ")
    again = subprocess.run(
        f"{sys.executable} {command} trainer.max_steps={stopped_at + 2}",
        shell=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert again.returncode == 0, again.stderr
    assert f"continuing after step {stopped_at}" in again.stderr
    assert len((run_dir / "metrics.jsonl").read_text().splitlines()) == stopped_at + 2


def write_bad_files(folder):
    (folder / "empty.txt").write_bytes(b"")
    (folder / "random.bin").write_bytes(np.random.default_rng(0).bytes(5000))
    (folder / "short.txt").write_text("A short text.")
    (folder / "a file").write_text("not a folder")
    (folder / "text.txt").write_text("Some text, again and again. " * 200)


BAD_INPUT = [
    ("train", ["data=text", "data.path=missing.txt"], ["missing.txt"]),
    ("train", ["data=text"], ["data.path"]),
    ("train", ["data=text", "data.path=empty.txt"], ["empty.txt", "empty"]),
    ("train", ["data=text", "data.path=random.bin"], ["random.bin", "UTF-8"]),
    ("train", ["data=text", "data.path=short.txt", "tokenizer=byte"], ["trainer.sequence_length"]),
    ("train", ["sample.temperature=fitted", "data.calibration_fraction=0"], ["sample.temperature", "calibration"]),
    ("train", ["tokenizer.vocab_size=10"], ["tokenizer.vocab_size", "257", "10"]),
    ("train", ["modle=nano"], ["modle", "model"]),
    ("train", ["model=nanoo"], ["nanoo", "nano"]),
    ("train", ["trainer.max_step=3"], ["trainer.max_step", "trainer.max_steps"]),
    ("train", ["+trainer.foo=3"], ["trainer.foo"]),
    ("train", ["model.num_attention_heads=3"], ["model.num_attention_heads", "256"]),
    ("train", ["loss.label_smoothing=1.5"], ["loss.label_smoothing", "1.5"]),
    ("train", ["hydra.run.dir=a file/run"], ["a file"]),
    ("train", ["data=tinystories"], ["tinystories", "data=text"]),
    ("tokenize", ["data=text", "data.path=nothing-*.txt"], ["nothing-*.txt"]),
    ("evaluate", ["checkpoint=a file"], ["a file"]),
    ("evaluate", [], ["checkpoint"]),
    ("sample", ["checkpoint=."], ["checkpoint"]),
    ("sample", ["checkpoint=no where"], ["no where"]),
    ("first_principles", ["checkpoint=no where"], ["no where"]),
]


@pytest.mark.parametrize(
    ("script", "arguments", "told"),
    BAD_INPUT,
    ids=[" ".join([script, *arguments]) for script, arguments, _ in BAD_INPUT],
)
def test_bad_input_is_one_clear_message(script, arguments, told, tmp_path):
    write_bad_files(tmp_path)
    before = sorted(os.listdir(tmp_path))
    code, out, err = call(script, *arguments, cwd=tmp_path, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path / "hub"))
    assert code == 2, err
    assert out == ""
    assert "Traceback" not in err
    assert [line for line in err.splitlines() if line.startswith("error: ")]
    for word in told:
        assert word in err
    left = [path for path in sorted(os.listdir(tmp_path)) if path not in (*before, "data", "hub")]
    assert left == []


def test_a_split_or_temperature_that_is_not_there(trained):
    folder, run_dir, *_ = trained
    code, _, err = call("evaluate", f"checkpoint={run_dir}", "split=shifted", cwd=folder)
    assert code == 2
    assert "split=shifted" in err
    assert "val" in err
    first = run_dir / "checkpoints" / "step-00000002"
    code, _, err = call("sample", f"checkpoint={first}", "temperature=fitted", cwd=folder)
    assert code == 2
    assert "temperature=fitted" in err
    assert "Finish the run" in err
    code, _, err = call("evaluate", f"checkpoint={run_dir}", "evaluate.stride=17", cwd=folder)
    assert code == 2
    assert "evaluate.stride" in err


def test_a_folder_that_cannot_be_written_is_found_before_the_work(trained, monkeypatch, capfd):
    """The kernel's own refusal: /proc takes no file from anybody."""
    folder, run_dir, *_ = trained

    def score(*_):
        raise AssertionError("nothing may be scored before")

    monkeypatch.chdir(folder)  # where the run has its corpus
    monkeypatch.setattr("nanolm.inference.evaluate", score)
    for script, arguments in (("evaluate", [f"checkpoint={run_dir}"]), ("compare", [f"runs={run_dir}"])):
        assert run_script(script, [*arguments, "out=/proc/self/fd"]) == 2
        told = capfd.readouterr()
        assert "/proc/self/fd" in told.err
        assert "out=PATH" in told.err
        assert told.out == ""


def test_a_disk_that_fails_at_the_end_of_an_evaluation_does_not_take_its_numbers(trained, monkeypatch, capfd):
    folder, run_dir, *_ = trained

    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.chdir(folder)
    monkeypatch.setattr("nanolm.inference.write_atomically", fail)
    assert run_script("evaluate", [f"checkpoint={run_dir}", "out=failed"]) == 1
    shown = capfd.readouterr()
    assert "bits_per_byte" in shown.out
    assert "Input/output error" in shown.err


def test_results_are_never_written_into_a_checkpoint(trained):
    folder, run_dir, *_ = trained
    checkpoint = run_dir / "checkpoints" / "step-00000004"
    code, _, err = call("evaluate", f"checkpoint={checkpoint}", f"out={checkpoint / 'results'}", cwd=folder)
    assert code == 2
    assert "never written into a checkpoint" in err
