"""Checkpoints and corpora as an attacker would send them: manifests that fit whatever was done to the other files."""

import hashlib
import json
import logging
import shutil
from pathlib import Path

import torch

from nanolm.config import load
from nanolm.data import open_prepared, prepare
from nanolm.device import resolve_compute
from nanolm.errors import NanolmError
from nanolm.files import file_table
from nanolm.metrics import Calibration
from nanolm.training.checkpoint import save_checkpoint
from nanolm.training.resume import new_state
from tests.faults.runs import TINY, run_script

CALIBRATION = {
    "temperature": {"value": 1.2, "low": 1.1, "high": 1.3},
    "reason": None,
    "nll": 1.0,
    "nll_at_temperature": 0.9,
    "gradient": 0.0,
    "split": "calibration",
    "num_tokens": 100,
    "curve": {"temperature": [1.0, 2.0], "nll": [3.0, 4.0]},
}


def overrides(corpus_file, data_root):
    """Return the command line of a run of a second, without its run directory."""
    return [*TINY, f"data.path={corpus_file}", f"data.root={data_root}", "trainer.max_steps=2"]


def make_checkpoint(run_dir, given):
    """Save a checkpoint of step 1 of a run with this command line, with moments and a temperature; return its path
    and state."""
    config = load("train", given)
    corpus = open_prepared(prepare(config.data, config.tokenizer))
    state = new_state(config, corpus, resolve_compute("cpu", "fp32"))
    state.model(torch.arange(8)[None]).square().sum().backward()
    state.optimizers.step(1.0)
    state.step, state.tokens = 1, 64
    calibration = Calibration.model_validate_json(json.dumps(CALIBRATION))
    return save_checkpoint(run_dir, state, config, corpus.tokenizer, corpus.fingerprint, calibration), state


def resign(folder, change=lambda manifest: None):
    """Make the manifest fit the files that are there now, and then change it."""
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
    """Return a fresh copy to damage, in the place of the last one."""
    shutil.rmtree(to, ignore_errors=True)
    return Path(shutil.copytree(folder, to))


def taken_or_refused(action):
    """Return the action's result, or None if it was refused as a user's mistake; anything else that it raises is a
    bug."""
    try:
        return action()
    except NanolmError as error:
        refused = error
    assert refused.exit_code == 2
    assert str(refused)
    return None


def call(script, arguments):
    """Run a script in this process; return its exit code and the errors that it logged."""
    errors = []

    class Listener(logging.Handler):
        def emit(self, record):
            errors.append(self.format(record))

    listener = Listener(logging.ERROR)
    logging.getLogger().addHandler(listener)
    try:
        code = run_script(script, arguments)
    finally:
        logging.getLogger().removeHandler(listener)
    return code, "\n".join(errors)
