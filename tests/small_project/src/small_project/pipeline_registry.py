"""The names of the real registry."""

from functools import partial, update_wrapper

from kedro.pipeline import Pipeline, node

from small_project import nodes


def _arm(method):
    train = update_wrapper(partial(nodes.train, method), nodes.train)
    outputs = [f"{method}.{name}" for name in ("policy", "history", "timing", "samples")]
    inputs = ["sft_merged_model", "rm_model_bt", "prompts_train", f"params:{method}", "params:policy_optimization"]
    return Pipeline(
        [
            node(
                train,
                [*inputs, "params:runtime", "params:seed", f"{method}.run_log", f"{method}.checkpoints"],
                outputs,
                name=f"train_{method}",
            ),
            node(nodes.answer, [f"{method}.policy", "prompts_eval"], f"{method}.responses", name=f"ask_{method}"),
        ],
        tags=method,
    )


def _closing(*finished):
    evaluation = [
        node(
            nodes.judge,
            ["responses", "run_cards", "judge", "params:evaluation", "params:judge", *finished],
            "judgements",
            name="judge",
        )
    ]
    reporting = [
        node(
            nodes.compare,
            ["histories", "judgements", "params:protocol", *finished],
            ["comparison", "study_metrics"],
            name="compare",
        ),
        node(nodes.render, "comparison", "report", name="render"),
    ]
    return Pipeline(evaluation, tags="evaluation"), Pipeline(reporting, tags="reporting")


def register_pipelines():
    data = Pipeline(
        [
            node(
                nodes.make_base,
                ["preferences_source", "params:preferences", "params:prepare_seed"],
                ["base_model", "rows"],
                name="base",
            ),
            node(
                nodes.split,
                "rows",
                ["preferences_train", "preferences_eval", "prompts_train", "prompts_eval", "row_counts"],
                name="split",
            ),
            node(nodes.make_records, "prompts_train", "genrm_train", name="records"),
        ],
        tags="data_processing",
    )
    sft = Pipeline(
        [
            node(
                nodes.train_sft,
                ["base_model", "params:sft", "params:prepare_seed", "sft.run_log", "sft.checkpoints"],
                ["sft_adapter", "sft.history"],
                name="train_sft",
            ),
            node(
                nodes.merge_sft,
                ["sft_adapter", "sft.history", "genrm_train", "sft.run_log"],
                "sft_merged_model",
                name="merge_sft",
            ),
        ],
        tags="sft",
    )
    reward_model = Pipeline(
        [
            node(
                nodes.train_reward_model,
                ["sft_merged_model", "preferences_train", "params:prepare_seed", "reward_model.run_log"],
                ["rm_model_bt", "reward_model.history"],
                name="train_reward_model",
            ),
            node(nodes.answer, ["sft_merged_model", "prompts_eval"], "sft.responses", name="answer_with_sft"),
        ],
        tags="reward_model",
    )
    evaluation, reporting = _closing()
    answers = ("sft.responses", "ppo.responses", "grpo.responses")
    stages = {
        "data_processing": data,
        "sft": sft,
        "reward_model": reward_model,
        **{method: _arm(method) for method in ("ppo", "grpo", "rloo", "dr_grpo")},
        "evaluation": evaluation,
        "reporting": reporting,
    }
    whole = sum((stages[name] for name in ("data_processing", "sft", "reward_model", "ppo", "grpo")), Pipeline([]))
    return {**stages, "__default__": whole + sum(_closing(*answers), Pipeline([]))}
