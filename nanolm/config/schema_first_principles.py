"""The configuration of ``python scripts/first_principles.py``."""

from dataclasses import dataclass

from nanolm.config.schema import Device, Precision, key


@dataclass(frozen=True)
class FirstPrinciplesConfig:
    """``python scripts/first_principles.py``"""

    name: str = key("name of the run: runs/<name>/<time>/", text=True)
    seed: int = key("seed of the random logits and of the simulated draws", minimum=0, below=2**63)
    checkpoint: str | None = key(
        "a run directory or one checkpoint, whose model scores the sentence (null: a character bigram)", text=True
    )
    sentence: str = key("the text that the chain rule is shown on", text=True)
    device: Device = key("auto takes CUDA where there is one (never run so far); for the checkpoint alone")
    precision: Precision = key("auto is bf16 autocast on CUDA, fp32 on the CPU; for the checkpoint alone")
