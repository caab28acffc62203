"""What a run needs of memory, phase by phase, from shapes alone: an estimate for machines that are not at hand.

It counts what is allocated at the peak of each phase: weights as they are held, adapters in fp32, gradients and
moments of what trains, activations that the backward pass keeps, and the logits that exist at a time. The library's
own buffers and the CUDA context are not in it. `benchmarks/README.md` holds it against measured peaks.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from gemma_alignment.modeling.heads import positions_at_a_time, prompts_at_a_time

FP32 = 4
NF4 = 0.5 + (1 + FP32 / 256) / 64
"""Bytes a weight: half of one, and for each block of 64 a scale of one byte with a second scale for every 256."""
PAGE = 256
"""Positions of a page of continuous batching: flash attention takes no smaller ones."""
WIDTHS = {"float32": 4, "bfloat16": 2}
MOMENTS = {"adam": 8.0, "paged_adam_8bit": 2.0 + 8 / 256}
"""Bytes a trained weight."""


@dataclass(frozen=True)
class Shape:
    """A decoder-only transformer with a gated MLP."""

    vocabulary: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    tied: bool = True

    @classmethod
    def of(cls, config: Any) -> Self:
        """Read it from a configuration of transformers."""
        dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(
            config.vocab_size, config.hidden_size, config.num_hidden_layers, config.num_attention_heads,
            config.num_key_value_heads, dim, config.intermediate_size, bool(config.tie_word_embeddings),
        )  # fmt: skip

    @property
    def _linears(self) -> tuple[tuple[int, int], ...]:
        """Inputs and outputs of the linear layers of one block."""
        d, f, q, kv = self.hidden, self.intermediate, self.heads * self.head_dim, self.kv_heads * self.head_dim
        return (d, q), (d, kv), (d, kv), (q, d), (d, f), (d, f), (f, d)

    @property
    def linear_weights(self) -> int:
        """Weights of every linear layer but the head."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self._linears)

    @property
    def table_weights(self) -> int:
        """Weights of the embedding, and of the head where it is another table."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    def lora_weights(self, rank: int) -> int:
        """Weights of one adapter on every linear layer."""
        return self.layers * sum(rank * (inputs + outputs) for inputs, outputs in self._linears)


GEMMA_2B = Shape(256_000, 2048, 18, 8, 1, 256, 16_384)


@dataclass(frozen=True)
class Holding:
    """How models are held: section ``modeling``, as far as memory goes."""

    quantization: str
    dtype: str
    rank: int
    checkpointing: bool
    optimizer: str
    rl_base: str
    sharing: str
    weights: str
    """``rollout.weights``."""
    embedding: str = "as_saved"
    precision: str = "as_held"
    """``rollout.precision``."""
    engine: str = "transformers"
    """``rollout.engine``."""
    shares: int = 1
    """Processes that train a policy and hold a share of the base each."""

    @classmethod
    def of(cls, modeling: Mapping[str, Any], rollout: Mapping[str, Any]) -> Self:
        """Read it from the parameters; of one process that holds all of its base."""
        return cls(
            modeling["quantization"], modeling["dtype"], modeling["lora"]["rank"], modeling["gradient_checkpointing"],
            modeling["optimizer"], modeling["rl_base"], modeling["sharing"], rollout["weights"], modeling["embedding"],
            rollout["precision"], rollout["engine"],
        )  # fmt: skip

    @property
    def width(self) -> int:
        """Bytes of an activation, and of a weight that is not quantised."""
        return WIDTHS[self.dtype]

    def base(self, shape: Shape) -> float:
        """Bytes of one base."""
        linear = NF4 if self.quantization == "nf4" else self.width
        table = 1 if self.embedding == "int8" else self.width
        return shape.linear_weights * linear + shape.table_weights * table

    def gathered(self, shape: Shape) -> float:
        """Bytes of what is whole while it computes, as it comes and as it is laid out: the largest piece of a base."""
        largest = max(shape.vocabulary * shape.hidden, shape.linear_weights / shape.layers)
        return 2 * self.width * largest if self.shares > 1 else 0.0


@dataclass(frozen=True)
class Work:
    """What is in memory at a time."""

    rows: int
    """Responses of a micro-batch."""
    decoded: int
    """Responses decoded side by side."""
    group_size: int
    prompt: int
    """Tokens of a prompt."""
    response: int
    """Tokens of a response."""

    @property
    def positions(self) -> int:
        """Positions of a micro-batch whose rows share no prompt."""
        return self.rows * (self.prompt + self.response)


def standing(shape: Shape, hold: Holding, critic: bool) -> dict[str, float]:
    """Bytes of what an arm holds all the time: base, each role's adapter and, where it trains, moments, merged copy."""
    lora = shape.lora_weights(hold.rank)
    bases = (4 if critic else 3) if hold.sharing == "separate_copies" else 1
    learner = (FP32 + MOMENTS[hold.optimizer]) * lora
    return {
        "base" if bases == 1 else f"{bases} bases": bases * hold.base(shape) / hold.shares,
        **({"SFT adapter": bases * FP32 * lora} if hold.rl_base == "sft_adapter" else {}),
        "policy": learner,
        "reward model": FP32 * lora,
        **({"critic": learner} if critic else {}),
        **({"merged copy to decode with": decoding_copy(shape, hold)} if hold.weights == "merged" else {}),
    }


def phases(shape: Shape, hold: Holding, work: Work, critic: bool) -> dict[str, float]:
    """Peak bytes of each phase of an iteration, the second or a later one: the optimizers hold their moments."""
    trained = shape.lora_weights(hold.rank) * (2 if critic else 1)
    stands = sum(standing(shape, hold, critic).values())
    load = stands - MOMENTS[hold.optimizer] * trained - decoding_copy(shape, hold)
    passing = stands + hold.gathered(shape)
    states = 2 * work.positions * shape.hidden * hold.width
    both, read = FP32 * trained, work.rows * work.response
    found = {
        "load": load,
        "rollout": passing + _decoding(shape, hold, work),
        "score": passing + states + max(_passing(shape, hold, work.positions), _head(shape, hold, read)),
        "policy backward": passing + both + states + _backward(shape, hold, work.positions, read),
    }
    if critic:
        found["critic backward"] = passing + both + states + _backward(shape, hold, work.positions, 0)
    found["optimizer"] = stands + both
    return found


def training(shape: Shape, hold: Holding, positions: int, read: int) -> float:
    """Peak bytes of training one role on one base: the logits of ``read`` of the positions are needed, or none."""
    states = 2 * positions * shape.hidden * hold.width
    gradients = FP32 * shape.lora_weights(hold.rank)
    return _one_role(shape, hold) + gradients + states + _backward(shape, hold, positions, read)


def answering(shape: Shape, hold: Holding, work: Work) -> float:
    """Peak bytes of decoding right after such a training."""
    return _one_role(shape, hold) + _decoding(shape, hold, work) + decoding_copy(shape, hold)


def comparing(shape: Shape, hold: Holding, positions: int) -> float:
    """Peak bytes of passing so many positions through the base with its embedding as saved, beside the trained one."""
    other = replace(hold, embedding="as_saved").base(shape)
    return _one_role(shape, hold) + other + max(_passing(shape, hold, positions), _head(shape, hold, positions))


def merging(shape: Shape, hold: Holding, positions: int, again: bool) -> float:
    """Peak bytes of adding an adapter to its base in a plain copy, and of passing so many positions through both.

    ``again``: the sum is quantised once more, and held beside the base after the copy has left.
    """
    beside = hold.base(shape) + FP32 * shape.lora_weights(hold.rank)
    plain = hold.width * (shape.linear_weights + shape.table_weights)
    sums = 4 * FP32 * shape.hidden * shape.intermediate  # of the largest matrix: itself, B A, that times alpha / rank
    table = hold.width * shape.table_weights if hold.embedding == "int8" else 0
    passes = max(_passing(shape, hold, positions), _head(shape, hold, positions)) if positions else 0.0
    most = max(plain + max(sums, table, passes), hold.base(shape) + passes if again else 0.0)
    return beside + most


def _one_role(shape: Shape, hold: Holding) -> float:
    """Bytes of one base with one adapter and its moments."""
    return hold.base(shape) + (FP32 + MOMENTS[hold.optimizer]) * shape.lora_weights(hold.rank)


def _backward(shape: Shape, hold: Holding, positions: int, read: int) -> float:
    """Bytes at the peak of a forward and backward pass, beside what stands and the final states."""
    kept = _kept(shape, hold, positions)
    again = _layer(shape, hold) * positions if hold.checkpointing else 0.0
    head = _head(shape, hold, read, learns=True) if read else 0.0
    return kept + max(head, again + _returning(shape, hold, positions))


def _layer(shape: Shape, hold: Holding) -> float:
    """Bytes a position that the backward pass of one block with adapters keeps.

    The inputs of both norms and their outputs; queries, keys and values of every head and what attention gives;
    gate, its activation, the other half, and their product. Where activations are not fp32 the norms and the
    adapters keep fp32 copies of what they read.
    """
    d, f, q = shape.hidden, shape.intermediate, shape.heads * shape.head_dim
    plain = hold.width * (4 * d + 4 * q + 4 * f)
    copies = 0 if hold.width == FP32 else FP32 * (2 * d + 5 * d + q + f)
    return plain + copies + FP32 * 7 * hold.rank


def _kept(shape: Shape, hold: Holding, positions: int) -> float:
    """Bytes kept from the whole forward pass: the inputs of every block, or all that every block keeps."""
    each = shape.hidden * hold.width if hold.checkpointing else _layer(shape, hold)
    return shape.layers * each * positions


def _passing(shape: Shape, hold: Holding, positions: int) -> float:
    """Bytes that come and go inside a block whose forward keeps nothing, at the second projection of the MLP's width.

    Of that width the first projection, this one without its adapter, what the fp32 adapter gives, and the same times
    alpha / rank; of the model's width the residual stream, what the norm gives, and its fp32 copy. PEFT adds the fp32
    of an adapter to a bf16 of a layer that is not quantised, for which a CPU copies the second one to fp32.
    """
    copy = 0 if hold.width == FP32 else FP32
    mixed = copy if hold.quantization == "none" else 0
    each = shape.intermediate * (2 * hold.width + 2 * FP32 + mixed) + shape.hidden * (2 * hold.width + copy)
    return positions * each + _dequantised(shape, hold)


def _returning(shape: Shape, hold: Holding, positions: int) -> float:
    """The same in a backward pass, beside what the block keeps: gradients of two tensors of the MLP's width."""
    return positions * shape.intermediate * 2 * hold.width + _dequantised(shape, hold)


def _dequantised(shape: Shape, hold: Holding) -> float:
    """Bytes of the largest matrix of a block outside of its 4 bits."""
    return hold.width * shape.hidden * shape.intermediate if hold.quantization == "nf4" else 0.0


def _head(shape: Shape, hold: Holding, positions: int, learns: bool = False) -> float:
    """Bytes of the logits that exist at a time: as computed, and two copies in fp32; three where a gradient is made."""
    chunk = min(positions, positions_at_a_time(shape.vocabulary))
    return chunk * shape.vocabulary * (hold.width + (3 if learns else 2) * FP32) + _table_part(shape, hold)


def _decoding(shape: Shape, hold: Holding, work: Work) -> float:
    """Bytes of a rollout: the cache, and one step's logits and what is drawn from them."""
    length = work.prompt + work.response
    length += -length % PAGE if hold.engine == "continuous_batching" else 0
    cache = shape.layers * 2 * shape.kv_heads * shape.head_dim * hold.width * length * work.decoded
    logits = work.decoded * shape.vocabulary * (hold.width + 2 * FP32) + _table_part(shape, hold)
    prompts = min(max(1, work.decoded // work.group_size), prompts_at_a_time(work.prompt, shape.intermediate))
    return cache + max(logits, _passing(shape, hold, prompts * work.prompt))


def decoding_copy(shape: Shape, hold: Holding) -> float:
    """Bytes of the merged copy that responses are decoded with, 0 where there is none; it is kept between rollouts."""
    width = WIDTHS["bfloat16"] if hold.precision == "bf16" else hold.width
    return float(width * (shape.linear_weights + shape.table_weights)) if hold.weights == "merged" else 0.0


def _table_part(shape: Shape, hold: Holding) -> float:
    """Bytes of the part of a table in 8 bits that is dequantised at a time."""
    from gemma_alignment.modeling.embedding import ROWS

    return ROWS * shape.hidden * hold.width if hold.embedding == "int8" else 0.0
