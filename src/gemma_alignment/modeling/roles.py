"""One frozen base that plays policy, reference, reward model and critic as adapters.

Without a chain the base is the merged SFT model, and the reference is the base without an adapter. With one
(:meth:`SharedBase.chain`) the base is the model before SFT: the reference is a frozen copy of the SFT adapter,
the policy starts as another copy of it, reward model and critic are adapters on top of the frozen one.

PEFT lets adapters be switched between a forward and its backward without an error, and then the gradients are
missing or wrong; so a role is a context, and entering a second one inside it is refused.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from gemma_alignment.modeling.adapters import (
    add_adapter,
    copy_adapter,
    lora_config,
    read_adapter,
    read_head,
    unusable,
)
from gemma_alignment.modeling.decoding import lay_side_by_side
from gemma_alignment.modeling.heads import ScalarHead, as_the_model_does, chunked_logprobs, positions_at_a_time
from gemma_alignment.modeling.lora import activate, adapted_layers, quicken, without_adapters
from gemma_alignment.modeling.merging import empty_copy, matmul_weights, write_merged
from gemma_alignment.modeling.optimizers import Kind, adam
from gemma_alignment.modeling.protocols import Precision, Role
from gemma_alignment.modeling.sequences import HasSequences
from gemma_alignment.modeling.states import Packing
from gemma_alignment.modeling.transfers import to_device


class SharedBase:
    """See the module's docstring. Adapters are added by :meth:`add` or :meth:`load`."""

    def __init__(
        self, base: Any, lora: Any, seed: int, gradient_checkpointing: bool = False, optimizer: Kind = "adam"
    ):
        self.device = base.device
        self.model = base
        self.peft: Any = None
        self.heads: dict[str, ScalarHead] = {}
        self._own: dict[str, dict[str, nn.Parameter]] = {}
        self._layers: list[Any] = []
        self._lora = lora
        self._seed = seed
        self._active: Role | None = None
        self._entries = 0
        self._chained = False
        self._merged: Any = None
        self._checkpointing = gradient_checkpointing
        self._optimizer: Kind = optimizer
        self._flops = 0.0
        self.packing = Packing()
        self._head_size = matmul_weights(base.get_output_embeddings())
        self._body_size = matmul_weights(base) - self._head_size

    @property
    def is_exact(self) -> bool:
        """Whether decoding and a training forward give the same log-probabilities: fp32, nothing quantised."""
        return self.model.dtype == torch.float32 and not hasattr(self.model, "hf_quantizer")

    def holder(self, name: Role) -> Self:
        """What holds the adapter of a role: this, whatever the role."""
        return self

    def chain(self, directory: str) -> None:
        """Put the frozen SFT adapter of a directory under every role; before any other adapter.

        Raises:
            UserError: when the files are damaged or belong to another base.
        """
        self.load("reference", directory)
        self._chained = True

    def add(self, name: Role, zero_head: bool = False) -> None:
        """A fresh adapter, so that the role starts as the reference; reward and critic get a head."""
        copied = self._chained and name == "policy"
        config = self.peft.peft_config["reference"] if copied else lora_config(self._lora)
        self.peft = add_adapter(self.model, self.peft, name, config, self._seed)
        self._settle(name, zero_head)
        if copied:
            copy_adapter(self.peft, "reference", name)

    def load(self, name: Role, directory: str) -> None:
        """A frozen adapter (and its head) from a directory in PEFT's layout.

        Raises:
            UserError: when the files are damaged or belong to another base.
        """
        from safetensors import SafetensorError

        try:
            self.peft = read_adapter(self.model, self.peft, name, directory)
            self._settle(name, zero_head=True)
            if name in self.heads:
                read_head(self.heads[name], directory)
        except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
            raise unusable(directory, name, error) from error

    def _settle(self, name: Role, zero_head: bool) -> None:
        self.model = self.peft.get_base_model()
        for key, parameter in self.peft.named_parameters():
            if f".{name}." in key:
                parameter.data = parameter.data.float().to(self.device)  # bf16 masters round small updates away
        if name in ("reward", "critic"):
            generator = torch.Generator().manual_seed(self._seed)
            self.heads[name] = ScalarHead(self.model.config.get_text_config().hidden_size, zero_head, generator).to(
                self.device
            )
        self.peft.requires_grad_(False)
        self._layers = adapted_layers(self.peft)
        quicken(self._layers)
        self._own[name] = {
            **{key: p for key, p in self.peft.named_parameters() if f".{name}." in key},
            **(dict(self.heads[name].named_parameters("head")) if name in self.heads else {}),
        }

    @contextmanager
    def role(self, name: Role, train: bool = False) -> Iterator[None]:
        """Play a role for a forward and its backward.

        Raises:
            RuntimeError: inside another role, where a switch would corrupt the pending backward; at the end,
                when the adapter was switched behind the role's back; and in a backward outside of the entry that
                its forward was made in, or after such a switch.
        """
        if self._active is not None:
            raise RuntimeError(f"cannot become {name!r} inside the role {self._active!r}: finish its backward first")
        self._active = name
        self._entries += 1
        try:
            with torch.set_grad_enabled(train):
                if name == "reference" and not self._chained:
                    with without_adapters(self._layers):
                        yield
                else:
                    self._activate(name)
                    self._prepare(name, train)
                    active = self._adapters()
                    yield
                    self._check_unswitched(name, active)
        finally:
            self._active = None
            self._freeze()
            if self.model.training:
                self.model.eval()

    def _freeze(self) -> None:
        """Nothing trains outside of a role, whatever PEFT switched on: walking its modules would take longer."""
        for own in self._own.values():
            for parameter in own.values():
                parameter.requires_grad_(False)

    def _activate(self, name: Role) -> None:
        wanted = ["reference", name] if self._chained and name in self.heads else [name]
        if self._adapters() != wanted:
            self.peft.base_model.active_adapter = wanted  # of two their sum; only the second one trains
            activate(self._layers, wanted)

    def _check_unswitched(self, name: Role, active: list[str]) -> None:
        """At the end of a role: the same adapters are active as at its beginning."""
        found = self._adapters()
        if found != active:
            raise RuntimeError(
                f"the active adapter is {', '.join(found)} at the end of the role {name!r}: its gradients are missing "
                "or wrong. Enter a role instead of calling set_adapter"
            )

    def _prepare(self, name: Role, train: bool) -> None:
        self._freeze()
        for parameter in self.parameters_of(name):
            parameter.requires_grad_(train)
        if self._checkpointing and train:
            self.model.activation_checkpointing_enable({"use_reentrant": False})
            self.model.disable_input_require_grads()  # for re-entrant checkpoints; every entry would add one more hook
            self.model.train()  # checkpointing runs in train mode only; every dropout is 0
        elif self._checkpointing:
            self.model.activation_checkpointing_disable()

    def named_parameters_of(self, name: Role) -> dict[str, nn.Parameter]:
        """The tensors that training this role changes: its adapter's and, as ``head.…``, its head's."""
        return dict(self._own[name])

    def parameters_of(self, name: Role) -> list[nn.Parameter]:
        """The same without names."""
        return list(self.named_parameters_of(name).values())

    def adam(self, name: Role, rate: float, epsilon: float = 1e-8) -> torch.optim.Optimizer:
        """Adam over what training this role changes, and over nothing else."""
        return adam(self.parameters_of(name), rate, epsilon, self._optimizer, self.device)

    def _hidden(self, batch: HasSequences, wanted: Tensor) -> Tensor:
        """Final hidden states (n, d) at ``wanted`` (B, T + 1): column t is read before response token t."""
        if self._active is None:
            raise RuntimeError("a forward pass needs a role: use `with model.role(...)`")
        states, positions = self.packing.states(self.model, batch, wanted, self.is_exact)
        self._count(self._body_size, positions)
        if states.requires_grad:
            states.register_hook(partial(self._check_backward, self._active, self._entries, self._adapters()))
        return states

    def _count(self, size: int, positions: int) -> None:
        """Add a forward of ``size`` weights over so many positions, and its backward where there will be one."""
        self._flops += (4.0 if torch.is_grad_enabled() else 2.0) * size * positions

    def _adapters(self) -> list[str]:
        return [] if self.peft is None else list(self.peft.base_model.active_adapters)

    def _check_backward(self, name: Role, entry: int, active: list[str], gradient: Tensor) -> None:
        """A backward runs where its forward did: elsewhere the gradients would be none, or another adapter's."""
        if self._active != name or self._entries != entry or self._adapters() != active:
            now = f"in the role {self._active!r}" if self._active else "outside of every role"
            raise RuntimeError(
                f"a backward of the role {name!r} runs {now}, with the adapter {', '.join(self._adapters())}: "
                "it must end before its role does, with its own adapter active"
            )

    def head(self, states: Tensor) -> Tensor:
        """Logits (N, V) of hidden states (N, d): for a few positions at a time, see ``positions_at_a_time``."""
        return as_the_model_does(self.model.get_output_embeddings()(states), self.model.config.get_text_config())

    @property
    def positions_at_a_time(self) -> int:
        """How many positions' logits may exist at once."""
        return positions_at_a_time(self.model.config.get_text_config().vocab_size)

    def logprobs(self, batch: HasSequences, temperature: float) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities (B, T) of the response tokens, 0 where the mask is False; in training their entropies."""
        states, mask = self.response_states(batch), to_device(batch.response_mask, self.device)
        tokens = to_device(batch.response_tokens, self.device)[mask]
        self._count(self._head_size, len(tokens))
        frozen = not any(p.requires_grad for p in self.model.get_output_embeddings().parameters())
        found, spread = chunked_logprobs(states, tokens, self.head, temperature, self.positions_at_a_time, frozen)
        zeros = torch.zeros(mask.shape, device=self.device)
        return zeros.masked_scatter(mask, found), None if spread is None else zeros.masked_scatter(mask, spread)

    def response_states(self, batch: HasSequences) -> Tensor:
        """Hidden states (N, d) that the real response tokens are predicted from."""
        return self._hidden(batch, pad(to_device(batch.response_mask, self.device), (0, 1)))

    def values(self, batch: HasSequences) -> Tensor:
        """The critic's estimate (B, T) before each response token, 0 where the mask is False."""
        found, mask = self.heads["critic"](self.response_states(batch)), to_device(batch.response_mask, self.device)
        return torch.zeros(mask.shape, device=self.device).masked_scatter(mask, found)

    def scores(self, batch: HasSequences) -> Tensor:
        """The reward head's output (B,) at the last response token."""
        lengths, places = batch.response_mask.sum(1, keepdim=True), torch.arange(batch.response_mask.shape[1] + 1)
        return self.heads["reward"](self._hidden(batch, to_device(places == lengths.cpu(), self.device)))

    def forward_flops(self) -> float:
        """2 N operations per token of a forward, 2 N more for the backward through a frozen base.

        N are the weights of the linear layers that the token passes: the head's only where logits are read.
        """
        return self._flops

    def count_from(self, flops: float) -> None:
        """Let the count of operations go on from here: from an earlier attempt's, or as before what does not count."""
        self._flops = flops

    @contextmanager
    def decoder(
        self, role: Role = "policy", weights: str = "merged", precision: Precision = "as_held"
    ) -> Iterator[Any]:
        """The causal language model that samples for a role: a merged copy, or the role itself."""
        dtype = torch.bfloat16 if precision == "bf16" else self.model.dtype
        as_is = role == "reference" and dtype == self.model.dtype and not hasattr(self.model, "hf_quantizer")
        with self.role(role):
            if weights == "adapter" or as_is:
                yield self.model
            else:
                if self._merged is None or self._merged.dtype != dtype:
                    self._merged = lay_side_by_side(empty_copy(self.model, dtype))
                bare = role == "reference" and not self._chained
                yield write_merged(self.model, None if bare else role, self._merged)

    def count_decoding(self, tokens: int) -> None:
        """Add the forward passes of sampling to the count of operations."""
        self._flops += 2.0 * (self._body_size + self._head_size) * tokens

    def merged(self, role: Role, dtype: torch.dtype) -> Any:
        """A plain model of its own with the role's adapter added to the dequantised base."""
        return write_merged(self.model, role, empty_copy(self.model, dtype))
