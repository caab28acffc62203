"""Finished runs and judgements -> comparison, report and its figures as pictures."""

from collections.abc import Sequence

from kedro.pipeline import Node, Pipeline

from gemma_alignment.pipelines.reporting.nodes import compare, draw_figures, render_report


def create_pipeline(finished: Sequence[str] = ()) -> Pipeline:
    """The comparison of every run whose files are on disk, and its report.

    Args:
        finished: datasets that must be there first, such as the runs that other pipelines of the
            same command still write; their content reaches the nodes through the partitions.
    """
    nodes = [
        Node(
            compare,
            inputs=[
                "histories",
                "timings",
                "responses",
                "run_cards",
                "judgements",
                "judge_card",
                "reward_model.eval_scores",
                "prompts_eval",
                "row_counts",
                "params:protocol",
                "params:reporting",
                *finished,
            ],
            outputs=["comparison", "study_metrics"],
            name="compare",
        ),
        Node(
            render_report,
            inputs=["comparison", "histories", "timings", "responses", "params:reporting", "judgements"],
            outputs="report",
            name="render_report",
        ),
        Node(
            draw_figures,
            inputs=["comparison", "histories", "timings", "responses", "params:reporting"],
            outputs=["report_figures", "effect_sizes_plot", "learning_plot"],
            name="draw_figures",
        ),
    ]
    return Pipeline(nodes, tags="reporting")
