"""responses -> pairs of answers -> judgements and the judge's card."""

from collections.abc import Sequence

from kedro.pipeline import Node, Pipeline

from gemma_alignment.pipelines.evaluation.nodes import (
    describe_judge,
    estimate_cost,
    judge_again,
    judge_labelled,
    judge_pairs,
    question_judge,
    select_pairs,
)


def create_pipeline(finished: Sequence[str] = ()) -> Pipeline:
    """The evaluation of every run whose responses are on disk.

    Args:
        finished: datasets that must be there first, such as the responses that other pipelines
            of the same run still write; their content reaches the nodes through the partitions.

    All that is to be asked is priced before anything is asked, and the pairs are judged first: a judge that
    fails leaves every earlier file as it was.
    """
    nodes = [
        Node(
            select_pairs,
            inputs=["responses", "run_cards", "params:evaluation", *finished],
            outputs="answer_pairs",
            name="select_pairs",
        ),
        Node(
            estimate_cost,
            inputs=["answer_pairs", "preferences_eval", "judge", "params:judge"],
            outputs="judge_estimate",
            name="estimate_cost",
        ),
        Node(
            judge_pairs,
            inputs=["answer_pairs", "judge", "params:judge", "judge_estimate"],
            outputs="judgements",
            name="judge_pairs",
        ),
        Node(
            question_judge,
            inputs=["preferences_eval", "answer_pairs", "judge", "params:judge", "judgements"],
            outputs="canary_judgements",
            name="question_judge",
        ),
        Node(
            judge_again,
            inputs=["answer_pairs", "judge", "params:judge", "judgements"],
            outputs="repeat_judgements",
            name="judge_again",
        ),
        Node(
            judge_labelled,
            inputs=["answer_pairs", "judge", "params:judge", "judgements"],
            outputs="labelled_judgements",
            name="judge_labelled",
        ),
        Node(
            describe_judge,
            inputs=[
                "judgements", "canary_judgements", "repeat_judgements", "labelled_judgements", "answer_pairs",
                "params:judge",
            ],
            outputs="judge_card",
            name="describe_judge",
        ),
    ]
    return Pipeline(nodes, tags="evaluation")
