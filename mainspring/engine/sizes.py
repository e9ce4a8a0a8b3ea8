"""The sizes every decoder has, read from config.json and checked before anything is allocated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mainspring.engine.fields import Fields

__all__ = ["Sizes"]

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    family: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head: int
    inner: int
    """width of the feed-forward layer"""
    vocabulary: int
    context: int
    """positions the checkpoint was made for"""
    eps: float
    tied: bool
    """the output head shares the embedding's matrix"""
    activation: Any  # Literal["silu", "gelu_tanh"]

    @classmethod
    def of(cls, fields: Fields, family: str) -> Sizes:
        """Raises ModelError naming the first field that is missing, absurd or contradictory."""
        hidden = fields.integer("hidden_size", high=1 << 16)
        heads = fields.integer("num_attention_heads", high=1024)
        kv_heads = fields.integer("num_key_value_heads", heads, high=1024)
        if "head_dim" not in fields and hidden % heads:
            raise fields.refuse("hidden_size", f"is {hidden}, not a multiple of {heads} heads")
        if heads % kv_heads:
            raise fields.refuse(
                "num_attention_heads", f"is {heads}, not a multiple of {kv_heads} key-value heads"
            )
        head = fields.integer("head_dim", hidden // heads, low=2, high=1024)
        if head % 2:
            raise fields.refuse("head_dim", f"is {head}; rotary embeddings need an even width")
        activation = "hidden_activation" if "hidden_activation" in fields else "hidden_act"
        return cls(
            family=family,
            layers=fields.integer("num_hidden_layers", high=1024),
            hidden=hidden,
            heads=heads,
            kv_heads=kv_heads,
            head=head,
            inner=fields.integer("intermediate_size", high=1 << 20),
            vocabulary=fields.integer("vocab_size", high=1 << 21),
            context=fields.integer("max_position_embeddings", high=1 << 24),
            eps=fields.number("rms_norm_eps", 1e-6, low=0.0, high=0.1),
            tied=fields.flag("tie_word_embeddings", False),
            activation=ACTIVATIONS[fields.choice(activation, "silu", ACTIVATIONS)],
        )
