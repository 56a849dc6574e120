"""R7 to R10, R16, R18: a run goes on as if it had never stopped, or says field by field why it cannot."""

import json
import os
import shutil
import signal

import pytest
import torch

from nanolm.errors import CheckpointError, ConfigError
from nanolm.files import file_table
from nanolm.training import find_checkpoint
from nanolm.training.checkpoint import manifest_checksum
from nanolm.training.loop import TrainingLoop
from tests.faults.injection import in_child
from tests.faults.runs import metrics, outcome, run, stop_after


def test_three_resumes_in_one_epoch(tiny, straight, tmp_path, monkeypatch):
    """An epoch of 56 batches; the run has 6."""
    config = tiny("trainer.eval_every=2", "trainer.checkpoint_every=null")
    for step in (1, 2, 4):
        stop_after(monkeypatch, config, tmp_path / "stopped", step)
    assert run(config, tmp_path / "stopped") == 0
    assert outcome(tmp_path / "stopped") == straight(config)


def test_a_stop_at_the_boundary_of_an_epoch_and_beside_it(tiny, straight, tmp_path, monkeypatch):
    """Epochs end inside a batch: one after 7.06 batches of 32 windows, the next after 14.1."""
    config = tiny("trainer.batch_size=32", "trainer.max_steps=15", "trainer.checkpoint_every=null")
    for step in (7, 8, 14):
        stop_after(monkeypatch, config, tmp_path / "stopped", step)
    assert run(config, tmp_path / "stopped") == 0
    assert outcome(tmp_path / "stopped") == straight(config)


def test_a_finished_run_is_an_explained_no_op(tiny, tmp_path, capsys):
    run(tiny(), tmp_path / "run")
    files = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file() and p.name != ".lock"}
    capsys.readouterr()
    assert run(tiny(), tmp_path / "run") == 0
    assert "this run is finished (6 steps, evaluation.json is there), so there is nothing to do" in (
        capsys.readouterr().err
    )
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file() and p.name != ".lock"} == files


@pytest.mark.parametrize(
    "options",
    [
        ["tokenizer=char", "optimizer=adamw"],
        ["tokenizer=bpe", "tokenizer.vocab_size=270", "optimizer=muon", "model.tie_word_embeddings=false"],
        ["tokenizer=byte", "optimizer=muon", "schedule=cosine", "loss.z_loss=1e-4", "loss.label_smoothing=0.1"],
    ],
    ids=["char adamw", "bpe muon untied", "byte muon cosine"],
)
def test_dropout_and_accumulation_go_on_to_the_bit(tiny, straight, tmp_path, monkeypatch, options):
    config = tiny("model.dropout=0.2", "trainer.micro_batch_size=3", "trainer.checkpoint_every=null", *options)
    for step in (2, 5):
        stop_after(monkeypatch, config, tmp_path / "stopped", step)
    assert run(config, tmp_path / "stopped") == 0
    assert outcome(tmp_path / "stopped") == straight(config)


@pytest.fixture(scope="module")
def stopped_once(tmp_path_factory):
    return tmp_path_factory.mktemp("stopped") / "run"


@pytest.fixture
def stopped(stopped_once, tiny, tmp_path, monkeypatch):
    """A run of 6 steps, stopped after 2: a copy for each test."""
    if not stopped_once.exists():
        stop_after(monkeypatch, tiny(), stopped_once, 2)
    return shutil.copytree(stopped_once, tmp_path / "run")


def reseal(path, change):
    """Change the training state as someone might by hand, with its sha256 put right."""
    state = torch.load(path / "training_state.pt", weights_only=True)
    change(state)
    torch.save(state, path / "training_state.pt")
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["training_state.pt"] = file_table(path)["training_state.pt"]
    manifest["checksum"] = manifest_checksum(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


def first_moments(state, optimizer="muon"):
    return state["optimizers"][optimizer]["state"][0]


MISSING = [
    (lambda state: state.pop("step"), "not a training state: missing step, unknown nothing"),
    (lambda state: state.pop("trailing"), "missing trailing"),
    (
        lambda state: state["trailing"].update(steps=torch.zeros(1, 3, 4)),
        r"trailing: expected \(steps, 3, 15\) of int64",
    ),
    (lambda state: state.update(extra=1), "missing nothing, unknown extra"),
    (lambda state: state["optimizers"].pop("adamw"), r"holds \['muon'\], expected \['adamw', 'muon'\]"),
    (lambda state: state["optimizers"]["muon"].pop("state"), "muon: expected state and param_groups"),
    (lambda state: state["optimizers"]["muon"]["state"].pop(3), "muon: momentum_buffer of parameter 3, of shape"),
    (lambda state: state["optimizers"]["adamw"]["state"].clear(), "adamw: exp_avg of parameter 0, of shape"),
    (lambda state: first_moments(state, "adamw").pop("exp_avg_sq"), "exp_avg_sq of parameter 0, of shape"),
    (lambda state: first_moments(state, "adamw").pop("step"), "adamw: step of parameter 0"),
    (lambda state: first_moments(state).update(momentum_buffer=torch.zeros(2, 2)), r"shape \[2, 2\] there"),
    (
        lambda state: state["optimizers"]["adamw"]["param_groups"][0].update(weight_decay=0.5),
        "weight_decay of group 0: 0.5 there",
    ),
    (lambda state: state["optimizers"]["adamw"]["param_groups"].pop(), r"groups of \[1\] parameters there"),
]


@pytest.mark.parametrize(("change", "said"), MISSING, ids=[str(number) for number in range(len(MISSING))])
def test_an_incomplete_training_state_is_refused_by_name(stopped, tiny, change, said):
    reseal(find_checkpoint(stopped).path, change)
    before = metrics(stopped)
    with pytest.raises(CheckpointError, match=rf"training_state\.pt: [\s\S]*{said}[\s\S]*Nothing was changed"):
        run(tiny(), stopped)
    assert metrics(stopped) == before


def test_what_is_put_back_as_it_was_is_accepted(stopped, tiny):
    """So that the test before fails for what it changes."""
    reseal(find_checkpoint(stopped).path, lambda state: None)
    assert run(tiny(), stopped) == 0


REFUSED = [
    ("model.hidden_size=64", r"model\.hidden_size: 32 there, 64 now"),
    ("model.dropout=0.1", r"model\.dropout: 0\.0 there, 0\.1 now"),
    ("optimizer=adamw", r"optimizer\.name: muon there, adamw now"),
    ("tokenizer=char", r"tokenizer\.name: byte there, char now"),
    ("seed=1", "seed: 0 there, 1 now"),
    ("trainer.micro_batch_size=2", r"trainer\.micro_batch_size: null there, 2 now"),
    ("trainer.batch_size=8", r"trainer\.batch_size: 4 there, 8 now"),
    ("trainer.eval_every=2", r"trainer\.eval_every: null there, 2 now"),
    ("data.val_fraction=0.2", r"data\.val_fraction: 0\.1 there, 0\.2 now"),
]


@pytest.mark.parametrize("without", ["nothing", "config.yaml"])
@pytest.mark.parametrize(("override", "said"), REFUSED, ids=[override for override, _ in REFUSED])
def test_another_run_is_refused_with_the_difference(stopped, tiny, override, said, without):
    """Also where the run's own config.yaml is lost: the checkpoint has one."""
    if without == "config.yaml":
        (stopped / "config.yaml").unlink()
    kind = ConfigError if without == "nothing" else CheckpointError
    with pytest.raises(kind, match=rf"  {said}") as caught:
        run(tiny(override), stopped)
    assert "another hydra.run.dir for a new run" in str(caught.value)
    assert find_checkpoint(stopped).step == 2


def test_without_its_config_yaml_the_same_run_goes_on(stopped, tiny, straight, tmp_path):
    (stopped / "config.yaml").unlink()
    assert run(tiny(), stopped) == 0
    assert outcome(stopped) == straight(tiny())


def test_a_checkpoint_that_a_killed_save_had_set_aside_is_put_back(stopped, tiny, straight, capsys):
    """The moment between the two renames that replace a checkpoint of the same step, when it is the only one."""
    folder = stopped / "checkpoints"
    os.rename(folder / "step-00000002", folder / ".step-00000002.0123abcd.old")
    (folder / ".step-00000002.4567cdef.tmp").mkdir()
    assert run(tiny(), stopped) == 0
    assert "continuing after step 2" in capsys.readouterr().err
    assert outcome(stopped) == straight(tiny())
    assert not [name for name in os.listdir(folder) if name.startswith(".")]


def test_a_damaged_config_yaml_is_named(stopped, tiny):
    (stopped / "config.yaml").write_bytes(b"seed: [\xff")
    with pytest.raises(ConfigError, match=r"run/config\.yaml: expected the configuration of this run"):
        run(tiny(), stopped)


def test_what_does_not_matter_may_change(stopped, tiny, straight, tmp_path, corpus_file):
    """Logging, paths, kept and published checkpoints, more steps: the outcome is that of the run left alone."""
    elsewhere = tmp_path / "moved" / corpus_file.name
    elsewhere.parent.mkdir()
    shutil.copy(corpus_file, elsewhere)
    options = ["schedule=constant", "trainer.max_steps=8"]
    shutil.rmtree(stopped)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, tiny("schedule=constant"), stopped, 2)
    changed = tiny(
        *options,
        "name=other",
        "trainer.log_every=1",
        "trainer.checkpoint_every=1",
        "trainer.keep_checkpoints=1",
        "wandb.project=other",
        "sample.max_new_tokens=2",
        f"data.path={elsewhere}",
        f"data.root={tmp_path / 'prepared'}",
    )
    assert run(changed, stopped) == 0
    assert outcome(stopped) == straight(tiny(*options))


def test_another_text_of_the_same_size_is_refused(tiny, tmp_path, corpus_file, monkeypatch):
    path = tmp_path / "documents.jsonl"
    shutil.copy(corpus_file, path)
    config = tiny(f"data.path={path}")
    stop_after(monkeypatch, config, tmp_path / "run", 2)
    path.write_bytes(path.read_bytes().replace(b"peace", b"lunch"))
    with pytest.raises(CheckpointError, match=r"corpus: fingerprint [0-9a-f]{12} there, [0-9a-f]{12} now"):
        run(config, tmp_path / "run")
    assert find_checkpoint(tmp_path / "run").step == 2


def test_another_tokenizer_of_the_same_size_is_refused(tiny, tmp_path, corpus_file, monkeypatch):
    """The same characters in number, not in kind: ids mean something else."""
    path = tmp_path / "documents.jsonl"
    shutil.copy(corpus_file, path)
    config = tiny(f"data.path={path}", "tokenizer=char", "sample.prompt=")
    stop_after(monkeypatch, config, tmp_path / "run", 2)
    path.write_bytes(path.read_bytes().replace(b"g", b"q"))
    with pytest.raises(CheckpointError, match=r"tokenizer: char of \d+ ids there, char of \d+ now, with sha256"):
        run(config, tmp_path / "run")


def test_a_second_run_in_the_same_directory_is_refused_and_names_the_first(tiny, straight, tmp_path, monkeypatch):
    """The second starts in a child while the first is in its third step."""
    config, run_dir, owner = tiny(), tmp_path / "run", os.getpid()
    original, refused = TrainingLoop.step, []

    def second():
        with pytest.raises(ConfigError, match=rf"run: another process is training here \(process {owner} on"):
            run(config, run_dir)

    def step(self):
        if self.state.step == 2:
            before = {p: p.read_bytes() for p in run_dir.rglob("*") if p.is_file()}
            refused.append(in_child(second))
            assert {p: p.read_bytes() for p in run_dir.rglob("*") if p.is_file()} == before
        return original(self)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "step", step)
        assert run(config, run_dir) == 0
    assert refused == [0]
    assert outcome(run_dir) == straight(config)


def test_the_lock_of_a_killed_run_is_no_obstacle(tiny, straight, tmp_path):
    config, run_dir = tiny(), tmp_path / "run"
    original = TrainingLoop.step

    def killed():
        def step(self):
            if self.state.step == 3:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(self)

        TrainingLoop.step = step
        run(config, run_dir)

    assert os.WTERMSIG(in_child(killed)) == signal.SIGKILL
    assert (run_dir / ".lock").exists()
    assert run(config, run_dir) == 0
    assert outcome(run_dir) == straight(config)


@pytest.mark.parametrize(
    "tail",
    [
        b'{"step": 3, "tok',
        b'{"step": 3, "tokens": 1}\n{"step": 4, "tokens": 2}\n',
        b'{"step": 3}\n{"st',
        b"\0\0\n",
    ],
    ids=["half a line", "whole lines", "both", "noughts"],
)
def test_metrics_behind_the_checkpoint_are_written_again_one_line_a_step(stopped, tiny, straight, tmp_path, tail):
    with open(stopped / "metrics.jsonl", "ab") as file:
        file.write(tail)
    assert run(tiny(), stopped) == 0
    assert [line["step"] for line in metrics(stopped)] == [1, 2, 3, 4, 5, 6]
    assert outcome(stopped) == straight(tiny())
