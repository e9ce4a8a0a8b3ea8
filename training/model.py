"""A small llama in plain torch, with the parameter names of Hugging Face checkpoints.

RMS norm, rotate-half rope, grouped-query attention, SwiGLU and tied embeddings, so that what is
trained here is read by any engine that knows the llama family.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Llama", "Shape"]


@dataclass(frozen=True, slots=True)
class Shape:
    """The numbers of a llama; dimensions are multiples of 64 so that weights quantize in groups."""

    vocabulary: int
    hidden: int = 256
    inner: int = 512
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    head: int = 64
    context: int = 1024
    rope_theta: float = 10_000.0
    epsilon: float = 1e-5

    def hugging_face(self, end: int, dtype: str) -> dict[str, Any]:
        """`config.json` of this shape; `end` is the end-of-sequence id."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head,
            "max_position_embeddings": self.context,
            "rope_theta": self.rope_theta,
            "rms_norm_eps": self.epsilon,
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": end,
            "pad_token_id": end,
            "torch_dtype": dtype,
        }


def _linear(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False)


class RMSNorm(nn.Module):
    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.epsilon)


def rope_table(shape: Shape, length: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines [length, head], each half repeated as rotate-half wants it."""
    rates = shape.rope_theta ** (-torch.arange(0, shape.head, 2).float() / shape.head)
    angles = torch.outer(torch.arange(length).float(), rates).repeat(1, 2)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rope over the last axis of x [batch, heads, length, head]."""
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), dim=-1) * sin


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.q_proj = _linear(shape.hidden, shape.heads * shape.head)
        self.k_proj = _linear(shape.hidden, shape.kv_heads * shape.head)
        self.v_proj = _linear(shape.hidden, shape.kv_heads * shape.head)
        self.o_proj = _linear(shape.heads * shape.head, shape.hidden)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, _ = x.shape

        def split(y: Tensor) -> Tensor:
            return y.view(batch, length, -1, self.shape.head).transpose(1, 2)

        q = rotate(split(self.q_proj(x)), cos, sin)
        k = rotate(split(self.k_proj(x)), cos, sin)
        groups = self.shape.heads // self.shape.kv_heads
        k = k.repeat_interleave(groups, dim=1)
        v = split(self.v_proj(x)).repeat_interleave(groups, dim=1)
        # Written out: for sentences of some 30 tokens torch's fused form is slower backwards.
        # The causal mask is enough, as padding comes after everything that has a loss.
        scores = q @ k.transpose(2, 3) * self.shape.head**-0.5
        future = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        y = scores.masked_fill(future, -torch.inf).softmax(dim=-1).to(v.dtype) @ v
        merged: Tensor = self.o_proj(y.transpose(1, 2).reshape(batch, length, -1))
        return merged


class MLP(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_proj = _linear(shape.hidden, shape.inner)
        self.up_proj = _linear(shape.hidden, shape.inner)
        self.down_proj = _linear(shape.inner, shape.hidden)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return y


class Layer(nn.Module):
    def __init__(self, shape: Shape, dropout: float) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(shape.hidden, shape.epsilon)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = RMSNorm(shape.hidden, shape.epsilon)
        self.mlp = MLP(shape)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        out: Tensor = x + self.dropout(self.mlp(self.post_attention_layernorm(x)))
        return out


class Decoder(nn.Module):
    """Everything but the head: token ids [batch, length] to hidden states."""

    def __init__(self, shape: Shape, dropout: float) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocabulary, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape, dropout) for _ in range(shape.layers))
        self.norm = RMSNorm(shape.hidden, shape.epsilon)
        self.dropout = nn.Dropout(dropout)
        cos, sin = rope_table(shape, shape.context)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.dropout(self.embed_tokens(ids))
        length = ids.shape[1]
        cos, sin = self.cos[:length], self.sin[:length]  # type: ignore[index]
        for layer in self.layers:
            x = layer(x, cos, sin)
        out: Tensor = self.norm(x)
        return out


class Llama(nn.Module):
    """`state_dict()` has the names and shapes of a tied Hugging Face llama."""

    def __init__(self, shape: Shape, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.shape = shape
        self.model = Decoder(shape, dropout)
        self.apply(self._initialize)

    def _initialize(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits [batch, length, vocabulary] of token ids [batch, length]."""
        return self.logits(self.model(ids))

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits of final hidden states [..., hidden]."""
        return F.linear(hidden, self.model.embed_tokens.weight)
