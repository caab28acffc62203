"""Nodes from a source of preference rows to data and base model of every later stage."""

import hashlib
import logging
import random
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from sys import intern
from tempfile import TemporaryDirectory
from typing import Any

from gemma_alignment.config import build
from gemma_alignment.errors import UserError
from gemma_alignment.parameters.data import (
    PreferencesParameters,
    PretrainingParameters,
    TinyModelParameters,
    TokenizerParameters,
    WorldParameters,
)
from gemma_alignment.pipelines.data_processing.lines import Lines, json_line
from gemma_alignment.pipelines.data_processing.rows import in_order, prompts_of, sort_lines, text_of
from gemma_alignment.pipelines.data_processing.said import counts_of, log_counts, too_few
from gemma_alignment.pipelines.data_processing.seen import Seen
from gemma_alignment.pipelines.views import View

logger = logging.getLogger(__name__)

Row = dict[str, Any]
Rows = Sequence[Mapping[str, Any]]
SCORE = re.compile(r"Score:\s*([0-9]+(?:\.[0-9]+)?)/10")


def collect_preferences(
    source: Any, preferences: dict[str, Any], world: dict[str, Any], prepare_seed: int
) -> Lines:
    """The rows as they come, a line each: generated, from the user's file with its blank lines, or from the hub."""
    found = _rows(source, preferences, world, prepare_seed)
    return Lines(row if isinstance(row, bytes) else json_line(row) for row in found)


def _rows(source: Any, preferences: dict[str, Any], world: dict[str, Any], prepare_seed: int) -> Iterable[Any]:
    settings = build(PreferencesParameters, preferences, "preferences")
    if settings.source == "embedded":
        from gemma_alignment.world.preferences import generate_rows

        of = build(WorldParameters, world, "world")
        noise, skill, broken = of.noise, of.max_skill, of.corrupted_share
        return generate_rows(settings.sample_size, noise, skill, broken, prepare_seed, of.unseen_tasks)
    return source.rows(settings, prepare_seed)


def validate_rows(collected_rows: Sequence[bytes], preferences: dict[str, Any]) -> tuple[View[Row], View[Row]]:
    """Sort every line into kept and rejected, each rejection with line number and reason."""
    settings = build(PreferencesParameters, preferences, "preferences")
    return sort_lines(collected_rows, settings.max_line_bytes, *settings.score_range)


def train_tokenizer(
    kept: Rows, tokenizer: dict[str, Any], modeling: dict[str, Any], preferences: dict[str, Any], prepare_seed: int
) -> Any:
    """A byte-level BPE tokenizer on the kept rows and their chat markup, or the pinned one of a hub model."""
    settings = build(TokenizerParameters, tokenizer, "tokenizer")
    if modeling["base_model"] != "pretrain":
        return _hub_tokenizer(modeling)
    from gemma_alignment.modeling.tiny import train_bpe
    from gemma_alignment.world.remarks import remark

    chance = random.Random(f"{prepare_seed}/tokenizer")

    def texts() -> Iterator[str]:
        for item in kept:
            row = item["row"]
            yield row["prompt"]
            yield row["chosen"][-1]["content"]
            yield row["rejected"][-1]["content"]
            for message in to_genrm_record(row)["messages"]:
                yield message["content"]
            yield from ("user\n", "model\n")
            if preferences["source"] == "embedded":
                yield remark(row["prompt"], row["rejected"][-1]["content"], 1.0, chance)

    return train_bpe(texts(), settings.vocabulary_size)


def _hub_tokenizer(modeling: dict[str, Any]) -> Any:
    """The tokenizer of a pinned hub model.

    Raises:
        UserError: when the hub does not hand it out.
    """
    from transformers import AutoTokenizer

    from gemma_alignment.modeling.hub import check_access, refused

    name, revision = modeling["base_model"], modeling["revision"]
    check_access(name, revision)
    try:
        return AutoTokenizer.from_pretrained(name, revision=revision)
    except (OSError, ValueError) as error:
        raise refused(name, revision, error) from error


def limit_lengths(
    kept: Rows, rejected: Rows, tokenizer: Any, preferences: dict[str, Any]
) -> tuple[View[Row], View[Row], dict[str, int]]:
    """Leave out rows with an over-long prompt or answer; nothing is ever cut.

    Returns: rows kept, rows rejected, and the counts of both and of what else is odd in them.

    Raises:
        UserError: when fewer than ``preferences.min_rows`` rows remain.
    """
    from gemma_alignment.modeling.loading import load_chat

    settings = build(PreferencesParameters, preferences, "preferences")
    with TemporaryDirectory() as folder:  # as every later stage reads it
        tokenizer.save_pretrained(folder)
        chat = load_chat(folder)
    short, long, reasons = array("I"), array("I"), []
    for i, item in enumerate(kept):
        reason = _too_long(chat, item["row"], settings)
        if reason is None:
            short.append(i)
        else:
            long.append(i)
            reasons.append(intern(reason))
    good = View(kept, lambda item: item["row"], short)
    bad = in_order(rejected, View(range(len(long)), lambda i: {"reason": reasons[i], **kept[long[i]]}))
    if len(good) < settings.min_rows:
        origin = settings.path if settings.source == "jsonl" else f"the source {settings.source}"
        raise UserError(too_few(good, bad, str(origin), settings.min_rows))
    counts = counts_of(good, bad)
    log_counts(counts, bad)
    return good, bad, counts


def _too_long(chat: Any, row: Mapping[str, Any], settings: PreferencesParameters) -> str | None:
    prompt = len(chat.encode_prompt(row["prompt"]))
    if prompt > settings.max_prompt_tokens:
        return f"prompt of {prompt} tokens is longer than max_prompt_tokens {settings.max_prompt_tokens}"
    answer = max(len(chat.encode_response(row[name][-1]["content"])) for name in ("chosen", "rejected"))
    if answer > settings.max_response_tokens:
        return f"answer of {answer} tokens is longer than max_response_tokens {settings.max_response_tokens}"
    return None


def _held_out(prompt_id: str, fraction: float, seed: int) -> bool:
    digest = hashlib.sha256(f"{seed}/{prompt_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < fraction * 2**64


def split_preferences(
    rows: Rows, preferences: dict[str, Any], prepare_seed: int
) -> tuple[View[Row], View[Row], View[Row], View[Row], dict[str, int]]:
    """Train and held-out pairs, split by prompt, the distinct prompts of each, and how many pairs they are.

    Held out are the prompts of ``unseen_sources``, all of them, and by a hash a part of the others. A text that
    stands under several prompt_ids is one prompt.

    Raises:
        UserError: when one side is empty.
    """
    settings = build(PreferencesParameters, preferences, "preferences")
    unseen = _unseen(rows, settings.unseen_sources)
    first: Seen[str] = Seen()
    kept, held_out = array("I"), array("I")
    for i, row in enumerate(rows):
        key = first.first(text_of(row), row["prompt_id"])
        out = unseen.get(text_of(row)) is not None or _held_out(key, settings.eval_fraction, prepare_seed)
        (held_out if out else kept).append(i)
    train, test = View(rows, dict, kept), View(rows, dict, held_out)
    if not train or not test:
        raise UserError(
            f"The split leaves {len(train)} training and {len(test)} held-out pairs of {len(rows)}. "
            "Give more rows, another preferences.eval_fraction, or fewer preferences.unseen_sources."
        )
    sizes = {"data/train_pairs": len(train), "data/eval_pairs": len(test)}
    return train, test, prompts_of(train, Seen()), prompts_of(test, unseen), sizes


def _unseen(rows: Rows, sources: Sequence[str]) -> Seen[str]:
    """The texts of the prompts with a row of one of ``sources``, and which; one that no row names is said.

    Where no row names any source, ``sources`` were not meant for these rows.
    """
    found: Seen[str] = Seen()
    there = set()
    for row in rows:
        if (source := row.get("source")) is None:
            continue
        there.add(source)
        if source in sources:
            found.first(text_of(row), source)
    for source in sources:
        if there and source not in there:
            logger.info("No row is of the source %r, which preferences.unseen_sources holds out whole.", source)
    return found


def write_down(
    collected_rows: Lines, dropped_rows: Rows, counts: dict[str, int], sizes: dict[str, int], trained_tokenizer: Any
) -> tuple[Lines, Rows, dict[str, int], Any]:
    """Hand on what is kept beside the pairs, once there are any: a source without writes over nothing."""
    return collected_rows, dropped_rows, {**counts, **sizes}, trained_tokenizer


def genrm_question(prompt: str, response: str) -> str:
    """The user text that asks for a response's score."""
    return f"User: {prompt}\n\nAssistant: {response}\n\nAnalyze the quality of the response."


def to_genrm_record(row: Mapping[str, Any]) -> dict[str, Any]:
    """The GenRM-style training record of a row; only ``score_chosen`` is used."""
    user = genrm_question(row["prompt"], row["chosen"][-1]["content"])
    score = f"Score: {row['score_chosen']:.1f}/10. The response is helpful, harmless, and honest."
    return {"messages": [{"role": "user", "content": user}, {"role": "assistant", "content": score}]}


def parse_score(text: str) -> float | None:
    """The score x of ``Score: x/10``, None when the text has none."""
    found = SCORE.search(text)
    return float(found.group(1)) if found else None


def make_genrm_records(preferences_train: Rows) -> Iterator[dict[str, Any]]:
    """``train.jsonl``: a GenRM record for each training pair."""
    return (to_genrm_record(row) for row in preferences_train)


def pretrain_base(
    preferences_train: Rows, tokenizer: str, tiny_model: dict[str, Any], pretraining: dict[str, Any],
    world: dict[str, Any], preferences: dict[str, Any], modeling: dict[str, Any], runtime: dict[str, Any],
    prepare_seed: int, run_log: Any, checkpoints: Any,
) -> tuple[Any, list[Row]]:  # fmt: skip
    """Pre-train the tiny Gemma on dialogues of mixed quality, or point to the pinned hub model.

    Pre-training goes on from a checkpoint where there is one.

    Returns: the base model and the history (one line without a loss where nothing is trained).
    """
    from gemma_alignment.modeling.loading import load_chat
    from gemma_alignment.modeling.saving import HubReference, SavedModel
    from gemma_alignment.modeling.tiny import tiny_gemma
    from gemma_alignment.pipelines.models import prepare
    from gemma_alignment.schemas import UpdateRecord
    from gemma_alignment.training.checkpoints import train_on
    from gemma_alignment.training.pretraining import pretrain

    shape = build(TinyModelParameters, tiny_model, "tiny_model")
    settings = build(PretrainingParameters, pretraining, "pretraining")
    if modeling["base_model"] != "pretrain":
        run_log.append(UpdateRecord(0, {}, {}))
        return HubReference(modeling["base_model"], modeling["revision"]), run_log.rows("history")
    prepare(runtime)
    chat = load_chat(tokenizer)
    of = build(WorldParameters, world, "world") if preferences["source"] == "embedded" else None
    model = tiny_gemma(shape, len(chat.tokenizer), prepare_seed)

    def batch(step: int) -> list[list[int]]:
        return _dialogues(chat, preferences_train, settings.batch_size, of, prepare_seed, step)

    train_on(checkpoints, run_log, settings, lambda start: pretrain(model, batch, settings, chat.pad_id, start))
    return SavedModel(model, chat.tokenizer), run_log.rows("history")


def _dialogues(chat: Any, rows: Rows, count: int, world: Any, seed: int, step: int) -> list[list[int]]:
    """Token ids of a step's dialogues: fresh answers of the world with remarks, or chosen and rejected ones alike."""
    chance = random.Random(f"{seed}/pretraining/{step}")
    found = []
    for _ in range(count):
        row = rows[chance.randrange(len(rows))]
        if world is None:
            text = row[chance.choice(("chosen", "rejected"))][-1]["content"]
            found.append([*chat.encode_prompt(row["prompt"]), *chat.encode_response(text)])
        else:
            from gemma_alignment.world.preferences import dialogue

            said = dialogue(row["prompt"], world.noise, world.max_skill, world.corrupted_share, chance)
            found.append(chat.encode_dialogue([row["prompt"], *said]))
    return found
