"""A decoder-only transformer with exactly the structure of Qwen3 (Yang et al. 2025, arXiv:2505.09388).

Pre-normalised residual blocks of causal grouped-query attention, with RMS-normalised queries and keys and rotary
positions, and a SwiGLU; no biases. The parameters have the names of Hugging Face's Qwen3, so an export is a plain copy.

The model maps tokens to hidden states and stops there. The head belongs to the loss, which multiplies hidden states by
``model.head_weight`` chunk by chunk and never holds the (tokens x vocabulary) logits.

Shapes: B sequences, T tokens each, D = hidden_size, H query heads, K key and value heads, d = head_dim, V tokens in the
vocabulary, S tokens seen so far, the T new ones included.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanolm.config.schema import ModelConfig


class KVCache:
    """Keep the keys and values of the ``length`` tokens seen so far, so that generation computes each once."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.length = capacity, 0
        self._buffers: dict[int, tuple[Tensor, Tensor]] = {}

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store (B, K, T, d) keys and values after those seen so far and return all of them, (B, K, S, d).

        ``length`` is unchanged until the model has taken the same tokens through every layer.
        """
        batch, heads, num_tokens, head_dim = keys.shape
        end = self.length + num_tokens
        if end > self.capacity:
            raise ValueError(f"a KV cache of {self.capacity} tokens cannot hold {end}")
        if layer not in self._buffers:  # made here, in the dtype of the first tokens
            shape = (batch, heads, self.capacity, head_dim)
            self._buffers[layer] = (keys.new_empty(shape), values.new_empty(shape))
        all_keys, all_values = self._buffers[layer]
        all_keys[:, :, self.length : end] = keys
        all_values[:, :, self.length : end] = values
        return all_keys[:, :, :end], all_values[:, :, :end]


def rotary_table(start: int, end: int, dim: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Compute cosines and sines, (end - start, dim) each, of positions p: angle p theta^(-2i/dim) for (i, i + dim/2).

    Su et al. 2021 (arXiv:2104.09864), in the half-split pairing of Llama and Qwen.
    """
    frequencies = theta ** (-torch.arange(0, dim, 2, device=device, dtype=torch.float32) / dim)
    angles = torch.outer(torch.arange(start, end, device=device, dtype=torch.float32), frequencies)
    return torch.cat((angles, angles), -1).cos(), torch.cat((angles, angles), -1).sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair (x_i, x_{i+d/2}) of (..., T, d) by the angle of its position."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


class Attention(nn.Module):
    """Attend to the past, softmax(q kᵀ / sqrt(d)) v; H / K query heads share each key and value head."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim, self.dropout = layer, head_dim_of(config), config.dropout
        query_width = config.num_attention_heads * self.head_dim
        key_width = config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_width, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, key_width, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, key_width, bias=False)
        self.o_proj = nn.Linear(query_width, config.hidden_size, bias=False)
        self.q_norm = nn.RMSNorm(self.head_dim, eps=config.rms_norm_eps)
        self.k_norm = nn.RMSNorm(self.head_dim, eps=config.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: KVCache | None) -> Tensor:
        batch, num_tokens, _ = x.shape  # (B, T, D)
        heads = (batch, num_tokens, -1, self.head_dim)
        q = rotate(self.q_norm(self.q_proj(x).view(heads)).transpose(1, 2), cos, sin)  # (B, H, T, d)
        k = rotate(self.k_norm(self.k_proj(x).view(heads)).transpose(1, 2), cos, sin)  # (B, K, T, d)
        v = self.v_proj(x).view(heads).transpose(1, 2)  # (B, K, T, d)
        num_past, mask = 0, None
        if cache is not None:
            num_past = cache.length
            k, v = cache.append(self.layer, k, v)  # (B, K, S, d)
        if num_past and num_tokens > 1:  # token t sees the past and the first t + 1 of the new ones
            mask = x.new_ones(num_tokens, num_past + num_tokens, dtype=torch.bool).tril(num_past)  # (T, S)
        y = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            is_causal=num_past == 0,
            dropout_p=self.dropout if self.training else 0.0,
            enable_gqa=q.shape[1] != k.shape[1],
        )  # (B, H, T, d)
        output: Tensor = self.o_proj(y.transpose(1, 2).reshape(batch, num_tokens, -1))  # (B, T, H d) to (B, T, D)
        return output


class MLP(nn.Module):
    """SwiGLU (Shazeer 2020, arXiv:2002.05202): down(silu(gate(x)) * up(x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))  # (B, T, intermediate) inside
        return output


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = MLP(config)
        self.dropout = config.dropout

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, cache: KVCache | None) -> Tensor:
        attended = self.self_attn(self.input_layernorm(x), cos, sin, cache)  # (B, T, D), as x throughout
        x = x + F.dropout(attended, self.dropout, self.training)
        computed = self.mlp(self.post_attention_layernorm(x))
        return x + F.dropout(computed, self.dropout, self.training)


class Decoder(nn.Module):
    """Embedding, blocks, final norm: ``model`` of Hugging Face's causal language models."""

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.head_dim, self.rope_theta = head_dim_of(config), config.rope_theta
        self.embed_tokens = nn.Embedding(vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.dropout = config.dropout

    def forward(self, tokens: Tensor, cache: KVCache | None) -> Tensor:
        start = cache.length if cache is not None else 0
        end = start + tokens.shape[1]
        x = F.dropout(self.embed_tokens(tokens), self.dropout, self.training)  # (B, T) to (B, T, D)
        cos, sin = (table.to(x.dtype) for table in rotary_table(start, end, self.head_dim, self.rope_theta, x.device))
        for layer in self.layers:
            x = layer(x, cos, sin, cache)
        if cache is not None:
            cache.length = end
        hidden: Tensor = self.norm(x)
        return hidden


class GPT(nn.Module):
    """The language model: ``forward`` returns hidden states, ``head_weight`` turns them into logits."""

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.config, self.vocab_size = config, vocab_size
        self.model = Decoder(config, vocab_size)
        # A tied head is the embedding, so that the state holds one tensor.
        self.lm_head = None if config.tie_word_embeddings else nn.Linear(config.hidden_size, vocab_size, bias=False)
        self.initialize()

    def forward(self, tokens: Tensor, cache: KVCache | None = None) -> Tensor:
        """Compute hidden states (B, T, D) after the final norm for tokens (B, T) that follow those in the cache."""
        hidden: Tensor = self.model(tokens, cache)
        return hidden

    @property
    def head_weight(self) -> Tensor:
        """The (V, D) matrix W of the logits h Wᵀ."""
        return self.model.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    @torch.no_grad()
    def initialize(self) -> None:
        """Draw all weights from torch's global generator; norms become ones.

        The projections that write to the residual stream start at zero, so every block starts as the identity.
        """
        for name, parameter in self.named_parameters():
            if parameter.ndim < 2:
                parameter.fill_(1.0)
            elif name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.zero_()
            else:
                parameter.normal_(std=self.config.initializer_range)

    def num_parameters(self) -> int:
        """Count the trainable numbers, tied weights once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def flops_per_token(self, sequence_length: int) -> int:
        """Count the floating-point operations of one training token, forward and backward, for MFU.

        6 N + 12 L H d T (Chowdhery et al. 2022, arXiv:2204.02311, appendix B): N are the numbers in weight matrices
        that multiply, the head's included and the embedding's look-up not; the second term is attention over the
        whole window, causal or not, as published utilisations count it.
        """
        weights = sum(p.numel() for p in self.model.layers.parameters() if p.ndim == 2) + self.head_weight.numel()
        width = self.config.num_attention_heads * head_dim_of(self.config)
        return 6 * weights + 12 * self.config.num_hidden_layers * width * sequence_length


def head_dim_of(config: ModelConfig) -> int:
    """Return the width of a head, given or derived; ``ModelConfig`` has checked that the heads fit."""
    return config.head_dim or config.hidden_size // config.num_attention_heads
