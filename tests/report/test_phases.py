"""Time and memory of each phase, from the records of the runs."""

from gemma_alignment.report.phases import phases, table_of
from gemma_alignment.report.runs import Run, RunKey


def run(family, seed, minutes, status="finished", **more):
    ended = f"2026-01-01T10:{minutes:02}:00+00:00"
    card = {"status": status, "created": "2026-01-01T10:00:00+00:00", "ended": ended, **more}
    return {RunKey(family, seed): Run(RunKey(family, seed), card=card)}


RUNS = {
    **run("evaluation", None, 1),
    **run("sft", None, 2, peak_mb=500.0),
    **run("ppo", 1, 4, peak_mb=900.0),
    **run("ppo", 2, 6, peak_mb=700.0),
    **run("grpo", 1, 9, status="failed"),
    **run("grpo@k4", 1, 9),
}


def test_phases_stand_in_their_order_and_only_finished_runs_count():
    found = phases(RUNS, ("ppo", "grpo"))
    assert [one["phase"] for one in found] == ["sft", "ppo", "evaluation"]
    assert found[1] == {"phase": "ppo", "seconds": {"1": 240.0, "2": 360.0}, "peak_mb": {"1": 900.0, "2": 700.0}}
    assert found[2]["peak_mb"] == {}


def test_the_table_shows_mean_and_seeds_and_a_dash_for_what_was_not_measured():
    text = table_of({"phases": phases(RUNS, ("ppo", "grpo"))})
    assert '<b>5.0</b><small title="seed 1: 4.0, seed 2: 6.0">4.0 · 6.0</small>' in text
    assert '<b>800</b><small title="seed 1: 900, seed 2: 700">900 · 700</small>' in text
    assert text.count("<b>–</b>") == 1
    assert table_of({"phases": []}) is None
