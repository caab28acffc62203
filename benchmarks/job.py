"""The job that both sides do: one small model that has learned when to stop, and token ids of one set of data.

    python benchmarks/job.py base FOLDER      # about a minute; mid some minutes

Sizes are those of the measurements that the speed targets were set by: *base* has 0.475 M parameters; *mid* a hidden
size of 256, 6 layers and a vocabulary of 8,192.
"""

import json
import random
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

SIZES = {
    "base": {"hidden_size": 128, "layers": 2, "heads": 4, "intermediate_size": 384, "vocabulary": 768, "steps": 200},
    "mid": {"hidden_size": 256, "layers": 6, "heads": 4, "intermediate_size": 1024, "vocabulary": 8192, "steps": 60},
}
ROWS = 2000
WORLD = SimpleNamespace(noise=0.8, max_skill=0.7, corrupted_share=0.25)


def made(size: str, folder: Path) -> Path:
    """The folder of a size's model and ``data.json``; made where it is not there."""
    here = folder / size
    if not (here / "data.json").exists():
        _make(size, here)
    return here


def _make(size: str, here: Path) -> None:
    from gemma_alignment.modeling.chat import Chat
    from gemma_alignment.modeling.saving import SavedModel
    from gemma_alignment.modeling.tiny import tiny_gemma, train_bpe
    from gemma_alignment.training.pretraining import pretrain
    from gemma_alignment.world.preferences import dialogue, generate_rows

    torch.set_num_threads(1)
    shape = SimpleNamespace(max_positions=512, **SIZES[size])
    rows = list(generate_rows(ROWS, WORLD.noise, WORLD.max_skill, WORLD.corrupted_share, 42))
    texts = (text for row in rows for text in (row["prompt"], row["chosen"][1]["content"]))
    chat = Chat(train_bpe(texts, min(768, shape.vocabulary)))
    model = tiny_gemma(shape, shape.vocabulary, 42)

    def batch(step: int) -> list[list[int]]:
        chance = random.Random(step)
        prompts = [rows[chance.randrange(len(rows))]["prompt"] for _ in range(16)]
        told = [dialogue(p, WORLD.noise, WORLD.max_skill, WORLD.corrupted_share, chance)[0] for p in prompts]
        return [[*chat.encode_prompt(p), *chat.encode_response(a)] for p, a in zip(prompts, told, strict=True)]

    settings = SimpleNamespace(learning_rate=3e-3, warmup_share=0.05, log_every=20, steps=shape.steps)
    for record in pretrain(model, batch, settings, chat.pad_id):
        print(size, record.iteration, record.metrics, file=sys.stderr)
    SavedModel(model, chat.tokenizer).save_pretrained(str(here))
    (here / "data.json").write_text(json.dumps([_tokens(chat, row) for row in rows]))


def _tokens(chat: Any, row: dict[str, Any]) -> dict[str, Any]:
    asked = chat.tokenizer.apply_chat_template(
        [{"role": "user", "content": row["prompt"]}], add_generation_prompt=True, tokenize=False
    )
    answers = {side: chat.encode_response(row[side][1]["content"]) for side in ("chosen", "rejected")}
    return {"prompt": row["prompt"], "asked": asked, "prompt_ids": chat.encode_prompt(row["prompt"]), **answers}


if __name__ == "__main__":
    print(made(sys.argv[1], Path(sys.argv[2])))
