"""Parameters of the data, the embedded world, the tiny model and its pre-training."""

from dataclasses import dataclass
from typing import Literal

from gemma_alignment.parameters.places import check_inside, check_pinned
from gemma_alignment.parameters.training import check_checkpoints, check_positive, check_share

MOST_UNSEEN_TASKS = 6
"""One of each kind of thing in the embedded world."""


@dataclass(frozen=True)
class PreferencesParameters:
    """Where preference pairs come from and which rows are good enough."""

    source: Literal["embedded", "jsonl", "huggingface"]
    """The generated world, a file of the user's, or a dataset of the hub."""
    path: str | None
    """The file of the source ``jsonl``."""
    repository: str | None
    """The dataset of the source ``huggingface``."""
    revision: str | None
    """Its pinned commit."""
    split: str
    """Its split."""
    sample_size: int
    """Rows to generate, or to sample from the hub."""
    eval_fraction: float
    """Part of the prompts held out."""
    unseen_sources: tuple[str, ...]
    """Every prompt with a row of these sources is held out: nothing of its kind is trained on."""
    min_rows: int
    """Stop when fewer rows remain."""
    score_range: tuple[float, float]
    """Lowest and highest score a row may carry."""
    max_prompt_tokens: int
    """Longer prompts are rejected, never cut."""
    max_response_tokens: int
    """Rows with a longer answer are rejected."""
    max_line_bytes: int
    """Longer lines are rejected unparsed."""

    def __post_init__(self) -> None:
        check_inside(path=self.path)
        check_pinned(revision=self.revision)
        if self.source == "jsonl" and not self.path:
            raise ValueError("source jsonl needs preferences.path, the file with the rows")
        if self.source == "huggingface" and not (self.repository and self.revision):
            raise ValueError("source huggingface needs preferences.repository and a pinned preferences.revision")
        if not 0 < self.eval_fraction < 1:
            raise ValueError(f"eval_fraction is {self.eval_fraction}, but must lie between 0 and 1")
        if self.sample_size < 1 or self.min_rows < 1:
            raise ValueError("sample_size and min_rows must be at least 1")
        low, high = self.score_range
        if not low < high:
            raise ValueError(f"score_range is [{low}, {high}], but must be two numbers, the lower one first")


@dataclass(frozen=True)
class WorldParameters:
    """The embedded world."""

    noise: float
    """Sd of the error of a written score, in points of gold."""
    max_skill: float
    """Writers' skills are uniform from 0 to this."""
    corrupted_share: float
    """Part of the pairs in which one answer is broken."""
    unseen_tasks: int
    """Tasks, each a number of a kind of thing, whose rows are of the source ``new task``."""

    def __post_init__(self) -> None:
        check_share(max_skill=self.max_skill, corrupted_share=self.corrupted_share)
        if self.noise < 0:
            raise ValueError(f"noise is {self.noise}, but a standard deviation cannot be negative")
        if not 0 <= self.unseen_tasks <= MOST_UNSEEN_TASKS:
            raise ValueError(
                f"unseen_tasks is {self.unseen_tasks}, but there are {MOST_UNSEEN_TASKS} kinds of things: "
                f"give 0 to {MOST_UNSEEN_TASKS}"
            )


@dataclass(frozen=True)
class TokenizerParameters:
    """The byte-level BPE tokenizer."""

    vocabulary_size: int
    """Entries, the special tokens and 256 bytes included."""

    def __post_init__(self) -> None:
        if self.vocabulary_size < 400:
            raise ValueError(f"vocabulary_size is {self.vocabulary_size}, but special tokens and bytes take 364")


@dataclass(frozen=True)
class TinyModelParameters:
    """The shape of the tiny Gemma."""

    hidden_size: int
    """Width."""
    layers: int
    """Depth."""
    heads: int
    """Attention heads; one key-value head serves all, as in Gemma 2B."""
    intermediate_size: int
    """Width of the gated MLP."""
    max_positions: int
    """Longest sequence."""

    def __post_init__(self) -> None:
        check_positive(
            hidden_size=self.hidden_size, layers=self.layers, heads=self.heads,
            intermediate_size=self.intermediate_size, max_positions=self.max_positions,
        )  # fmt: skip
        if self.hidden_size % (2 * self.heads):
            raise ValueError(
                f"hidden_size {self.hidden_size} does not give each of {self.heads} heads an even width: choose a "
                f"multiple of {2 * self.heads}"
            )


@dataclass(frozen=True)
class PretrainingParameters:
    """Language-model pre-training of the tiny Gemma on dialogues of mixed quality."""

    steps: int
    """Optimizer steps."""
    batch_size: int
    """Dialogues per step."""
    learning_rate: float
    """Peak rate."""
    warmup_share: float
    """Part of the steps in warm-up."""
    log_every: int
    """Steps per line of the history."""
    checkpoint_every: int
    """Steps between checkpoints on disk; an interruption saves one too."""
    checkpoints_kept: int
    """How many of them stay."""

    def __post_init__(self) -> None:
        check_positive(
            steps=self.steps, batch_size=self.batch_size, learning_rate=self.learning_rate,
            log_every=self.log_every, checkpoints_kept=self.checkpoints_kept,
        )  # fmt: skip
        check_share(warmup_share=self.warmup_share)
        check_checkpoints(self.checkpoint_every, self.log_every)
