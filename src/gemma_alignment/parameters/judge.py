"""What can be set about the evaluation and its judge (sections ``evaluation`` and ``judge``)."""

from dataclasses import dataclass
from typing import Literal

from gemma_alignment.parameters.places import check_inside
from gemma_alignment.stages import unknown_method

JudgeKind = Literal["auto", "rubric", "openai", "recorded", "none"]


@dataclass(frozen=True)
class EvaluationParameters:
    """Which answers meet."""

    methods: tuple[str, ...] | None
    """Methods to compare, as their folders are named (``ppo``, ``grpo@k4``); null: all found, without variants."""
    seeds: tuple[int, ...] | None
    """Seeds to compare; null: every one found."""
    against_sft: bool
    """Whether every method also meets the SFT model that it started from."""
    max_prompts: int | None
    """Prompts judged for each pair of systems, the same for all; null: every one."""
    prompt_seed: int
    """Draws the prompts when ``max_prompts`` leaves some out."""

    def __post_init__(self) -> None:
        """Refuse settings that compare nothing."""
        if self.methods is not None and not self.methods:
            raise ValueError("methods is empty: name at least one, or set null for every method found")
        for name in self.methods or ():
            if wrong := unknown_method(name):
                raise ValueError(f"methods: {wrong}")
        if self.seeds is not None and not self.seeds:
            raise ValueError("seeds is empty: name at least one, or set null for every seed found")
        if self.max_prompts is not None and self.max_prompts < 1:
            raise ValueError(f"max_prompts must be at least 1 or null, got {self.max_prompts}")


@dataclass(frozen=True)
class Price:
    """What one model charges."""

    model: str
    """The model as ``judge.model`` names it."""
    input_usd_per_million: float
    """US dollars for a million tokens sent."""
    output_usd_per_million: float
    """US dollars for a million tokens received."""
    batch_share: float
    """What part of these prices a batch costs."""
    as_of: str
    """The day this price was read, as YYYY-MM-DD."""

    def __post_init__(self) -> None:
        """Refuse prices that would let the cap leak."""
        if min(self.input_usd_per_million, self.output_usd_per_million, self.batch_share) < 0:
            raise ValueError(f"a price of {self.model} is negative")


@dataclass(frozen=True)
class RubricParameters:
    """The offline judge: it sees the true score through noise."""

    noise: float
    """Standard deviation of the noise on the difference of two scores, in units of the score."""
    position_bias: float
    """What the answer shown first is given, in units of the score."""
    tie_margin: float
    """The widest difference that is a tie, in units of the score."""

    def __post_init__(self) -> None:
        """Refuse a negative spread or margin."""
        if self.noise < 0 or self.tie_margin < 0:
            raise ValueError("noise and tie_margin must not be negative")


@dataclass(frozen=True)
class RemoteParameters:
    """How the judge behind a network is asked: form, pace, patience and money."""

    batch_poll_s: float
    """Seconds between two looks at a batch."""
    batch_size: int
    """Most requests of one batch."""
    temperature: float
    """Sampling temperature; 0 is the least variable, not deterministic."""
    max_output_tokens: int
    """Most tokens of one reply, and what is reserved of the cap for it."""
    timeout_s: float
    """Seconds that an answer may take, from its first to its last byte; after them a request counts as lost."""
    concurrency: int
    """Requests under way at a time."""
    requests_per_minute: int
    """Pace, over all requests of this process."""
    max_attempts: int
    """Times one request is sent before it is left out, when the service fails."""
    backoff_s: float
    """Mean wait before the second attempt is half of this; it doubles with every further one."""
    max_backoff_s: float
    """Longest wait by doubling; a longer wait that the service asks for is honoured."""
    spend_cap_usd: float | None
    """What this data folder's judge may ever cost, calls in flight at their worst price included; null: a
    service of your own that bills nothing."""
    prices: tuple[Price, ...]
    """Dated price table."""

    def __post_init__(self) -> None:
        """Refuse limits that would send nothing, or without end."""
        for name in ("max_output_tokens", "concurrency", "batch_size", "requests_per_minute", "max_attempts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("timeout_s", "batch_poll_s", "backoff_s", "max_backoff_s", "spend_cap_usd"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")
        if not 0 <= self.temperature <= 2:
            raise ValueError(f"temperature must lie in [0, 2], got {self.temperature}")


@dataclass(frozen=True)
class JudgeParameters:
    """Who judges, and how."""

    kind: JudgeKind
    """``auto``: the rubric where answers have a gold score, else none."""
    model: str
    """The model that ``openai`` asks: a pinned snapshot, since a floating name would change the judge."""
    base_url: str | None
    """Address of a compatible service; null: OpenAI's own."""
    mode: Literal["live", "batch"]
    """``live``: one request after the other; ``batch``: in files, within a day, for less."""
    seed: int
    """Of the rubric's noise and of a language model's sampling."""
    attempts: int
    """Replies asked for, in all runs over one cache together, until one parses; then the judgement is unparsed."""
    canaries: int
    """Questions with a known answer, of each sort; 0: none."""
    repeats: int
    """Pairs judged once more with another seed, to see how far the judge agrees with itself; 0: none."""
    labelled_path: str | None
    """Preference pairs that people labelled (JSON lines), which ``openai`` judges too; null: none."""
    labelled_pairs: int
    """Most pairs taken from there, drawn by a hash of their texts."""
    reference_path: str | None
    """Stored verdicts of other judges on pairs that experts labelled (JSON lines), shown beside; null: none."""
    recorded_path: str | None
    """The JSON-lines file that ``recorded`` replays."""
    rubric: RubricParameters
    """The offline judge."""
    remote: RemoteParameters
    """The judge behind a network."""

    def __post_init__(self) -> None:
        """Refuse a judge that lacks what its kind needs."""
        check_inside(
            labelled_path=self.labelled_path, reference_path=self.reference_path, recorded_path=self.recorded_path
        )
        if self.attempts < 1:
            raise ValueError(f"attempts must be at least 1, got {self.attempts}")
        for name in ("canaries", "repeats", "labelled_pairs"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.remote.spend_cap_usd is None and self.base_url is None:
            raise ValueError("remote.spend_cap_usd may be null only with a service of your own in judge.base_url")
        if self.kind == "recorded" and not self.recorded_path:
            raise ValueError("kind is recorded: name the file in judge.recorded_path")
