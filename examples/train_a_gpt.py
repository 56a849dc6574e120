"""A text becomes a trained, calibrated and sampled character model, by the library alone. Paste it and change it.

python examples/train_a_gpt.py [FILE] [STEPS]
"""

import sys
from pathlib import Path

import torch

from nanolm.calibration import CalibrationMeter, fit_temperature
from nanolm.config.schema import ModelConfig
from nanolm.loss import LossOptions, linear_nll
from nanolm.model import GPT, generate

CONTEXT, BATCH = 64, 16
text = Path(sys.argv[1] if len(sys.argv) > 1 else __file__).read_text(encoding="utf-8")
steps = int(sys.argv[2]) if len(sys.argv) > 2 else 200

# Text → ids, which one string of all characters decodes; the first id, "\0", stands before and after a text.
characters = "\0" + "".join(sorted(set(text)))
ids = torch.tensor([0, *map(characters.index, text), 0])
train, calibration, val = ids.tensor_split([int(0.8 * len(ids)), int(0.9 * len(ids))])

torch.manual_seed(0)
config = ModelConfig(
    name="example",
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=None,
    intermediate_size=160,
    tie_word_embeddings=True,
    rope_theta=10_000.0,
    rms_norm_eps=1e-6,
    initializer_range=0.02,
    dropout=0.1,
)
model = GPT(config, len(characters))
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
for step in range(1, steps + 1):
    starts = torch.randint(len(train) - CONTEXT - 1, (BATCH,))
    rows = torch.stack([train[start : start + CONTEXT + 1] for start in starts])
    hidden, targets = model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten()
    options = LossOptions(label_smoothing=0.05)  # the objective is smoothed, the NLL that is printed never is
    out = linear_nll(hidden, model.head_weight, targets, options=options, reduction="mean")
    optimizer.zero_grad()
    out.objective.backward()
    optimizer.step()
    if step % 50 == 0 or step == steps:
        print(f"step {step}: NLL {out.nll.mean():.3f} nats, accuracy {out.correct.float().mean():.3f}")


@torch.no_grad()
def hidden_states(split: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the (N, D) hidden states and (N,) targets of a split, in windows that do not overlap."""
    rows = split[: (len(split) - 1) // CONTEXT * CONTEXT + 1]
    return model(rows[:-1].view(-1, CONTEXT)).flatten(0, 1), rows[1:]


model.eval()
hidden, targets = hidden_states(calibration)
temperature = fit_temperature(hidden, model.head_weight, targets).temperature
hidden, targets = hidden_states(val)
for name, T in (("as trained", 1.0), ("calibrated", temperature)):
    scored = linear_nll(hidden, model.head_weight, targets, options=LossOptions(temperature=T), statistics="full")
    metrics = CalibrationMeter().update(scored).metrics()
    print(f"{name} (T = {T:.3f}): val NLL {metrics['nll']:.3f} nats, ECE {metrics['ece']:.3f}")

generator = torch.Generator().manual_seed(0)
drawn = generate(
    model, [0], max_new_tokens=200, temperature=temperature, generator=generator, context=CONTEXT, end_of_text_id=0
)
print("".join(characters[i] for i in drawn))
