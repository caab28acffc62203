"""The toy policy trained by several processes of this machine, and what they leave."""

import json
import multiprocessing
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from torch import Tensor, distributed

from gemma_alignment.schemas import TrainingState
from gemma_alignment.training import policy_optimization

FORK = multiprocessing.get_context("fork")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def together(count: int, work: Callable[..., Any], *words: Any, patience: float = 240.0) -> Path:
    """The folder in which so many processes leave what ``work(rank, count, folder, *words)`` does.

    Each has ``patience`` seconds once the one before it has ended.
    """
    folder, port = Path(mkdtemp(prefix="processes-")), free_port()
    workers = [
        FORK.Process(target=_one, args=(rank, count, port, work, folder, *words), daemon=True) for rank in range(count)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(patience)
    codes = [worker.exitcode for worker in workers]
    for worker in workers:
        worker.kill()
    assert codes == [0] * count  # None: it still waits
    return folder


def _one(rank: int, count: int, port: int, work: Callable[..., Any], folder: Path, *words: Any) -> None:
    torch.set_num_threads(1)
    if count > 1:
        distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=count)
    work(rank, count, folder, *words)
    if count > 1:
        distributed.destroy_process_group()


def leave(
    rank: int, folder: Path, toy: policy_optimization.Run, weights: Callable[[], Mapping[str, Tensor]],
    start: dict[str, Any] | None,
) -> None:  # fmt: skip
    """Train; leaves what the first process found, and of every process the weights at the end."""
    gradients: list[dict[str, Tensor]] = []
    step = policy_optimization.clipped

    def clipped(parameters: Any, *words: Any) -> float:
        gradients.append({name: parameter.grad.clone() for name, parameter in parameters.items()})
        return step(parameters, *words)

    policy_optimization.clipped = clipped  # type: ignore[assignment]
    if start is not None and rank > 0:
        start["numbers"]["budget"]["flops"] = 0.0  # as another process hears it
    records = list(policy_optimization.optimize(toy, start and TrainingState(**start)))
    torch.save(weights(), folder / f"weights-{rank}.pt")
    if rank == 0:
        (folder / "metrics.json").write_text(json.dumps([record.metrics for record in records]))
        torch.save(gradients[0], folder / "gradients.pt")
        torch.save([vars(record.state) for record in records], folder / "states.pt")


def read(folder: Path, name: str) -> Any:
    return torch.load(folder / name, weights_only=True)


def metrics(folder: Path) -> list[dict[str, float]]:
    return json.loads((folder / "metrics.json").read_text())
