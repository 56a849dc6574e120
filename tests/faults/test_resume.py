"""R7 to R10, R16, R18: a run goes on as if it had never stopped, or names every difference that keeps it from it."""

import os
import shutil
import signal

import pytest
import torch

from nanolm.errors import CheckpointError, ConfigError, DataError
from nanolm.training import find_checkpoint
from tests.faults.injection import in_child
from tests.faults.runs import each_step, metrics, outcome, run, stop_after
from tests.faults.untrusted import resign


def files_of(run_dir):
    return {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}


def test_three_resumes_in_one_epoch(tiny, straight, tmp_path):
    """An epoch of 56 batches; the run has 6."""
    config = tiny("trainer.eval_every=2", "trainer.checkpoint_every=null")
    for step in (1, 2, 4):
        stop_after(config, tmp_path / "run", step)
    assert run(config, tmp_path / "run") == 0
    assert outcome(tmp_path / "run") == straight(config)


def test_a_stop_at_the_boundary_of_an_epoch_and_next_to_it(tiny, straight, tmp_path):
    """Epochs end inside a batch: one after 7.06 batches of 32 windows, the next after 14.1."""
    config = tiny("trainer.batch_size=32", "trainer.max_steps=15", "trainer.checkpoint_every=null")
    for step in (7, 8, 14):
        stop_after(config, tmp_path / "run", step)
    assert run(config, tmp_path / "run") == 0
    assert outcome(tmp_path / "run") == straight(config)


def test_a_finished_run_is_an_explained_no_op(finished, tiny, capsys):
    def state():
        return {path: path.stat().st_mtime_ns for path in files_of(finished) if path.name != ".lock"}

    before = files_of(finished).keys(), state()
    assert run(tiny("trainer.max_steps=4"), finished) == 0
    assert "trainer.max_steps" in capsys.readouterr().err
    assert (files_of(finished).keys(), state()) == before


@pytest.mark.parametrize(
    "options",
    [
        ["tokenizer=char", "optimizer=adamw"],
        ["tokenizer=bpe", "tokenizer.vocab_size=270", "optimizer=muon", "model.tie_word_embeddings=false"],
        ["tokenizer=byte", "optimizer=muon", "schedule=cosine", "loss.z_loss=1e-4", "loss.label_smoothing=0.1"],
    ],
    ids=["char adamw", "bpe muon untied", "byte muon cosine"],
)
def test_dropout_and_accumulation_go_on_to_the_bit(tiny, straight, tmp_path, options):
    config = tiny("model.dropout=0.2", "trainer.micro_batch_size=3", "trainer.checkpoint_every=null", *options)
    for step in (2, 5):
        stop_after(config, tmp_path / "run", step)
    assert run(config, tmp_path / "run") == 0
    assert outcome(tmp_path / "run") == straight(config)


def first_moments(state, optimizer="muon"):
    return state["optimizers"][optimizer]["state"][0]


CHANGES = {
    "step missing": (lambda state: state.pop("step"), "step"),
    "trailing missing": (lambda state: state.pop("trailing"), "trailing"),
    "trailing of another shape": (lambda state: state["trailing"].update(steps=torch.zeros(1, 3, 4)), "trailing"),
    "another part": (lambda state: state.update(extra=1), "extra"),
    "an optimizer missing": (lambda state: state["optimizers"].pop("adamw"), "adamw"),
    "its state missing": (lambda state: state["optimizers"]["muon"].pop("state"), "muon: .*state"),
    "a parameter missing": (lambda state: state["optimizers"]["muon"]["state"].pop(3), "momentum_buffer .* 3"),
    "all moments missing": (lambda state: state["optimizers"]["adamw"]["state"].clear(), "exp_avg .* 0"),
    "a moment missing": (lambda state: first_moments(state, "adamw").pop("exp_avg_sq"), "exp_avg_sq .* 0"),
    "a moment's step missing": (lambda state: first_moments(state, "adamw").pop("step"), "step .* 0"),
    "a moment's shape": (lambda state: first_moments(state).update(momentum_buffer=torch.zeros(2, 2)), r"\[2, 2\]"),
    "a group's setting": (
        lambda state: state["optimizers"]["adamw"]["param_groups"][0].update(weight_decay=0.5),
        "weight_decay .*0.5",
    ),
    "a group missing": (lambda state: state["optimizers"]["adamw"]["param_groups"].pop(), "adamw"),
    "nothing": (lambda state: None, None),  # so that the others fail for what they change
}


@pytest.mark.parametrize("name", CHANGES)
def test_an_incomplete_training_state_is_refused_by_name(stopped, tiny, name):
    """The state is changed as someone might by hand, with its sha256 put right."""
    change, part = CHANGES[name]
    path = find_checkpoint(stopped).path
    state = torch.load(path / "training_state.pt", weights_only=True)
    change(state)
    torch.save(state, path / "training_state.pt")
    resign(path)
    if part is None:
        assert run(tiny(), stopped) == 0
        return
    before = metrics(stopped)
    with pytest.raises(CheckpointError, match=rf"training_state\.pt: [\s\S]*{part}"):
        run(tiny(), stopped)
    assert metrics(stopped) == before


REFUSED = {
    "model.hidden_size=64": r"model\.hidden_size: 32 .*64",
    "model.dropout=0.1": r"model\.dropout: 0\.0 .*0\.1",
    "optimizer=adamw": r"optimizer\.name: muon .*adamw",
    "tokenizer=char": r"tokenizer\.name: byte .*char",
    "seed=1": "seed: 0 .*1",
    "trainer.micro_batch_size=2": r"trainer\.micro_batch_size: null .*2",
    "trainer.batch_size=8": r"trainer\.batch_size: 4 .*8",
    "trainer.eval_every=2": r"trainer\.eval_every: null .*2",
    "data.val_fraction=0.2": r"data\.val_fraction: 0\.1 .*0\.2",
}


@pytest.mark.parametrize("without", ["nothing", "config.yaml"])
@pytest.mark.parametrize("override", REFUSED)
def test_another_run_is_refused_with_the_difference(stopped, tiny, override, without):
    """Also if the run's own config.yaml is lost: the checkpoint has one."""
    if without == "config.yaml":
        (stopped / "config.yaml").unlink()
    kind = ConfigError if without == "nothing" else CheckpointError
    with pytest.raises(kind, match=REFUSED[override]):
        run(tiny(override), stopped)
    assert find_checkpoint(stopped).step == 2


def test_without_its_config_yaml_the_same_run_goes_on(stopped, tiny, straight):
    (stopped / "config.yaml").unlink()
    assert run(tiny(), stopped) == 0
    assert outcome(stopped) == straight(tiny())


def test_metrics_that_belong_to_no_run_are_never_cut(stopped, tiny):
    """Whatever the first refusal has written, the second start must refuse them too."""
    shutil.rmtree(stopped / "checkpoints")
    (stopped / "config.yaml").unlink()
    before = metrics(stopped)
    for _ in range(2):
        with pytest.raises(DataError, match=r"metrics\.jsonl"):
            run(tiny(), stopped)
    assert metrics(stopped) == before


def test_a_checkpoint_that_a_killed_save_had_set_aside_is_put_back(stopped, tiny, straight, capsys):
    """The moment between the two renames that replace a checkpoint of the same step, when it is the only one."""
    folder = stopped / "checkpoints"
    os.rename(folder / "step-00000002", folder / ".step-00000002.0123abcd.old")
    (folder / ".step-00000002.4567cdef.tmp").mkdir()
    assert run(tiny(), stopped) == 0
    assert "step 2" in capsys.readouterr().err
    assert outcome(stopped) == straight(tiny())
    assert not [name for name in os.listdir(folder) if name.startswith(".")]


def test_a_damaged_config_yaml_is_named(stopped, tiny):
    (stopped / "config.yaml").write_bytes(b"seed: [\xff")
    with pytest.raises(ConfigError, match=r"stopped/config\.yaml"):
        run(tiny(), stopped)


def test_what_does_not_matter_may_change(tiny, straight, tmp_path, corpus_file):
    """Logging, paths, kept and published checkpoints, more steps: the outcome is that of the run left alone."""
    elsewhere = tmp_path / "moved" / corpus_file.name
    elsewhere.parent.mkdir()
    shutil.copy(corpus_file, elsewhere)
    stop_after(tiny("schedule=constant"), tmp_path / "run", 2)
    longer = ["schedule=constant", "trainer.max_steps=8"]
    changed = tiny(
        *longer,
        "name=other",
        "trainer.log_every=1",
        "trainer.checkpoint_every=1",
        "trainer.keep_checkpoints=1",
        "wandb.project=other",
        "sample.max_new_tokens=2",
        f"data.path={elsewhere}",
        f"data.root={tmp_path / 'prepared'}",
    )
    assert run(changed, tmp_path / "run") == 0
    assert outcome(tmp_path / "run") == straight(tiny(*longer))


@pytest.mark.parametrize(
    ("options", "character", "other", "part"),
    [([], b"peace", b"lunch", "corpus: "), (["tokenizer=char", "sample.prompt="], b"g", b"q", "tokenizer: char")],
    ids=["text", "tokenizer"],
)
def test_another_text_or_tokenizer_of_the_same_size_is_refused(
    tiny, tmp_path, corpus_file, options, character, other, part
):
    """As many bytes, and as many characters in the vocabulary: the ids mean something else."""
    path = tmp_path / "documents.jsonl"
    shutil.copy(corpus_file, path)
    config = tiny(f"data.path={path}", *options)
    stop_after(config, tmp_path / "run", 2)
    path.write_bytes(path.read_bytes().replace(character, other))
    with pytest.raises(CheckpointError, match=rf"  {part}.*[0-9a-f]{{12}}"):
        run(config, tmp_path / "run")
    assert find_checkpoint(tmp_path / "run").step == 2


def test_a_second_run_in_the_same_directory_is_refused_and_names_the_first(tiny, straight, tmp_path):
    """The second starts in a child while the first is in its third step."""
    config, run_dir, owner, status = tiny(), tmp_path / "run", os.getpid(), []

    def second():
        with pytest.raises(ConfigError, match=rf"run: .*{owner}"):
            run(config, run_dir)

    def start_second(state):
        if state.step == 2:
            before = files_of(run_dir)
            status.append(in_child(second))
            assert files_of(run_dir) == before

    with each_step(before=start_second):
        assert run(config, run_dir) == 0
    assert status == [0]
    assert outcome(run_dir) == straight(config)


def test_the_lock_of_a_killed_run_is_no_obstacle(tiny, straight, tmp_path):
    config, run_dir = tiny(), tmp_path / "run"

    def killed():
        with each_step(before=lambda state: state.step == 3 and os.kill(os.getpid(), signal.SIGKILL)):
            run(config, run_dir)

    assert os.WTERMSIG(in_child(killed)) == signal.SIGKILL
    assert (run_dir / ".lock").exists()
    assert run(config, run_dir) == 0
    assert outcome(run_dir) == straight(config)


TAILS = {
    "half a line": b'{"step": 3, "tok',
    "whole lines": b'{"step": 3, "tokens": 1}\n{"step": 4, "tokens": 2}\n',
    "both": b'{"step": 3}\n{"st',
    "zeros": b"\0\0\n",
}


@pytest.mark.parametrize("tail", TAILS)
def test_metrics_behind_the_checkpoint_are_written_again_one_line_a_step(stopped, tiny, straight, tail):
    with open(stopped / "metrics.jsonl", "ab") as file:
        file.write(TAILS[tail])
    assert run(tiny(), stopped) == 0
    assert [line["step"] for line in metrics(stopped)] == [1, 2, 3, 4, 5, 6]
    assert outcome(stopped) == straight(tiny())
