"""The scripts as their users call them, by their output and exit code."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.faults.runs import ROOT, TINY, evaluation, metrics, run_script


def start(script, *arguments, cwd, stdin=subprocess.DEVNULL, **environment):
    return subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / f"{script}.py"), *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def call(script, *arguments, cwd, stdin=None, **environment):
    process = start(script, *arguments, cwd=cwd, stdin=subprocess.PIPE, **environment)
    out, err = process.communicate(stdin, timeout=120)
    return process.returncode, out, err


@pytest.fixture(scope="session")
def trained(tmp_path_factory, corpus_file):
    """A folder in which a user has trained a model: its path, the run directory, and what was printed."""
    folder = tmp_path_factory.mktemp("user")
    code, out, err = call("train", *TINY, f"data.path={corpus_file}", "name=my run (1)", cwd=folder)
    assert code == 0, err
    return folder, folder / out.splitlines()[-1], out, err


@pytest.mark.parametrize("script", sorted(path.stem for path in (ROOT / "scripts").glob("*.py")))
def test_a_script_of_a_clone_uses_the_code_of_the_clone_and_helps_without_torch(script, tmp_path):
    """Another nanolm is installed, which would end everything."""
    site = tmp_path / "site" / "nanolm"
    site.mkdir(parents=True)
    (site / "__init__.py").write_text("raise SystemExit('the nanolm that is installed')")
    for safe in ({}, {"PYTHONSAFEPATH": "1"}):
        environment = {"PYTHONPATH": str(site.parent), "PYTHONPROFILEIMPORTTIME": "1", **safe}
        code, out, err = call(script, "--help", cwd=tmp_path, **environment)
        assert code == 0, err
        assert f"scripts/{script}.py" in out
        assert "import time" in err
        assert "torch" not in err


def test_train_prints_a_sample_a_table_and_the_run_directory(trained):
    folder, run_dir, out, err = trained
    assert run_dir.parent == folder / "runs" / "my run (1)"
    assert (run_dir / "samples.txt").read_text() in out
    assert "bits_per_byte" in out
    assert f"'hydra.run.dir={run_dir.relative_to(folder)}'" in err
    assert {"config.yaml", "metrics.jsonl", "train.log", "report.html", "evaluation.json"} <= set(os.listdir(run_dir))
    assert "step 6/6" in (run_dir / "train.log").read_text()
    assert not (run_dir / ".hydra").exists()


def test_a_prompt_that_the_vocabulary_lacks_costs_no_run(tmp_path):
    (tmp_path / "text.txt").write_text("some text, again and again. " * 100)
    given = ["data=text", "data.path=text.txt", "tokenizer=char", "sample.prompt=The"]
    code, out, err = call("train", *TINY, *given, cwd=tmp_path)
    assert code == 0, err
    assert "sample.prompt" in err
    assert (Path(tmp_path / out.splitlines()[-1]) / "evaluation.json").exists()


def test_evaluate_scores_any_split(trained):
    folder, run_dir, *_ = trained
    code, out, err = call("evaluate", f"checkpoint={run_dir}", "split=test", "evaluate.stride=4", cwd=folder)
    assert code == 0, err
    assert out.splitlines()[-1] == str(run_dir / "evaluation-test.json")
    assert {"evaluation-test.json", "documents-test.npz", "report-test.html"} <= set(os.listdir(run_dir))
    assert evaluation(run_dir, "test")["stride"] == 4

    code, _, err = call("evaluate", f"checkpoint={run_dir}", "out=my results, 1", cwd=folder)
    assert code == 0, err
    of_the_run = {"calibration_sizes", "teacher"}  # which a checkpoint knows nothing of
    expected = {name: value for name, value in evaluation(run_dir).items() if name not in of_the_run}
    found = evaluation(folder / "my results, 1", "val")
    assert {name: value for name, value in found.items() if name not in of_the_run} == expected
    with np.load(run_dir / "documents-val.npz") as one, np.load(folder / "my results, 1/documents-val.npz") as other:
        np.testing.assert_array_equal(one["nll_sum"], other["nll_sum"])


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
    prompt = "two\nlines é"
    code, out, err = call("sample", f"checkpoint={run_dir}", "prompt=-", "max_new_tokens=3", cwd=folder, stdin=prompt)
    assert code == 0, err
    assert out.startswith(prompt)


def test_first_principles_score_a_sentence_under_a_trained_model(trained):
    folder, run_dir, *_ = trained
    sentence = "our <b>Union</b>"
    code, out, err = call("first_principles", f"checkpoint={run_dir}", f"sentence={sentence}", cwd=folder)
    assert code == 0, err
    assert "UserWarning" not in err
    page = folder / out.splitlines()[-1]
    assert page.parent.parent == folder / "runs" / "first-principles"
    assert {"first_principles.html", "config.yaml", "first_principles.log"} <= set(os.listdir(page.parent))
    text = page.read_text(encoding="utf-8")
    assert "our &lt;b&gt;Union&lt;/b&gt;" in text
    assert "<b>Union" not in text


def test_tokenize_prints_the_folder(tmp_path, corpus_file):
    code, out, err = call("tokenize", "data=jsonl", f"data.path={corpus_file}", "tokenizer=char", cwd=tmp_path)
    assert code == 0, err
    folder = tmp_path / out.strip()
    assert folder.parent == tmp_path / "data"
    assert {"manifest.json", "tokenizer.json"} <= set(os.listdir(folder))


@pytest.mark.parametrize("sweep", [[], ["-m", "seed=0,1"]], ids=["run", "sweep"])
def test_a_stopped_run_continues_by_the_command_it_printed(tmp_path, corpus_file, sweep):
    endless = ["trainer.max_steps=100000", "trainer.checkpoint_every=null", "trainer.log_every=1"]
    given = [*TINY, f"data.path={corpus_file}", "name=it's (mine)", *endless]
    process = start("train", *sweep, *given, cwd=tmp_path)
    for line in process.stderr:
        if line.startswith("step 3/"):
            process.send_signal(signal.SIGTERM)
            break
    _, err = process.communicate(timeout=60)
    assert process.returncode == 3, err
    (message,) = (line for line in err.splitlines() if "SIGTERM" in line)
    (run_dir,) = [path.parent for path in tmp_path.rglob("metrics.jsonl")]
    (checkpoint,) = os.listdir(run_dir / "checkpoints")
    stopped_at = int(checkpoint.removeprefix("step-"))
    assert len(metrics(run_dir)) == stopped_at

    command = message[message.index("scripts/train.py") :]
    again = subprocess.run(
        f"{sys.executable} {ROOT}/{command} trainer.max_steps={stopped_at + 2}",
        shell=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert again.returncode == 0, again.stderr
    assert len(metrics(run_dir)) == stopped_at + 2


BAD_INPUT = [
    ("train", ["data=text", "data.path=missing.txt"], ["missing.txt"]),
    ("train", ["data=text"], ["data.path"]),
    ("train", ["data=text", "data.path=empty.txt"], ["empty.txt"]),
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
    ("tokenize", ["data=text", "data.path=nothing-*.txt"], ["nothing-*.txt"]),
    ("evaluate", ["checkpoint=a file"], ["a file"]),
    ("evaluate", [], ["checkpoint"]),
    ("sample", ["checkpoint=."], ["checkpoint"]),
    ("sample", ["checkpoint=no where"], ["no where"]),
    ("first_principles", ["checkpoint=no where"], ["no where"]),
]


@pytest.fixture
def bad_files(tmp_path):
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "random.bin").write_bytes(np.random.default_rng(0).bytes(5000))
    (tmp_path / "short.txt").write_text("A short text.")
    (tmp_path / "a file").write_text("not a folder")
    return tmp_path


@pytest.mark.parametrize(
    ("script", "arguments", "words"), BAD_INPUT, ids=[" ".join([script, *given]) for script, given, _ in BAD_INPUT]
)
def test_bad_input_is_one_clear_message(script, arguments, words, bad_files, monkeypatch, capfd):
    monkeypatch.chdir(bad_files)
    before = {*os.listdir(bad_files), "data"}
    assert run_script(script, arguments) == 2
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "Traceback" not in shown.err
    assert len([line for line in shown.err.splitlines() if line.startswith("error: ")]) == 1
    assert all(word in shown.err for word in words)
    assert set(os.listdir(bad_files)) <= before


def test_a_corpus_that_must_be_downloaded_names_others_without_a_network(tmp_path):
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    code, out, err = call("train", "data=tinystories", cwd=tmp_path, **environment)
    assert (code, out) == (2, "")
    assert "tinystories" in err
    assert "data=text" in err


def test_what_a_checkpoint_does_not_have_is_refused(trained, monkeypatch, capfd):
    folder, run_dir, *_ = trained
    middle, last = (run_dir / "checkpoints" / f"step-{step:08d}" for step in (4, 6))
    monkeypatch.chdir(folder)
    for script, arguments, word in (
        ("evaluate", [f"checkpoint={run_dir}", "split=shifted"], "split=shifted"),
        ("evaluate", [f"checkpoint={run_dir}", "evaluate.stride=17"], "evaluate.stride"),
        ("evaluate", [f"checkpoint={last}", f"out={last / 'results'}"], str(last / "results")),
        ("sample", [f"checkpoint={middle}", "temperature=fitted"], "temperature=fitted"),
    ):
        assert run_script(script, arguments) == 2
        assert word in capfd.readouterr().err
    assert not (last / "results").exists()


def test_a_folder_that_cannot_be_written_is_found_before_the_work(trained, monkeypatch, capfd):
    """The kernel's own refusal: /proc takes no file from anybody."""
    folder, run_dir, *_ = trained
    monkeypatch.chdir(folder)  # where the run has its corpus
    monkeypatch.setattr("nanolm.inference.Scorer", lambda *_: pytest.fail("nothing may be scored before"))
    for script, arguments in (("evaluate", [f"checkpoint={run_dir}"]), ("compare", [f"runs={run_dir}"])):
        assert run_script(script, [*arguments, "out=/proc/self/fd"]) == 2
        shown = capfd.readouterr()
        assert "/proc/self/fd" in shown.err
        assert "out=" in shown.err
        assert shown.out == ""


def test_a_disk_that_fails_at_the_end_of_an_evaluation_does_not_take_its_numbers(trained, monkeypatch, capfd):
    folder, run_dir, *_ = trained

    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.chdir(folder)
    monkeypatch.setattr("nanolm.inference.publish", fail)
    assert run_script("evaluate", [f"checkpoint={run_dir}", "out=failed"]) == 1
    shown = capfd.readouterr()
    assert "bits_per_byte" in shown.out
    assert os.strerror(errno.EIO) in shown.err
