"""Losses of a short run, stored for each platform, so that a change of the numbers does not go unnoticed.

After a change that is meant to change them:

    python -m tests.parity.test_golden_losses

records those of this machine. Say in the commit why they changed.
"""

import json
import platform
import random
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from nanolm.config import load
from nanolm.training import find_checkpoint
from tests.faults.runs import metrics, outcome, run

GOLDEN = Path(__file__).with_name("golden_losses.json")
RECORD = "python -m tests.parity.test_golden_losses"
SAME_PLATFORM, ANY_PLATFORM = 1e-5, 1e-3
"""Relative: the sums of one build in one order differ between processors of a kind by a few units in the last place."""
OPTIMIZERS = ("muon", "adamw")
OVERRIDES = """
    data=text tokenizer=byte seed=3 model.hidden_size=32 model.num_hidden_layers=2 model.num_attention_heads=2
    model.num_key_value_heads=1 model.intermediate_size=48 model.dropout=0.1 loss.label_smoothing=0.05 loss.z_loss=1e-4
    loss.softcap=20 schedule=wsd trainer.device=cpu trainer.precision=fp32 trainer.compile=off trainer.max_steps=20
    trainer.batch_size=6 trainer.micro_batch_size=4 trainer.sequence_length=32 trainer.eval_every=10
    trainer.checkpoint_every=null sample.max_new_tokens=1 sample.prompt=the wandb.mode=disabled
"""


def platform_key() -> str:
    """Processor, its instructions that torch uses, and torch's version: they decide the order of a sum."""
    instructions = torch.backends.cpu.get_cpu_capability()
    return f"{platform.machine()} {instructions}, torch {'.'.join(torch.__version__.split('.')[:2])}, one thread"


def losses(folder: Path, optimizer: str) -> dict[str, list[object]]:
    """Objective, NLL and gradient norm of twenty steps on a generated text, the metrics of val and the temperature."""
    generator = random.Random(0)
    words = ["the", "state", "of", "our", "union", "is", "strong", "and", "free"]
    text = " ".join(generator.choice(words) for _ in range(3000))
    (folder / "text.txt").write_text(text, encoding="utf-8")
    paths = [f"data.path={folder / 'text.txt'}", f"data.root={folder / 'data'}"]
    run(load("train", [*OVERRIDES.split(), *paths, f"optimizer={optimizer}"]), folder / optimizer)
    lines = metrics(folder / optimizer)
    names = ("train/objective", "train/nll", "train/grad_norm", "train/entropy", "val/nll", "val/brier")
    found: dict[str, list[object]] = {name: [line[name] for line in lines if name in line] for name in names}
    calibration = find_checkpoint(folder / optimizer).calibration()
    assert calibration is not None
    return found | {"temperature": [calibration.value]}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("golden")
    return folder, {optimizer: losses(folder, optimizer) for optimizer in OPTIMIZERS}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_losses_are_the_golden_ones(found, optimizer):
    golden = json.loads(GOLDEN.read_text())
    known = golden.get(platform_key())
    tolerance = SAME_PLATFORM if known else ANY_PLATFORM
    where = platform_key() if known else f"{platform_key()} (not recorded; compared loosely, `{RECORD}` records it)"
    expected = (known or next(iter(golden.values())))[optimizer]
    assert found[1][optimizer].keys() == expected.keys()
    for name, values in expected.items():
        assert found[1][optimizer][name] == pytest.approx(values, rel=tolerance, abs=1e-9), (
            f"{name} has changed on {where}. If that is meant, record the new values with `{RECORD}` and say why."
        )


def test_a_second_run_gives_the_same_bits(found, tmp_path):
    folder, first = found
    assert losses(tmp_path, "muon") == first["muon"]
    assert outcome(tmp_path / "muon") == outcome(folder / "muon")


def test_a_change_in_the_fourth_digit_is_seen(found):
    """The tolerance on a recorded platform is tight: no golden value hides such a change."""
    for values in found[1]["muon"].values():
        for value in values:
            assert value * 1.0001 != pytest.approx(value, rel=SAME_PLATFORM, abs=1e-9)


def record() -> None:
    """Add the losses of this machine to the file, or replace them."""
    torch.set_num_threads(1)
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        golden[platform_key()] = {optimizer: losses(Path(folder), optimizer) for optimizer in OPTIMIZERS}
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(record())
