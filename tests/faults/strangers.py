"""What a stranger would send: checkpoints and corpora whose manifests fit whatever else was done to them."""

import hashlib
import json
import logging
import shutil
from pathlib import Path

import torch

from nanolm.config import command_line, load
from nanolm.data import open_prepared, prepare
from nanolm.files import file_table
from nanolm.model import GPT
from nanolm.optim import build_optimizer
from nanolm.training.checkpoint import save_checkpoint
from nanolm.training.state import TrainingState
from tests.faults.runs import TINY

CALIBRATION = {
    "temperature": {"value": 1.2, "low": 1.1, "high": 1.3},
    "nll": 1.0,
    "nll_at_temperature": 0.9,
    "gradient": 0.0,
    "split": "calibration",
    "num_tokens": 100,
    "curve": {"temperature": [1.0, 2.0], "nll": [3.0, 4.0]},
}


def overrides(corpus_file, data_root):
    """The command line of a run of a second, without its run directory."""
    return [
        *TINY,
        f"data.path={corpus_file}",
        f"data.root={data_root}",
        "trainer.max_steps=2",
        "trainer.eval_every=null",
    ]


def make_checkpoint(run_dir, given):
    """A checkpoint of step 1 of a run with this command line, with optimizer moments and a fitted temperature."""
    config = load("train", given)
    corpus = open_prepared(prepare(config.data, config.tokenizer))
    torch.manual_seed(0)
    model = GPT(config.model, corpus.tokenizer.vocab_size)
    state = TrainingState(model, build_optimizer(model, config.optimizer), step=1, tokens=64)
    model(torch.arange(8)[None]).square().sum().backward()
    state.optimizers.step(1.0)
    return save_checkpoint(run_dir, state, config, corpus.tokenizer, corpus.fingerprint, CALIBRATION), state


def resign(folder, change=lambda manifest: None):
    """Make the manifest fit the files that lie there now, and then change it."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    path.unlink()
    manifest["files"] = file_table(folder)
    change(manifest)
    for own in ("fingerprint", "checksum"):  # of a corpus, of a checkpoint
        if own in manifest:
            rest = {key: value for key, value in manifest.items() if key != own}
            manifest[own] = hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps(manifest))


def copy(folder, to):
    """A copy to damage, in the place of the last one."""
    shutil.rmtree(to, ignore_errors=True)
    return Path(shutil.copytree(folder, to))


def call(script, arguments):
    """Run a script in this process; its exit code and what it says on standard error as ``error: …``."""
    said = []

    class Listener(logging.Handler):
        def emit(self, record):
            said.append(self.format(record))

    listener = Listener(logging.ERROR)
    logging.getLogger().addHandler(listener)
    try:
        code = command_line.run(script, TASKS[script], arguments)
    finally:
        logging.getLogger().removeHandler(listener)
    return code, "\n".join(said)


def _train(config, run_dir, command):
    from nanolm.report import write_run_report
    from nanolm.training import train

    return train(config, run_dir, command, write_run_report)


def _sample(config):
    from nanolm.inference import sample_checkpoint

    sample_checkpoint(config)


def _evaluate(config):
    from nanolm.inference import evaluate_checkpoint

    evaluate_checkpoint(config)


TASKS = {"train": _train, "sample": _sample, "evaluate": _evaluate, "tokenize": lambda config: None}
