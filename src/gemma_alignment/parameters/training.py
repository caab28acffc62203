"""Parameters of the models and of every training stage."""

from dataclasses import dataclass
from typing import Literal

from gemma_alignment.parameters.places import check_pinned


def check_positive(**values: float) -> None:
    """Refuse values that are not above 0.

    Raises:
        ValueError: names the first of them.
    """
    for name, value in values.items():
        if value <= 0:
            raise ValueError(f"{name} is {value}, but must be above 0")


def check_share(**values: float) -> None:
    """Refuse values outside [0, 1].

    Raises:
        ValueError: names the first of them.
    """
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}, but a share lies between 0 and 1")


def check_checkpoints(every: int, log_every: int) -> None:
    """Checkpoints are taken where a line of the history ends.

    Raises:
        ValueError: for a rhythm that the lines do not meet.
    """
    if every <= 0 or every % log_every:
        raise ValueError(f"checkpoint_every is {every}, but must be a multiple of log_every {log_every}")


@dataclass(frozen=True)
class LoraParameters:
    """Low-rank adapters: W + (alpha / rank) · B A (Hu et al., 2021)."""

    rank: int
    """Inner dimension of each adapter."""
    alpha: int
    """Scale of an adapter's output, relative to its rank."""
    targets: str | tuple[str, ...]
    """Names of the linear layers that get one, or ``all-linear``."""

    def __post_init__(self) -> None:
        check_positive(rank=self.rank, alpha=self.alpha)


@dataclass(frozen=True)
class ModelingParameters:
    """The one base model that every role shares."""

    base_model: str
    """``pretrain`` makes the tiny Gemma here; anything else is a model id of the hub."""
    revision: str | None
    """The pinned commit of a hub model."""
    quantization: Literal["none", "nf4"]
    """How the frozen base is held: as saved, or in 4 bits with double quantisation (QLoRA)."""
    dtype: Literal["float32", "bfloat16"]
    """Computation and storage type of what is not quantised; LoRA weights are always float32."""
    embedding: Literal["as_saved", "int8"]
    """How embedding and tied head are held; in 8 bits the SFT stage measures what it costs in perplexity."""
    gradient_checkpointing: bool
    """Recompute activations in the backward pass: slower, far less memory."""
    optimizer: Literal["adam", "paged_adam_8bit"]
    """Adam's moments in float32, or in 8 bits and on a GPU in pageable memory."""
    rl_base: Literal["sft_merged", "sft_adapter"]
    """What policy optimisation starts from: the merged SFT model, or base and SFT adapter, never merged."""
    sharing: Literal["one_base", "separate_copies"]
    """One frozen base for every role, or one each: the same numbers, several times the memory."""
    sharding: Literal["none", "base"]
    """What each of several processes that train one policy holds of the base: all of it, or a share (experimental)."""
    lora: LoraParameters
    """Shape of every adapter."""

    def __post_init__(self) -> None:
        check_pinned(revision=self.revision)
        if self.base_model != "pretrain" and not self.revision:
            raise ValueError(f"base_model {self.base_model!r} needs a pinned revision (a commit hash of the hub)")
        for name, needed in (("quantization", "none"), ("embedding", "as_saved"), ("sharing", "one_base")):
            if self.sharding == "base" and getattr(self, name) != needed:
                raise ValueError(
                    f"sharding is 'base', which goes with {name} {needed!r} alone, but {name} is "
                    f"{getattr(self, name)!r}: set modeling.{name}={needed} or modeling.sharding=none"
                )


@dataclass(frozen=True)
class RuntimeParameters:
    """Where and with how much of the machine to compute."""

    device: Literal["auto", "cpu", "cuda"]
    """``auto`` takes a GPU when there is one."""
    threads: int
    """Threads of one process: parallel runs are processes, so one each."""

    def __post_init__(self) -> None:
        check_positive(threads=self.threads)


@dataclass(frozen=True)
class SFTParameters:
    """Supervised fine-tuning on chosen responses and GenRM records."""

    learning_rate: float
    """Peak of AdamW's learning rate; linear warm-up, then cosine to 0."""
    warmup_share: float
    """Part of the steps spent in warm-up."""
    epochs: int
    """Passes over the mixture."""
    batch_size: int
    """Sequences per optimizer step."""
    microbatch_size: int
    """Sequences per forward pass."""
    max_grad_norm: float
    """Clip the gradient's norm to this."""
    chosen_share: float
    """Part of the chosen responses that enter the mixture."""
    genrm_share: float
    """Part of the GenRM records that enter the mixture."""
    eval_pairs: int
    """Held-out chosen responses whose perplexity is measured before and after."""
    log_every: int
    """Steps per line of the history."""
    checkpoint_every: int
    """Steps between checkpoints on disk; an interruption saves one too."""
    checkpoints_kept: int
    """How many of them stay."""

    def __post_init__(self) -> None:
        check_positive(
            learning_rate=self.learning_rate, epochs=self.epochs, batch_size=self.batch_size,
            microbatch_size=self.microbatch_size, max_grad_norm=self.max_grad_norm,
            eval_pairs=self.eval_pairs, log_every=self.log_every, checkpoints_kept=self.checkpoints_kept,
        )  # fmt: skip
        check_checkpoints(self.checkpoint_every, self.log_every)
        check_share(warmup_share=self.warmup_share, chosen_share=self.chosen_share, genrm_share=self.genrm_share)
        if self.chosen_share + self.genrm_share == 0:
            raise ValueError("chosen_share and genrm_share are both 0: nothing to train on")


@dataclass(frozen=True)
class RewardModelParameters:
    """Bradley-Terry training of the reward model."""

    learning_rate: float
    """Peak of AdamW's learning rate; linear warm-up, then cosine to 0."""
    warmup_share: float
    """Part of the steps spent in warm-up."""
    epochs: int
    """Passes over the pairs."""
    batch_size: int
    """Pairs per optimizer step."""
    microbatch_size: int
    """Pairs per forward pass."""
    max_grad_norm: float
    """Clip the gradient's norm to this."""
    drop_equal_scores: bool
    """Leave out pairs whose two scores are equal: their order means nothing."""
    normalizer_prompts: int
    """Training prompts whose SFT responses give the normaliser's mean and sd."""
    genrm_pairs: int
    """Held-out pairs whose answers the SFT model is asked to score too; 0: none."""
    log_every: int
    """Steps per line of the history."""
    checkpoint_every: int
    """Steps between checkpoints on disk; an interruption saves one too."""
    checkpoints_kept: int
    """How many of them stay."""

    def __post_init__(self) -> None:
        check_positive(
            learning_rate=self.learning_rate, epochs=self.epochs, batch_size=self.batch_size,
            microbatch_size=self.microbatch_size, max_grad_norm=self.max_grad_norm,
            normalizer_prompts=self.normalizer_prompts, log_every=self.log_every,
            checkpoints_kept=self.checkpoints_kept,
        )  # fmt: skip
        check_checkpoints(self.checkpoint_every, self.log_every)
        check_share(warmup_share=self.warmup_share)
        if self.genrm_pairs < 0:
            raise ValueError(f"genrm_pairs is {self.genrm_pairs}, but cannot be negative")


@dataclass(frozen=True)
class PolicyOptimizationParameters:
    """What every arm shares: budget, optimizer, evaluation, checkpoints."""

    num_iterations: int
    """Iterations of sampling and updating."""
    responses_per_iteration: int
    """The budget of an iteration; the number of prompts follows by exact division."""
    minibatch_size: int
    """Responses per optimizer step."""
    microbatch_size: int
    """Responses per forward pass."""
    learning_rate: float
    """Adam's learning rate of the policy adapter; falls linearly to 0."""
    critic_learning_rate: float
    """The same for the critic's adapter and head."""
    adam_epsilon: float
    """Adam's denominator offset (1e-5 as in the PPO reference implementations)."""
    max_grad_norm: float
    """Clip the gradient's norm to this, policy and critic apart."""
    missing_eos_penalty: float
    """Taken from the score of a response that was cut off, in every arm."""
    eval_every: int
    """Iterations between evaluations on held-out prompts."""
    eval_prompts: int
    """Held-out prompts of an evaluation during training."""
    samples_per_evaluation: int
    """Responses kept for reading at each evaluation."""
    checkpoint_every: int
    """Iterations between checkpoints on disk; an interruption saves one too."""
    checkpoints_kept: int
    """How many of them stay."""

    def __post_init__(self) -> None:
        check_positive(
            num_iterations=self.num_iterations, responses_per_iteration=self.responses_per_iteration,
            minibatch_size=self.minibatch_size, microbatch_size=self.microbatch_size,
            learning_rate=self.learning_rate, critic_learning_rate=self.critic_learning_rate,
            adam_epsilon=self.adam_epsilon, max_grad_norm=self.max_grad_norm,
            eval_every=self.eval_every, eval_prompts=self.eval_prompts, checkpoint_every=self.checkpoint_every,
            checkpoints_kept=self.checkpoints_kept,
        )  # fmt: skip
        if self.responses_per_iteration % self.minibatch_size:
            raise ValueError(
                f"minibatch_size {self.minibatch_size} does not divide responses_per_iteration "
                f"{self.responses_per_iteration}: every optimizer step must see equally many responses"
            )

    def prompts_per_iteration(self, group_size: int) -> int:
        """``responses_per_iteration / group_size``, which must be exact.

        Raises:
            ValueError: when the division leaves a rest.
        """
        prompts, rest = divmod(self.responses_per_iteration, group_size)
        if rest:
            raise ValueError(
                f"group_size {group_size} does not divide responses_per_iteration "
                f"{self.responses_per_iteration}: choose a divisor, so that every arm spends the same budget"
            )
        return prompts


@dataclass(frozen=True)
class KLControlParameters:
    """The adaptive KL controller, one for every arm."""

    schedule: tuple[float, ...]
    """Start and floor of the coefficient in each phase of equal length."""
    target: float
    """KL to the reference to steer towards, in nats per response."""
    horizon: int
    """Responses over which a full correction is made."""
    max_rise: float
    """Largest relative rise of the coefficient per horizon."""
    max_fall: float
    """Largest relative fall of the coefficient per horizon."""
    ceiling: float
    """Largest coefficient, in units of the normalised score per nat."""

    def __post_init__(self) -> None:
        check_positive(target=self.target, horizon=self.horizon)
        check_share(max_fall=self.max_fall)
        if self.max_rise < 0:
            raise ValueError(f"max_rise is {self.max_rise}, but cannot be negative")
        if not self.schedule or min(self.schedule) < 0:
            raise ValueError(f"schedule {self.schedule} needs at least one phase and no negative value")
        if self.ceiling < max(self.schedule):
            raise ValueError(f"ceiling is {self.ceiling}, below a phase's value, {max(self.schedule)}")


@dataclass(frozen=True)
class ScoreNormalizationParameters:
    """Exponential moving statistics of the scores."""

    decay: float
    """Weight of the past in an iteration's update."""

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay is {self.decay}, but must lie in [0, 1)")
