"""The decoder against Hugging Face's Qwen3, and against itself."""

import pytest
import torch
import torch.nn.functional as F

from nanolm.model import GPT, KVCache
from tests.model.tiny import random_model, tiny_config

VOCAB_SIZE = 61


def draw_tokens(*shape: int) -> torch.Tensor:
    return torch.randint(VOCAB_SIZE, shape, generator=torch.Generator().manual_seed(1))


def logits_of(model: GPT, tokens: torch.Tensor) -> torch.Tensor:
    return F.linear(model(tokens), model.head_weight)


def qwen3(model: GPT) -> torch.nn.Module:
    """Hugging Face's model of the same configuration and weights."""
    transformers = pytest.importorskip("transformers")
    config = model.config
    oracle = transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(
            vocab_size=VOCAB_SIZE,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            num_key_value_heads=config.num_key_value_heads,
            head_dim=config.head_dim or config.hidden_size // config.num_attention_heads,
            intermediate_size=config.intermediate_size,
            tie_word_embeddings=config.tie_word_embeddings,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            rms_norm_eps=config.rms_norm_eps,
        )
    ).eval()
    missing, unexpected = oracle.load_state_dict(model.state_dict(), strict=False)
    assert not unexpected
    assert missing == (["lm_head.weight"] if config.tie_word_embeddings else [])
    return oracle


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_key_value_heads": 4},
        {"num_key_value_heads": 1, "tie_word_embeddings": False},
        {"head_dim": 24, "tie_word_embeddings": False},
        {"rope_theta": 1e6, "rms_norm_eps": 1e-3},
    ],
)
def test_agrees_with_qwen3(changes):
    model, tokens = random_model(VOCAB_SIZE, **changes), draw_tokens(3, 40)
    with torch.no_grad():
        expected, found = qwen3(model)(tokens).logits, logits_of(model, tokens)
    assert expected.std() > 0.5
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_gradients_agree_with_qwen3():
    model, tokens = random_model(VOCAB_SIZE), draw_tokens(2, 20)
    oracle = qwen3(model)
    logits_of(model, tokens).logsumexp(-1).sum().backward()
    oracle(tokens).logits.logsumexp(-1).sum().backward()
    expected = dict(oracle.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, atol=1e-3, rtol=1e-4, msg=name)


def test_no_token_sees_its_future():
    model, tokens = random_model(VOCAB_SIZE), draw_tokens(1, 24)
    changed = tokens.clone()
    changed[0, 15] = (changed[0, 15] + 1) % VOCAB_SIZE
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :15], after[:, :15])
    assert (before[:, 15:] - after[:, 15:]).abs().amax(-1).min() > 1e-4  # and every later one sees its past


@pytest.mark.parametrize("pieces", [[1] * 20, [20], [7, 1, 1, 6, 5], [1, 19]])
def test_cache_equals_full_forward(pieces):
    model, tokens, cache = random_model(VOCAB_SIZE), draw_tokens(2, 20), KVCache(capacity=20)
    with torch.no_grad():
        parts = [model(piece, cache) for piece in tokens.split(pieces, 1)]
        torch.testing.assert_close(torch.cat(parts, 1), model(tokens), atol=1e-5, rtol=1e-5)
    assert cache.length == 20


def test_a_full_cache_refuses_more():
    model, cache = random_model(VOCAB_SIZE), KVCache(capacity=4)
    model(draw_tokens(1, 4), cache)
    with pytest.raises(ValueError, match="4 tokens cannot hold 5"):
        model(draw_tokens(1, 1), cache)


def test_dropout_is_nothing_in_evaluation_and_at_zero():
    plain, dropping = (random_model(VOCAB_SIZE, dropout=dropout) for dropout in (0.0, 0.5))
    tokens = draw_tokens(2, 16)
    expected, state = plain(tokens), torch.get_rng_state()
    assert torch.equal(dropping(tokens), expected)
    assert torch.equal(plain.train()(tokens), expected)
    assert torch.equal(torch.get_rng_state(), state)  # nothing was drawn
    assert not torch.equal(dropping.train()(tokens), dropping(tokens))


@pytest.mark.parametrize("part", ["embeddings", "attention", "residual"])
def test_dropout_reaches_each_part(part):
    """With dropout in one place alone, repeated passes in training differ."""
    model = random_model(VOCAB_SIZE, dropout=0.3).train()
    if part != "embeddings":
        model.model.dropout = 0.0
    for block in model.model.layers:
        if part != "attention":
            block.self_attn.dropout = 0.0
        if part != "residual":
            block.dropout = 0.0
    tokens = draw_tokens(1, 16)
    assert not torch.equal(model(tokens), model(tokens))


def test_dropout_covers_both_residual_branches():
    """Dropped altogether, the branches leave the normalised embedding."""
    model = random_model(VOCAB_SIZE).train()
    for block in model.model.layers:
        block.dropout = 1.0
    tokens = draw_tokens(1, 16)
    torch.testing.assert_close(model(tokens), model.model.norm(model.model.embed_tokens(tokens)))


def test_initial_weights():
    torch.manual_seed(0)
    model = GPT(tiny_config(hidden_size=64, intermediate_size=128, tie_word_embeddings=False), 500)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert (parameter == 1).all(), name
        elif "o_proj" in name or "down_proj" in name:
            assert (parameter == 0).all(), name
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.1), name
            assert abs(parameter.mean().item()) < 0.002, name


def test_num_parameters_flops_and_the_head():
    tied, untied = (GPT(tiny_config(tie_word_embeddings=tie), VOCAB_SIZE) for tie in (True, False))
    block = 32 * (32 + 16 + 16) + 32 * 32 + 3 * 32 * 48
    norms = 2 * (32 + 32 + 8 + 8) + 32
    assert tied.num_parameters() == 2 * block + norms + VOCAB_SIZE * 32
    assert untied.num_parameters() == tied.num_parameters() + VOCAB_SIZE * 32
    expected = 6 * (2 * block + VOCAB_SIZE * 32) + 12 * 2 * 32 * 100
    assert tied.flops_per_token(100) == untied.flops_per_token(100) == expected
    assert tied.head_weight is tied.model.embed_tokens.weight
    assert "lm_head.weight" not in tied.state_dict()
    assert untied.head_weight is untied.get_parameter("lm_head.weight")
