"""Compare the finished runs and write the report."""

import importlib.metadata
import logging
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from gemma_alignment.config import build
from gemma_alignment.parameters.reporting import ProtocolParameters, ReportingParameters

if TYPE_CHECKING:
    from gemma_alignment.report.plotting import Figure
    from gemma_alignment.report.runs import Run, RunKey
    from gemma_alignment.report.win_rates import Outcomes

logger = logging.getLogger(__name__)

Partitions = Mapping[str, Any]
PACKAGES = (
    "gemma-alignment",
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "numpy",
    "scipy",
    "kedro",
    "mlflow",
)


def compare(
    histories: Partitions,
    timings: Partitions,
    responses: Partitions,
    run_cards: Partitions,
    judgements: Iterable[Mapping[str, Any]],
    judge_card: Mapping[str, Any],
    eval_scores: Iterable[Mapping[str, Any]],
    prompts_eval: Iterable[Mapping[str, Any]],
    row_counts: Mapping[str, Any],
    protocol: Mapping[str, Any],
    reporting: Mapping[str, Any],
    *finished: object,
) -> tuple[dict[str, Any], dict[str, float]]:
    """Every number of the report, and the study's own metrics.

    Args:
        histories: partition id (``ppo/seed=42/``) -> loader of the run's history rows.
        timings: likewise the timing rows.
        responses: likewise the final answers.
        run_cards: likewise the run's ``run.json``.
        judgements: one row an order of a comparison; none when nothing was judged.
        judge_card: what is known of the judge itself.
        eval_scores: what the reward model says of each held-out pair.
        prompts_eval: the held-out prompts, with their source where the data names it.
        row_counts: how many preference rows there were, of which kind.
        protocol: section ``protocol``.
        reporting: section ``reporting``.
        finished: datasets that only had to be there first.

    Returns:
        The comparison, ready for JSON, and ``evaluation/*`` for MLflow.
    """
    fixed = build(ProtocolParameters, protocol, "protocol")
    settings = build(ReportingParameters, reporting, "reporting")
    import numpy as np

    from gemma_alignment.report.comparison import Study, compare_study
    from gemma_alignment.report.conclusions import study_metrics
    from gemma_alignment.report.outdated import sentence
    from gemma_alignment.report.runs import collect_runs

    runs = collect_runs(histories, timings, responses, run_cards)
    generator = np.random.default_rng(settings.bootstrap_seed)
    outcomes, outdated = _outcomes(judgements, runs)
    study = Study(
        runs, outcomes, fixed, settings.bootstrap_draws, generator, list(eval_scores), list(prompts_eval),
        settings.bootstrap_seed, row_counts, outdated,
    )  # fmt: skip
    comparison = compare_study(study, judge_card, _versions())
    verdict = comparison["verdict"]
    if said := sentence(outdated):
        logger.warning("%s.", said)
    logger.info("%s v %s: %s.", fixed.method_a.upper(), fixed.method_b.upper(), verdict["phrase"])
    return comparison, study_metrics(comparison)


def render_report(
    comparison: Mapping[str, Any],
    histories: Partitions,
    timings: Partitions,
    responses: Partitions,
    reporting: Mapping[str, Any],
    judgements: Iterable[Mapping[str, Any]] = (),
) -> str:
    """The report: one HTML file that needs neither a server nor a network.

    Args:
        comparison: what ``compare`` made.
        histories: partition id -> loader of the history rows, for the curves.
        timings: likewise the timing rows.
        responses: likewise the final answers, for the table of answers.
        reporting: section ``reporting``.
        judgements: one row an order of a comparison, for the verdicts in that table.
    """
    settings = build(ReportingParameters, reporting, "reporting")
    from gemma_alignment.report.document import render
    from gemma_alignment.report.runs import collect_runs

    runs = collect_runs(histories, timings, responses, {})
    return render(comparison, runs, settings, _outcomes(judgements, runs)[0])


def draw_figures(
    comparison: Mapping[str, Any],
    histories: Partitions,
    timings: Partitions,
    responses: Partitions,
    reporting: Mapping[str, Any],
) -> tuple[dict[str, str], Any, Any]:
    """Every figure of the report as an SVG document, and two of them for Plotly: effect sizes and learning curves.

    Args:
        comparison: what ``compare`` made.
        histories: partition id -> loader of the history rows.
        timings: likewise the timing rows.
        responses: likewise the final answers.
        reporting: section ``reporting``.
    """
    settings = build(ReportingParameters, reporting, "reporting")
    from gemma_alignment.report.drawing import draw
    from gemma_alignment.report.runs import collect_runs
    from gemma_alignment.report.static import pictures

    drawn = draw(comparison, collect_runs(histories, timings, responses, {}), settings).all
    return pictures(drawn), _plotly(drawn, "forest"), _plotly(drawn, "curve-eval-score-mean")


def _plotly(drawn: "Sequence[Figure]", name: str) -> Any:
    """One figure as Plotly's own object; an empty one where the study does not have it."""
    from plotly.graph_objects import Figure as Plot

    found = next((one for one in drawn if one.id == name), None)
    return Plot() if found is None else Plot(found.spec).update_layout(title=found.title, margin={"t": 60})


def _outcomes(
    judgements: Iterable[Mapping[str, Any]], runs: "Mapping[RunKey, Run]"
) -> "tuple[Outcomes, dict[str, Any]]":
    """(system a, system b, prompt) -> what both orders together say of system a; and the verdicts on other answers."""
    from gemma_alignment.judging.current import current_verdicts
    from gemma_alignment.judging.pairing import resolve, verdicts_by_pair

    answers = {
        key.name: {str(row["prompt_id"]): (str(row["prompt"]), str(row["response"])) for row in run.responses}
        for key, run in runs.items()
    }
    kept, outdated = current_verdicts(list(judgements), answers)
    return {pair: resolve(*both) for pair, both in verdicts_by_pair(kept).items()}, asdict(outdated)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
