"""Ablations and sweeps: which runs they are, what is refused, and that the baseline stays as it is."""

import dataclasses
import json
import typing
from pathlib import Path

import pytest
from kedro.config import OmegaConfigLoader

from gemma_alignment.config import ConfigError
from gemma_alignment.dotted import dotted, merged
from gemma_alignment.errors import UserError
from gemma_alignment.parameters.run import RunParameters
from gemma_alignment.parameters.study import AblationParameters
from gemma_alignment.settings import CONFIG_LOADER_ARGS
from gemma_alignment.study.plan import Plan, Variant
from gemma_alignment.study.project import Opened
from gemma_alignment.study.variants import ablations, accepted, check, check_budget, each_once, sweeps
from gemma_alignment.training.methods import METHODS
from gemma_alignment.training.methods.base import MethodSettings

ROOT = Path(__file__).parents[1]
BOTH = ("ppo", "grpo")
SETTINGS = ("kl_placement", "normalize_advantages", "normalize_scores", "reduction", "clip_epsilon_high",
            "update_epochs")  # fmt: skip


@pytest.fixture(scope="module")
def parameters():
    return OmegaConfigLoader(str(ROOT / "conf"), env="base", **CONFIG_LOADER_ARGS)["parameters"]


def names(variants):
    return [f"{variant.method}@{variant.name}" for variant in variants]


def test_an_ablation_takes_the_values_of_the_type_but_the_configured_one(parameters):
    found = ablations(["kl_placement"], BOTH, parameters)
    assert names(found) == [
        "ppo@kl_placement-sequence_score",
        "ppo@kl_placement-loss",
        "ppo@kl_placement-none",
        "grpo@kl_placement-token_reward",
        "grpo@kl_placement-sequence_score",
        "grpo@kl_placement-none",
    ]
    assert found[1].params == {
        "variant": "kl_placement-loss", "variant_kind": "ablation", "ppo.kl_placement": "loss",
    }  # fmt: skip


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("setting", SETTINGS)
def test_every_setting_of_every_method_can_be_ablated(setting, method, parameters):
    found = ablations([setting], [method], parameters)
    hint = typing.get_type_hints(MethodSettings)[setting]
    values = parameters["study"]["ablations"].get(setting) or typing.get_args(hint)
    assert [one.value for one in found] == [v for v in values if v != parameters[method][setting]]
    taken, refused = accepted(found, parameters)
    assert len(taken) + len(refused) == len(found)
    assert taken, "at least one other value is worth a run"


def test_the_numbers_of_an_ablation_are_settings_that_the_methods_have():
    numbers = {field.name for field in dataclasses.fields(AblationParameters)}
    assert numbers <= {field.name for field in dataclasses.fields(MethodSettings)}
    assert numbers == {"clip_epsilon_high", "update_epochs"}


def test_what_a_method_refuses_is_left_out_and_said(parameters):
    tried = ablations(["kl_placement", "normalize_advantages"], BOTH, parameters)
    taken, refused = accepted(tried, parameters)
    assert "grpo@kl_placement-token_reward" not in names(taken)
    assert "ppo@normalize_advantages-group_std" not in names(taken)
    assert len(taken) + 2 == len(tried)
    said = [
        "grpo@kl_placement-token_reward: grpo: kl_placement token_reward needs a critic",
        "ppo@normalize_advantages-group_std: ppo: normalize_advantages group_std needs groups",
    ]
    assert [reason.startswith(start) for reason, start in zip(sorted(refused), said, strict=True)] == [True, True]


def test_a_sweep_does_not_double_the_configured_value(parameters):
    found = sweeps(["grpo.group_size=2,4,6,8"], BOTH, parameters)
    assert names(found) == ["grpo@group_size-2", "grpo@group_size-4", "grpo@group_size-8"]
    assert found[0].params == {"variant": "group_size-2", "variant_kind": "sweep", "grpo.group_size": 2}
    for variant in found:
        check(variant, parameters)


def test_what_an_arm_starts_from_can_be_ablated_and_how_its_models_are_held_cannot(parameters):
    found = ablations(["rl_base"], BOTH, parameters)
    assert names(found) == ["ppo@rl_base-sft_adapter", "grpo@rl_base-sft_adapter"]
    assert found[1].params == {
        "variant": "rl_base-sft_adapter", "variant_kind": "ablation", "modeling.rl_base": "sft_adapter",
    }  # fmt: skip
    assert accepted(found, parameters) == (found, [])
    assert names(sweeps(["modeling.sharing=one_base,separate_copies"], ["grpo"], parameters)) == [
        "grpo@sharing-separate_copies"
    ]
    with pytest.raises(UserError, match="Another SFT or reward model is a study of its own"):
        sweeps(["modeling.quantization=nf4"], BOTH, parameters)
    with pytest.raises(UserError, match="unknown parameter quantization"):
        ablations(["quantization"], BOTH, parameters)


def test_what_is_asked_for_twice_runs_once_and_as_both(parameters):
    ablated = ablations(["update_epochs"], ["grpo"], parameters)
    swept = sweeps(["grpo.update_epochs=2,8", "grpo.update_epochs=8,16"], ["grpo"], parameters)
    found = each_once([*ablated, *swept])
    assert {one.name: one.kind for one in found} == {
        "update_epochs-2": "ablation+sweep", "update_epochs-4": "ablation", "update_epochs-8": "sweep",
        "update_epochs-16": "sweep",
    }  # fmt: skip
    assert len({one.name for one in found}) == len(found)


def test_a_kind_needs_a_variant():
    with pytest.raises(ValueError, match="but there is no variant: give variant=NAME too"):
        RunParameters(1, 1, "data", "", "sweep", "grpo", False, False)


def test_several_sweeps_and_a_parameter_that_methods_share(parameters):
    configured = parameters["kl_control"]["target"]
    found = sweeps(["ppo.gae_lambda=0.9, 0.95", f"kl_control.target=1e-1,{configured},1"], BOTH, parameters)
    assert [(one.method, one.parameter, one.value) for one in found] == [
        ("ppo", "ppo.gae_lambda", 0.9),
        ("ppo", "kl_control.target", 0.1),
        ("ppo", "kl_control.target", 1),
        ("grpo", "kl_control.target", 0.1),
        ("grpo", "kl_control.target", 1),
    ]
    assert [type(one.value) for one in found[1:3]] == [float, int]


def test_values_are_read_as_params_reads_them(parameters):
    found = sweeps(["grpo.clip_epsilon_high=null,0.3", "grpo.reduction=token_mean"], BOTH, parameters)
    assert [one.value for one in found] == [0.3, "token_mean"]
    variant = Variant("ppo", "ppo.clip_epsilon_high", None)
    assert variant.name == "clip_epsilon_high-null"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("grpo.gruop_size=2", r"unknown parameter grpo\.gruop_size; did you mean grpo\.group_size\?"),
        ("rloo.group_size=2", r"rloo is not among the methods of this study: add it to --methods"),
        ("sft.epochs=2", r"Another SFT or reward model is a study of its own"),
        ("seed=1,2", r"what can be swept are parameters of the arms"),
        ("kl_control.schedule=1", r"kl_control\.schedule is a list"),
        ("grpo.group_size", r"expected PARAMETER=VALUE,VALUE such as grpo\.group_size=2,4,6,8"),
        ("grpo.group_size=2,,4", r"expected PARAMETER=VALUE,VALUE"),
        ("grpo.group_size=[2,4]", r"expected PARAMETER=VALUE,VALUE"),
        ("grpo.group_size={a: 1}", r"expected PARAMETER=VALUE,VALUE"),
    ],
)
def test_a_sweep_that_means_nothing_is_refused(option, message, parameters):
    with pytest.raises(UserError, match=message):
        sweeps([option], BOTH, parameters)


@pytest.mark.parametrize(
    ("option", "error", "message"),
    [
        ("grpo.group_size=5", UserError, "group_size 5 does not divide responses_per_iteration 96"),
        ("policy_optimization.responses_per_iteration=64", ConfigError, "minibatch_size 48 does not divide"),
        ("policy_optimization.responses_per_iteration=144", None, None),
        ("grpo.group_size=1", ConfigError, "the group is the baseline"),
        ("grpo.group_size=two", ConfigError, r"grpo\.group_size: expected int, got 'two'"),
        ("grpo.kl_placement=token_reward", ConfigError, "needs a critic"),
        ("grpo.reduction=a b", ConfigError, "variant becomes part of a folder's name"),
    ],
)
def test_a_value_that_a_run_would_refuse_is_refused_before(option, error, message, parameters):
    (variant,) = sweeps([option], ["grpo"], parameters)
    if error is None:
        assert check(variant, parameters) is None
    else:
        with pytest.raises(error, match=message):
            check(variant, parameters)


def test_the_budget_of_the_configured_methods_is_checked_too(parameters):
    with pytest.raises(UserError, match="grpo: group_size 7 does not divide"):
        check_budget("grpo", merged(parameters, {"grpo": {"group_size": 7}}))
    with pytest.raises(UserError, match="--ablate kl_placment: unknown parameter kl_placment; did you mean kl_place"):
        ablations(["kl_placment"], BOTH, parameters)


def test_variants_follow_the_baseline_seed_by_seed():
    variants = (Variant("grpo", "grpo.group_size", 2), Variant("ppo", "ppo.reduction", "sequence_mean"))
    plan = Plan(BOTH, (1, 2), {"data_root": "data/x"}, "test", variants)
    assert [run.label for run in plan.arms] == [
        "ppo-seed1", "grpo-seed1", "ppo-seed2", "grpo-seed2",
        "grpo@group_size-2-seed1", "ppo@reduction-sequence_mean-seed1",
        "grpo@group_size-2-seed2", "ppo@reduction-sequence_mean-seed2",
    ]  # fmt: skip
    assert plan.arms[:4] == Plan(BOTH, (1, 2), {"data_root": "data/x"}, "test").arms
    assert plan.arms[4].stages[0].folder == "grpo@group_size-2/seed=1"
    assert plan.arms[4].command() == (
        "kedro run --pipelines=grpo --env=test --params seed=1,data_root=data/x,variant=group_size-2,grpo.group_size=2"
    )
    with pytest.raises(UserError, match="leave out --params variant"):
        dataclasses.replace(plan, params={"variant": "mine"})


def test_sections_merge_and_everything_else_is_replaced():
    tree = {"a": {"b": 1, "c": [1, 2]}, "d": 2}
    assert merged(tree, {"a": {"c": [3]}, "e": {}}) == {"a": {"b": 1, "c": [3]}, "d": 2, "e": {}}
    assert tree == {"a": {"b": 1, "c": [1, 2]}, "d": 2}
    assert dotted({"a": {}, "b": {"c": None}}) == {"a": {}, "b.c": None}


cli, pipeline = pytest.mark.cli, pytest.mark.pipeline


@cli
def test_a_dry_run_shows_the_variants_and_what_is_left_out(project):
    code, output = project.command(
        "kedro", "study", "--env=test", "--dry-run", "--quick", "--ablate=kl_placement", "--sweep=ppo.gae_lambda=0.9"
    )
    assert code == 0, output
    lines = output.strip().splitlines()
    assert [line.split("  ")[0] for line in lines[1:-2]] == [
        "ppo-seed42",
        "grpo-seed42",
        "ppo@kl_placement-sequence_score-seed42",
        "ppo@kl_placement-loss-seed42",
        "ppo@kl_placement-none-seed42",
        "grpo@kl_placement-sequence_score-seed42",
        "grpo@kl_placement-none-seed42",
        "ppo@gae_lambda-0.9-seed42",
    ]
    assert "data_root=data/quick" in lines[3]
    assert lines[-1].startswith("left out  grpo@kl_placement-token_reward: grpo: kl_placement token_reward needs a")
    code, output = project.command("kedro", "study", "--env=test", "--sweep=grpo.group_size=5")
    assert code == 1
    assert output.strip().endswith("choose a divisor, so that every arm spends the same budget")
    assert "Traceback" not in output
    assert project.runs() == []
    assert not project.data.exists()


@cli
@pipeline
def test_an_ablation_runs_beside_the_baseline_and_leaves_it_as_it_is(project):
    project.run("data_processing", "sft", "reward_model")
    project.run("grpo", seed=1)
    output = project.data / "07_model_output"
    baseline = (output / "grpo/seed=1/run.json").read_bytes()
    words = ("--env=test", "--methods=grpo", "--seeds=1-2", "--ablate=clip_epsilon_high")
    code, said = project.command("kedro", "study", *words, "--workers=2")
    assert code == 0, said
    assert (output / "grpo/seed=1/run.json").read_bytes() == baseline, "finished: reused"
    assert project.record("grpo@clip_epsilon_high-0.28/seed=2").variant_kind == "ablation"
    assert project.record("grpo/seed=2").status == "finished", "missing: run too"
    assert sorted(path.name for path in output.glob("grpo*")) == ["grpo", "grpo@clip_epsilon_high-0.28"]
    for seed in (1, 2):
        record = project.record(f"grpo@clip_epsilon_high-0.28/seed={seed}")
        assert (record.status, record.parameters["grpo"]["clip_epsilon_high"]) == ("finished", 0.28)
        policy = project.data / f"06_models/grpo@clip_epsilon_high-0.28/seed={seed}/policy"
        assert (policy / "adapter_config.json").exists()

    runs = {run.info.run_name: run for run in project.runs()}
    variant = runs["grpo@clip_epsilon_high-0.28-seed2"]
    assert {key: variant.data.tags[key] for key in ("method", "seed", "variant", "stage")} == {
        "method": "grpo", "seed": "2", "variant": "clip_epsilon_high-0.28", "stage": "grpo",
    }  # fmt: skip
    assert variant.data.params["grpo.clip_epsilon_high"] == "0.28"
    (parent,) = [run for name, run in runs.items() if name.startswith("study-")]
    assert variant.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert parent.data.tags["variants"] == "grpo@clip_epsilon_high-0.28"
    experiment = parent.info.experiment_id
    view = json.loads(project.client.get_experiment(experiment).tags[f"mlflow.sharedViewState.{parent.info.run_name}"])
    arms = {run.info.run_name for run in project.client.search_runs([experiment], view["searchFilter"])}
    assert arms == {name for name in runs if name.startswith("grpo")}, "the reused one among them"

    code, said = project.command("kedro", "study", "status", *words)
    assert code == 0
    lines = {line.split()[0]: line.split()[1] for line in said.strip().splitlines()}
    assert lines["grpo@clip_epsilon_high-0.28-seed2"] == "finished"
    assert said.strip().splitlines()[-1] == "9 finished"


@pipeline
def test_a_reused_variant_is_labelled_with_what_it_is_asked_for_as_now(project):
    project.run("data_processing", "sft", "reward_model")
    project.run("grpo", seed=1, variant="group_size-3", variant_kind="ablation", grpo__group_size=3)
    variant = Variant("grpo", "grpo.group_size", 3, "sweep")
    opened = Opened.open(project.root, plan := Plan(("grpo",), (1,), {}, "test", (variant,)))
    baseline, mine = plan.arms
    assert opened.is_done(mine), "what it is for is no part of its configuration"
    assert [opened.label(mine), opened.label(mine), opened.label(baseline)] == [True, False, False]
    record = project.record("grpo@group_size-3/seed=1")
    assert (record.variant_kind, record.status) == ("ablation+sweep", "finished")
    assert opened.is_done(mine)


@pipeline
def test_a_run_is_done_when_it_is_finished_whole_and_of_the_same_configuration(project):
    project.run("data_processing", "sft", "reward_model")
    project.run("grpo", seed=1, variant="group_size-3", grpo__group_size=3)
    plan = Plan(("grpo",), (1, 2), {}, "test", (Variant("grpo", "grpo.group_size", 3),))
    opened = Opened.open(project.root, plan)
    runs = {run.label: run for run in plan.arms}
    assert [label for label, run in runs.items() if opened.is_done(run)] == ["grpo@group_size-3-seed1"]
    mine = runs["grpo@group_size-3-seed1"]
    other = dataclasses.replace(mine, params={**mine.params, "grpo.group_size": 2})
    assert not opened.is_done(other), "another configuration in the same folder"
    policy = project.data / "06_models/grpo@group_size-3/seed=1/policy"
    policy.rename(policy.with_name("elsewhere"))
    assert not opened.is_done(mine), "its policy is gone"


@cli
@pipeline
def test_a_variant_of_another_configuration_is_refused_before_anything_runs(project):
    project.run("data_processing", "sft", "reward_model")
    project.run("grpo", seed=1, variant="group_size-2", grpo__group_size=3)
    before = len(project.runs())
    code, said = project.command("kedro", "study", "--env=test", "--seeds=1", "--sweep=grpo.group_size=2")
    assert code == 1
    assert "grpo@group_size-2/seed=1 holds a finished run" in said and "grpo.group_size: 3 → 2" in said
    assert len(project.runs()) == before
