"""How long the report takes to build, for six runs and 500 prompts: its figure is 10 s."""

import time

from fake_study import REPORTING, fake_study

from gemma_alignment.pipelines.reporting.nodes import compare, draw_figures, render_report


def test_six_runs_and_five_hundred_prompts_are_built_within_ten_seconds():
    """Processor time of this process, so that a busy machine does not change it much."""
    study = fake_study(prompts=500)
    inputs, settings = study.inputs(), {**REPORTING, "answers_shown": 500, "bootstrap_draws": 10_000}
    histories, timings, responses = inputs[:3]
    started = time.process_time()
    comparison, metrics = compare(*study.inputs(None, settings))
    text = render_report(comparison, histories, timings, responses, settings, study["judgements"])
    pictures, *_ = draw_figures(comparison, histories, timings, responses, settings)
    assert time.process_time() - started < 10.0
    assert text.count("<tr data-sort") == 500
    assert len(comparison["protocol"]["seeds"]) == 3
    assert len(pictures) > 10
    assert "evaluation/win_rate" in metrics
