"""One iteration of an arm on random weights: peak memory and time of each phase.

    python benchmarks/measure.py '[{"shape": [256000, 64, 2, 4, 1, 16, 256], "method": "grpo", ...}, ...]'

Prints one JSON line a row. On a CPU each row is a process of its own, forked when every library is loaded, and the
peaks are those of the resident set (VmHWM, reset before each phase) above what the process held before the first
weight was made. On CUDA they are those of torch's allocator, and one row is taken: what the allocator once reserved
for a row it would keep for the next.
"""

import dataclasses
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
import yaml
from torch import Tensor

from gemma_alignment.config import build
from gemma_alignment.modeling.copies import SeparateCopies
from gemma_alignment.modeling.embedding import shrink_embedding
from gemma_alignment.modeling.loading import load_base
from gemma_alignment.modeling.memory import Holding, Shape, Work
from gemma_alignment.modeling.optimizers import Kind
from gemma_alignment.modeling.roles import SharedBase
from gemma_alignment.rollout.experience import in_parts, role_logprobs
from gemma_alignment.rollout.sampling import sample
from gemma_alignment.schemas import Credit, Experience, Normalizer
from gemma_alignment.training.methods import METHODS
from gemma_alignment.training.policy_optimization import minibatch_of

CONF = Path(__file__).parents[1] / "conf" / "base"
MB = 2**20


class Meter:
    """Peaks and times of phases that may be entered many times; a peak is the largest of them."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.peaks: dict[str, dict[str, float]] = {}
        self.baseline = 0.0 if device.type == "cuda" else _status("RssAnon")

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")
        started = seconds(self.device)
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        found = self.peaks.setdefault(name, {"allocated_mb": 0.0, "reserved_mb": 0.0, "seconds": 0.0})
        found["seconds"] += seconds(self.device) - started
        for key, value in self._peak().items():
            found[key] = max(found[key], value)

    def _peak(self) -> dict[str, float]:
        if self.device.type == "cuda":
            return {
                "allocated_mb": torch.cuda.max_memory_allocated() / MB,
                "reserved_mb": torch.cuda.max_memory_reserved() / MB,
            }
        peak = _status("VmHWM") - _status("RssFile")  # without the code of libraries, which comes in as it is used
        return dict.fromkeys(("allocated_mb", "reserved_mb"), peak - self.baseline)


def seconds(device: torch.device) -> float:
    """A clock: the wall's on CUDA; on a CPU the time that this process computed, whatever else the machine did."""
    return time.perf_counter() if device.type == "cuda" else time.process_time()


def _status(key: str) -> float:
    """A line of /proc/self/status in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(key))


def random_base(shape: Shape, hold: Holding, device: torch.device, kept: Path | None) -> Any:
    """A Gemma of this shape with random weights, quantised by the loader that the study uses.

    What is to be quantised is saved in ``kept`` first, unless another row has done so.
    """
    if hold.quantization == "none":
        return _drawn(shape, hold.dtype).to(device).eval().requires_grad_(False)
    with tempfile.TemporaryDirectory() as own:
        directory = kept or Path(own)
        if not (directory / "config.json").exists():
            _drawn(shape, hold.dtype).save_pretrained(directory)
        model = load_base(str(directory), hold.quantization, hold.dtype, device)
    if device.type == "cpu":  # what is not quantised would stay in the file, mapped, and in no count of memory
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
    return model


def _drawn(shape: Shape, dtype: str) -> Any:
    from transformers import GemmaConfig, GemmaForCausalLM

    config = GemmaConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads, head_dim=shape.head_dim,
        intermediate_size=shape.intermediate, max_position_embeddings=8192, pad_token_id=0, bos_token_id=2,
        eos_token_id=1, dtype=getattr(torch, dtype),
    )  # fmt: skip
    torch.manual_seed(0)
    return GemmaForCausalLM(config).to(getattr(torch, dtype))


def opened(shape: Shape, hold: Holding, critic: bool, device: torch.device, kept: Path | None = None) -> Any:
    """The model with the roles of an arm."""
    lora = SimpleNamespace(rank=hold.rank, alpha=2 * hold.rank, targets="all-linear")

    def make() -> SharedBase:
        base = random_base(shape, hold, device, kept)
        if hold.embedding == "int8":
            shrink_embedding(base)
        return SharedBase(base, lora, 0, hold.checkpointing, cast(Kind, hold.optimizer))

    model = SeparateCopies(make) if hold.sharing == "separate_copies" else make()
    for role in ("policy", "reward", *(("critic",) if critic else ())):
        model.add(role)
    model.holder("reference")
    return model


def iteration(model: Any, method: Any, shape: Shape, hold: Holding, work: Work, optimizers: Any, meter: Meter) -> int:
    """Rollout, scores, one optimizer step: as the loop does it; returns the tokens that were sampled."""
    chance = torch.Generator().manual_seed(1)
    prompts = torch.randint(3, shape.vocabulary, (work.decoded // work.group_size, work.prompt), generator=chance)
    with meter.phase("rollout"), model.decoder("policy", hold.weights, hold.precision) as decoder:
        found = sample(
            decoder, prompts.tolist(), work.group_size, max_new_tokens=work.response, temperature=1.0, stop_ids=(1,),
            pad_id=0, generator=chance, batch_size=work.decoded,
        )  # fmt: skip
        model.count_decoding(found.decoded_tokens)
    batch = found.sequences
    values = None
    with meter.phase("score"):
        with model.role("reward"):
            scores = in_parts(batch, work.rows, model.scores)
        reference = role_logprobs(model, "reference", batch, 1.0, work.rows)
        old = role_logprobs(model, "policy", batch, 1.0, work.rows)
        if method.needs_critic:
            with model.role("critic"):
                values = in_parts(batch, work.rows, model.values) * batch.response_mask
    experience = Experience(
        *batch, ended=found.ended, scores=scores, raw_scores=scores, old_logprobs=old, ref_logprobs=reference,
        values=values, group_size=work.group_size,
    )  # fmt: skip
    _update(model, method, experience, method.assign_credit(experience, 0.05), work, optimizers, meter)
    return int(batch.response_mask.sum())


def _update(
    model: Any, method: Any, experience: Experience, credit: Credit, work: Work, optimizers: Any, meter: Meter
) -> None:
    from gemma_alignment.training.policy_optimization import _on

    whole = minibatch_of(experience, credit, 0.05)
    normalizer = Normalizer.of(whole, work.response)
    outputs: dict[str, Callable[[Any], Tensor]] = {
        "policy": lambda part: method.policy_loss(model.logprobs(part, 1.0)[0], part, normalizer)[0],
        "critic": lambda part: method.value_loss(model.values(part), part, normalizer)[0],
    }
    for piece in whole.split(work.rows):
        micro = _on(model.device, piece)
        for role in optimizers:
            with meter.phase(f"{role} backward"), model.role(role, train=True):
                outputs[role](micro).backward()
    with meter.phase("optimizer"):
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product here: what utilisation is a share of."""
    size = 4096 if device.type == "cuda" else 1024
    a = torch.randn(size, size, device=device, dtype=dtype)
    _ = a @ a
    best = 0.0
    for _ in range(3):
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = seconds(device)
        _ = a @ a
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = max(best, 2 * size**3 / (seconds(device) - started))
    return best


def measured(asked: dict[str, Any]) -> dict[str, Any]:
    """What an iteration takes from the second one on.

    The first one, a short one, is not measured: it makes the moments of the optimizers, asks how states can be computed
    and loads kernels.
    """
    torch.set_num_threads(int(asked.get("threads", 1)))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape, hold, work = Shape(*asked["shape"]), Holding(**asked["hold"]), Work(**asked["work"])
    values = yaml.safe_load((CONF / f"parameters_{asked['method']}.yml").read_text())[asked["method"]]
    method = build(METHODS[asked["method"]], values | {"group_size": work.group_size}, asked["method"])
    rate = matmul_rate(device, getattr(torch, hold.dtype))
    meter, kept = Meter(device), asked.get("kept")
    if device.type == "cuda":
        torch.cuda.empty_cache()
        with meter.phase("load"):
            model = opened(shape, hold, method.needs_critic, device, kept and Path(kept))
    else:  # a random model is built with a head of its own before it is tied: what then stands is what counts
        model = opened(shape, hold, method.needs_critic, device, kept and Path(kept))
        with meter.phase("load"):
            pass
    optimizers = {"policy": model.adam("policy", 1e-5)}
    if method.needs_critic:
        optimizers["critic"] = model.adam("critic", 1e-5)
    settled = dataclasses.replace(work, rows=work.group_size, decoded=work.group_size, prompt=8, response=2)
    iteration(model, method, shape, hold, settled, optimizers, Meter(device))
    model.count_from(0.0)
    tokens = iteration(model, method, shape, hold, work, optimizers, meter)
    took = sum(found["seconds"] for name, found in meter.peaks.items() if name != "load")
    return {
        **asked,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
        "phases": meter.peaks,
        "rates": rates(meter.peaks, work, len(optimizers)),
        "tokens_per_second": tokens / took,
        "matmul_flops": rate,
        "utilisation": model.forward_flops() / took / rate,
    }


def rates(phases: dict[str, dict[str, float]], work: Work, trained: int) -> dict[str, float]:
    """Section ``rates`` of the parameters. The roles that train are scored, and so are reward model and reference."""
    tokens = work.decoded * (work.prompt + work.response)
    updating = sum(found["seconds"] for name, found in phases.items() if "backward" in name or name == "optimizer")
    return {
        "forward_tokens_per_second": (2 + trained) * tokens / phases["score"]["seconds"],
        "train_tokens_per_second": trained * tokens / updating,
        "decode_steps_per_second": work.response / phases["rollout"]["seconds"],
    }


def warm_up(method: str, table: tuple[int, int] = (256_000, 64), dtype: torch.dtype = torch.float32) -> None:
    """Load every library and make its buffers, on a model of no size: none of it is a cost of a model.

    The largest buffers are those of products with the vocabulary; in bf16 a CPU lays the whole table out anew for it.
    """
    weights, states = torch.ones(table, dtype=dtype), torch.ones(32, table[1], dtype=dtype)
    _ = (states @ weights.T).softmax(-1) @ weights
    tiny = {"shape": [64, 16, 1, 2, 1, 8, 16], "work": vars(Work(2, 2, 2, 2, 2)), "method": method}
    measured({**tiny, "hold": vars(Holding("none", "float32", 2, True, "adam", "sft_merged", "one_base", "adapter"))})


def main() -> None:
    rows = json.loads(sys.argv[1])
    if torch.cuda.is_available():
        (row,) = rows
        warm_up(row["method"])
        print(json.dumps(measured(row)))
        return
    for key in sorted({(row["method"], tuple(row["shape"][:2]), row["hold"]["dtype"]) for row in rows}):
        warm_up(*key[:2], getattr(torch, key[2]))
    for row in rows:
        if (child := os.fork()) == 0:
            print(json.dumps(measured(row)), flush=True)
            os._exit(0)
        else:
            os.waitpid(child, 0)


if __name__ == "__main__":
    main()
