"""What a dry run of the real study looks at, without network, GPU or account."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from gemma_alignment.dotted import merged
from gemma_alignment.errors import UserError
from gemma_alignment.modeling.memory import GEMMA_2B, Shape
from gemma_alignment.parameters import SECTIONS, section_class
from gemma_alignment.parameters.rates import RateParameters
from gemma_alignment.study import preflight as preflight_module
from gemma_alignment.study.command import Asked, show, start
from gemma_alignment.study.hours import hours
from gemma_alignment.study.memory_needs import disk, fetched, peaks
from gemma_alignment.study.plan import Plan, Variant
from gemma_alignment.study.preflight import preflight
from gemma_alignment.study.project import read_parameters
from gemma_alignment.study.wall_time import makespan, wall_hours

ROOT = Path(__file__).parents[1]
PLAN = Plan(("ppo", "grpo"), (42, 123, 777), {}, "gemma2b")


@pytest.fixture(scope="module")
def parameters():
    from kedro.framework.startup import bootstrap_project

    bootstrap_project(ROOT)
    return read_parameters(ROOT, "gemma2b", {})


def looked_at(parameters, plan=PLAN, root=Path("/")):
    return {line.what: line for line in preflight(plan, parameters, root)}


def test_the_real_study_is_the_brief(parameters):
    modeling, preferences = parameters["modeling"], parameters["preferences"]
    assert (modeling["base_model"], modeling["quantization"], modeling["dtype"]) == (
        "google/gemma-2b-it", "nf4", "bfloat16",
    )  # fmt: skip
    assert len(modeling["revision"]) == len(preferences["revision"]) == 40
    assert preferences["repository"] == "HuggingFaceH4/ultrafeedback_binarized"
    assert (modeling["lora"]["rank"], modeling["gradient_checkpointing"]) == (16, True)
    assert (parameters["ppo"]["gae_lambda"], parameters["grpo"]["group_size"]) == (0.95, 6)
    assert parameters["kl_control"]["schedule"] == [0.05, 0.02, 0.01]
    assert parameters["protocol"]["seeds"] == parameters["study"]["seeds"] == [42, 123, 777]
    assert parameters["policy_optimization"]["eval_every"] == 50
    assert (parameters["judge"]["kind"], parameters["judge"]["model"]) == ("openai", "gpt-4o-mini-2024-07-18")
    assert parameters["runtime"]["device"] == "cuda"
    assert "rates" in SECTIONS and section_class("rates").__name__ == "RateParameters"


def test_everything_is_looked_at_and_what_is_missing_is_said(parameters, monkeypatch):
    for name in ("HF_TOKEN", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    lines = looked_at(parameters)
    assert list(lines) == [
        "HF_TOKEN", "OPENAI_API_KEY", "model", "GPU", "memory sft", "memory merge", "memory reward_model", "memory ppo",
        "memory grpo", "memory export", "disk", "GPU hours", "iteration", "wall time", "judge",
    ]  # fmt: skip
    assert "NOT SET" in lines["HF_TOKEN"].said and lines["HF_TOKEN"].is_missing
    assert lines["model"].is_missing and "never downloaded" in lines["model"].said
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setattr(preflight_module, "check_access", lambda name, revision: None)
    lines = looked_at(parameters)
    assert not any(line.is_missing for line in lines.values())
    assert not any("secret" in line.said for line in lines.values())


def test_a_full_disk_and_a_low_cap_are_missing_too(parameters, monkeypatch):
    monkeypatch.setattr(preflight_module.shutil, "disk_usage", lambda folder: SimpleNamespace(free=10**9))
    changed = merged(parameters, {"judge": {"remote": {"spend_cap_usd": 0.01}}})
    lines = looked_at(changed, root=ROOT / "data" / "none" / "yet")
    assert lines["disk"].is_missing and "1.0 GB free" in lines["disk"].said
    assert lines["disk"].said.endswith("NOT ENOUGH")
    assert lines["judge"].is_missing and lines["judge"].said.endswith("is 0.01: TOO LOW")


def seconds(parameters, plan=PLAN):
    return float(looked_at(parameters, plan)["GPU hours"].said.split()[1])


def test_the_hours_follow_from_counts_and_rates(parameters):
    """By hand, with everything but the iterations free.

    An iteration of GRPO is 48 × 512 tokens three times forward (reward, reference, policy), once learned from, and two
    batches of 128 steps; one of PPO has a critic more, forward and learned from.
    """
    shared = {"num_iterations": 30_000, "eval_every": 30_000, "eval_prompts": 0}
    quick = merged(parameters, {"preferences": {"sample_size": 0}, "policy_optimization": shared})
    quick = merged(quick, {"sft": {"eval_pairs": 0}, "reward_model": {"normalizer_prompts": 0, "genrm_pairs": 0}})
    grpo = replace(PLAN, methods=("grpo",), seeds=(1,))
    tokens = 48 * 512
    expected = 30_000 * (3 * tokens / 6000 + tokens / 2000 + 2 * 128 / 17) / 3600
    assert seconds(quick, grpo) == pytest.approx(expected, abs=0.5)
    assert seconds(quick, replace(grpo, seeds=(1, 2))) == pytest.approx(2 * expected, abs=1)
    variants = (Variant("grpo", "modeling.rl_base", "sft_adapter"),)
    assert seconds(quick, replace(grpo, variants=variants)) == pytest.approx(2 * expected, abs=1)
    rates = {"forward_tokens_per_second": 12_000, "train_tokens_per_second": 4000, "decode_steps_per_second": 34}
    assert seconds(merged(quick, {"rates": rates}), grpo) == pytest.approx(expected / 2, abs=0.5)
    ppo = seconds(quick, replace(grpo, methods=("ppo",)))
    assert ppo == pytest.approx(30_000 * (4 * tokens / 6000 + 2 * tokens / 2000 + 2 * 128 / 17) / 3600, abs=0.5)


def test_evaluation_and_preparation_are_in_the_hours(parameters):
    """By hand, at rates of 1,000 forward, 500 learned and 10 steps: 600 held-out prompts, 128 of them seven times."""
    rates = RateParameters(1000, 500, 10, 0.7, None)
    found = hours(replace(PLAN, methods=("grpo",), seeds=(1,)), parameters, rates)
    answered = 25 * 128 / 10 + 600 * 512 / 1000
    assert found["sft"] * 3600 == pytest.approx(
        (11_400 * 896 + 2_850 * 960) / 500 + 2 * 128 * 896 / 1000 + answered
    )
    asked = 512 * 960 / 1000 + 22 * 24 / 10
    normalised = 11 * 128 / 10 + 256 * 512 / 1000
    assert found["reward model"] * 3600 == pytest.approx(
        2 * 11_400 * 896 / 500 + 4 * 600 * 896 / 1000 + asked + normalised
    )
    iteration = 2 * 128 / 10 + 3 * 48 * 512 / 1000 + 48 * 512 / 500
    evaluation = 6 * 128 / 10 + 3 * 128 * 512 / 1000 + 128 * 896 / 1000
    assert found["grpo, 1 runs"] * 3600 == pytest.approx(300 * iteration + 7 * evaluation + answered)


def test_where_rates_were_measured_is_said(parameters):
    assert "ASSUMED rates, not measured" in looked_at(parameters)["GPU hours"].said
    measured = merged(parameters, {"rates": {"measured_on": "a GPU"}})
    assert "at rates measured on a GPU (" in looked_at(measured)["GPU hours"].said
    for name in ("forward_tokens_per_second", "train_tokens_per_second", "decode_steps_per_second"):
        with pytest.raises(ValueError, match=f"{name} is 0"):
            RateParameters(**{**parameters["rates"], name: 0})


def test_a_dry_run_says_what_decoding_in_another_precision_costs(parameters):
    """A copy of 2.51 billion weights in bf16; in 4 bits there is none."""
    assert parameters["rollout"]["precision"] == "4bit"
    assert "merged copy" not in looked_at(parameters)["memory grpo"].said
    dense = merged(parameters, {"rollout": {"weights": "merged", "precision": "bf16"}})
    said = looked_at(dense)["memory grpo"].said
    assert said.endswith("all the time: base 2.07, policy 0.24, reward model 0.08, merged copy to decode with 5.01")
    plain, copied = (
        next(peak.bytes for peak in peaks(PLAN, one, GEMMA_2B) if peak.stage == "grpo") for one in (parameters, dense)
    )
    weights = GEMMA_2B.linear_weights + GEMMA_2B.table_weights
    assert copied - plain == pytest.approx(2 * weights, rel=0.02)
    single = merged(dense, {"modeling": {"dtype": "float32"}})
    as_held = merged(single, {"rollout": {"precision": "as_held"}})
    half, full = (
        next(peak.parts["merged copy to decode with"] for peak in peaks(PLAN, one, GEMMA_2B) if peak.stage == "grpo")
        for one in (single, as_held)
    )
    assert full == 2 * half


def test_what_several_gpus_do_is_at_most_as_many_times_what_one_does(parameters):
    for wrong in (0, 1.5):
        with pytest.raises(ValueError, match="parallel_efficiency is"):
            RateParameters(**{**parameters["rates"], "parallel_efficiency": wrong})


@pytest.mark.parametrize(
    ("gpus", "hours_each"),
    [(1, (62, 1)), (2, (32, 1)), (4, (22, 1)), (6, (12, 1)), (8, (12, 1)), (64, (4, 10))],
)
def test_the_wall_time_of_six_equal_runs_by_hand(gpus, hours_each):
    """At half their speed ten GPUs do five times the work of one."""
    assert wall_hours(2.0, [10.0] * 6, gpus, 0.5, 100) == pytest.approx(hours_each)


def test_gpus_that_would_slow_a_run_down_or_cannot_share_it_are_left_out():
    assert wall_hours(0.0, [10.0], 2, 0.4, 100) == (10.0, 1)
    assert wall_hours(0.0, [10.0], 64, 1.0, 4) == (2.5, 4)


def test_runs_are_placed_in_order_as_places_come_free():
    assert makespan([3, 3, 2, 2, 2], 2) == 7  # the textbook's example: 6 would do, in another order
    assert makespan([5.0], 64) == 5.0


def test_a_dry_run_says_the_wall_time_and_what_it_assumes(parameters):
    said = looked_at(parameters)["wall time"].said
    for words in ("1 GPU ", "2 GPUs ", "8 GPUs ", "64 GPUs ", "(8 a run)", "assumed to do 0.7", "preparation"):
        assert words in said, said
    assert looked_at(parameters)["iteration"].said.startswith("about ppo ")


def in_shares(parameters):
    changes = {"modeling": {"quantization": "none", "sharding": "base"}, "rollout": {"precision": "as_held"}}
    return merged(parameters, changes)


def test_a_base_in_shares_takes_an_arm_less_memory_with_each_process(parameters):
    """The other stages are one process's."""
    found = [{p.stage: p for p in peaks(PLAN, in_shares(parameters), GEMMA_2B, count)} for count in (1, 2, 64)]
    undivided = merged(in_shares(parameters), {"modeling": {"sharding": "none"}})
    whole = {p.stage: p for p in peaks(PLAN, undivided, GEMMA_2B, 64)}
    assert {stage: peak.bytes for stage, peak in whole.items()} == {s: p.bytes for s, p in found[0].items()}
    for stage in whole:
        sizes = [one[stage].bytes for one in found]
        if stage in ("ppo", "grpo"):
            assert sizes[0] > sizes[1] > sizes[2] > 2 * 1.05e9, stage
        else:
            assert len(set(sizes)) == 1, stage


def test_a_base_is_shared_out_among_several_processes_alone(parameters, tmp_path):
    asked = Asked(tmp_path, PLAN, in_shares(parameters))
    for call in (lambda: start(asked, None, False), lambda: show(asked, False)):
        with pytest.raises(UserError, match=r"modeling\.sharding is 'base', but one process trains each policy"):
            call()


def test_every_stage_that_opens_a_model_is_in_the_memory(parameters):
    """Of the study the merge holds most: the base, the plain copy in bf16, and what a sum of weights takes."""
    found = {peak.stage: peak.bytes / 1e9 for peak in peaks(PLAN, parameters, GEMMA_2B)}
    assert list(found) == ["sft", "merge", "reward_model", "ppo", "grpo", "export"]
    assert found["merge"] == pytest.approx(2.07 + 0.08 + 5.01 + 4 * 4 * 2048 * 16_384 / 1e9, abs=0.02)
    assert found["export"] == pytest.approx(found["merge"], abs=1e-6)
    assert max(found.values()) + 0.6 < 16
    longer = merged(parameters, {"preferences": {"max_response_tokens": 1024}})
    grown = {peak.stage: peak.bytes / 1e9 for peak in peaks(PLAN, longer, GEMMA_2B)}
    assert grown["sft"] > found["sft"] + 0.3 and grown["reward_model"] > found["reward_model"] + 0.6
    assert (grown["ppo"], grown["export"]) == (found["ppo"], found["export"])
    small = merged(parameters, {"modeling": {"embedding": "int8"}})
    low = {peak.stage: peak for peak in peaks(PLAN, small, GEMMA_2B)}
    assert low["ppo"].bytes / 1e9 < found["ppo"] and "as saved beside it" in low["sft"].when
    plain = merged(parameters, {"modeling": {"quantization": "none"}})
    assert {p.stage: p.bytes / 1e9 for p in peaks(PLAN, plain, GEMMA_2B)}["merge"] > 10


def test_the_answers_of_an_evaluation_are_in_the_memory_of_an_arm(parameters):
    """Held-out prompts are answered once each, so that many more of them are prefilled than GRPO's own."""
    wide = merged(parameters, {"preferences": {"max_prompt_tokens": 4096}})
    found = {peak.stage: peak for peak in peaks(PLAN, wide, GEMMA_2B)}
    assert found["grpo"].bytes <= found["ppo"].bytes
    assert looked_at(parameters)["memory grpo"].said.startswith("about 2.8 GB")


def test_the_disk_holds_models_checkpoints_and_a_copy_on_the_way(parameters, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "tmp"))
    found = disk(PLAN, parameters, GEMMA_2B, tmp_path / "data")
    model, lora = 5.012e9, 19_611_648
    state = 12 * lora
    assert found[tmp_path / "hub"] == pytest.approx(model + 1.78e9, rel=1e-3)
    assert found[tmp_path / "tmp"] == pytest.approx(model, rel=1e-3)
    prepared = model + 2 * 4 * lora + 2 * 3 * state
    assert found[tmp_path / "data"] == pytest.approx(prepared + 3 * (2 * 4 * lora + 3 * state * 3), rel=1e-3)
    line = looked_at(parameters, root=tmp_path / "data")["disk"].said
    assert f"{sum(found.values()) / 1e9:.1f} GB needed in" in line and "an export takes 5.0 GB more" in line
    monkeypatch.setattr(preflight_module, "_existing", lambda place: Path("/proc") if "hub" in str(place) else tmp_path)
    apart = looked_at(parameters, root=tmp_path / "data")
    assert apart["disk 1"].said.startswith("about 6.8 GB needed in") and apart["disk 1"].is_missing
    assert not apart["disk 2"].is_missing


def test_weights_that_were_fetched_before_need_no_disk(parameters, monkeypatch, tmp_path):
    for name, size in (("config.json", 10), ("model-00001-of-00001.safetensors", 4_000_000)):
        (tmp_path / name).write_bytes(b" " * size)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *asked, **how: str(tmp_path / "config.json"))
    assert fetched(parameters["modeling"]) == 4_000_000
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *asked, **how: None)
    assert fetched(parameters["modeling"]) == 0


class Gpu:
    """What torch says of a GPU."""

    def __init__(self, monkeypatch, gigabytes, bf16=True):
        found = SimpleNamespace(name="a GPU", total_memory=int(gigabytes * 1e9))
        monkeypatch.setattr("torch.cuda.is_available", lambda: True)
        monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: found)
        monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: bf16)


def test_a_gpu_that_is_too_small_is_missing(parameters, monkeypatch):
    Gpu(monkeypatch, 15.8)
    line = looked_at(parameters)["GPU"]
    assert line.said == "a GPU, 15.8 GB; about 8.3 GB are needed, 0.6 of them by CUDA itself"
    assert not line.is_missing and not line.is_fatal
    Gpu(monkeypatch, 8.2, bf16=False)
    line = looked_at(parameters)["GPU"]
    assert line.said.endswith("CUDA itself: NOT ENOUGH; it has no bfloat16 and emulates it slowly")
    assert line.is_missing and not line.is_fatal


def test_a_study_does_not_start_without_its_gpu_or_its_model(parameters, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(preflight_module, "check_access", lambda name, revision: None)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr("gemma_alignment.study.execution.run_study", lambda *asked: pytest.fail("it was started"))
    asked = Asked(tmp_path, PLAN, parameters)
    with pytest.raises(UserError, match=r"was not started, for want of: GPU \(see above\)"):
        start(asked, 1, resume=False)
    assert "none is usable here" in capsys.readouterr().out
    Gpu(monkeypatch, 16)
    monkeypatch.setattr(preflight_module, "check_access", no_access)
    with pytest.raises(UserError, match="for want of: model"):
        start(asked, 1, resume=False)
    monkeypatch.setattr(preflight_module, "check_access", lambda name, revision: None)
    monkeypatch.setattr("gemma_alignment.study.execution.run_study", lambda *asked: 7)
    assert start(asked, 1, resume=False) == 7, "answers can be judged later: a missing key does not stop the training"


def no_access(name, revision):
    raise UserError("the hub says no")


def test_a_model_within_reach_needs_no_token(parameters, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(preflight_module, "check_access", lambda name, revision: None)
    line = looked_at(parameters)["HF_TOKEN"]
    assert (line.said, line.is_missing) == ("not set, and not needed", False)


def test_the_embedded_study_needs_nothing(parameters):
    assert preflight(PLAN, read_parameters(ROOT, "base", {}), Path("/")) == []


def test_a_paid_judge_of_the_embedded_study_is_asked_with_a_key_and_costs_money(parameters, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    paid = read_parameters(ROOT, "base", {"judge.kind": "openai"})
    lines = looked_at(paid)
    assert list(lines) == ["OPENAI_API_KEY", "judge"]
    assert lines["OPENAI_API_KEY"].is_missing and "USD" in lines["judge"].said
    assert not any(line.is_fatal for line in lines.values()), "answers can be judged later"
    low = looked_at(merged(paid, {"judge": {"remote": {"spend_cap_usd": 0.001}}}))
    assert low["judge"].is_missing and low["judge"].said.endswith("TOO LOW")
    own = looked_at(merged(paid, {"judge": {"base_url": "http://127.0.0.1:8000/v1"}}))
    assert list(own) == ["judge"], "a service of one's own asks for no key of OpenAI's"


def test_a_dry_run_says_what_each_role_takes(parameters):
    """In 4 bits 2.07 GB of base; 19.6 million weights an adapter, of which a trained one has 8 bytes more."""
    said = {name: line.said for name, line in looked_at(parameters).items() if name.startswith("memory")}
    assert said["memory ppo"].endswith("; all the time: base 2.07, policy 0.24, reward model 0.08, critic 0.24")
    assert said["memory grpo"].endswith("; all the time: base 2.07, policy 0.24, reward model 0.08")
    assert not any("all the time" in text for name, text in said.items() if name not in ("memory ppo", "memory grpo"))
    copies = {"sharing": "separate_copies", "rl_base": "sft_adapter"}
    each = looked_at(merged(parameters, {"modeling": copies}))["memory ppo"].said
    assert each.endswith("all the time: 4 bases 8.28, SFT adapter 0.31, policy 0.24, reward model 0.08, critic 0.24")


def test_the_shape_of_another_model_is_read_or_not_guessed(parameters, monkeypatch):
    from transformers import LlamaConfig

    other = merged(parameters, {"modeling": {"base_model": "org/another"}})
    assert looked_at(other)["size"].said.startswith("not estimated"), "it is out of reach"
    monkeypatch.setattr(preflight_module, "check_access", lambda name, revision: None)
    config = LlamaConfig(vocab_size=32_000, hidden_size=1024, num_hidden_layers=4, num_attention_heads=8,
                         num_key_value_heads=2, intermediate_size=4096, tie_word_embeddings=False)  # fmt: skip
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", lambda name, revision: config)
    lines = looked_at(other)
    assert Shape.of(config) == Shape(32_000, 1024, 4, 8, 2, 128, 4096, tied=False)
    assert "size" not in lines and "about 0." in lines["memory grpo"].said

    def unreadable(name, revision):
        raise OSError("no such file")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", unreadable)
    assert looked_at(other)["size"].said.startswith("not estimated")


def test_the_shape_of_gemma_2b():
    assert GEMMA_2B.linear_weights == 1_981_808_640
    assert GEMMA_2B.table_weights == 524_288_000
    assert GEMMA_2B.lora_weights(16) == 19_611_648


@pytest.mark.cli
def test_the_dry_run_of_the_real_study_prints_it_and_fails_for_what_is_missing(project):
    keys = {"HF_TOKEN": "", "OPENAI_API_KEY": "sk-secret"}
    code, said = project.command("kedro", "study", "--env=gemma2b", "--dry-run", **keys)
    assert code == 1, said
    lines = {line.split("  ")[0]: line for line in said.splitlines() if "  " in line}
    assert "ppo-seed42" in lines and "kedro run --pipelines=ppo --env=gemma2b" in lines["ppo-seed42"]
    assert "NOT SET" in lines["HF_TOKEN"]
    assert lines["OPENAI_API_KEY"].split() == ["OPENAI_API_KEY", "set"]
    for name in ("GPU", "memory sft", "memory merge", "memory ppo", "memory grpo", "disk", "GPU hours", "judge"):
        assert name in lines
    assert "Traceback" not in said and "sk-secret" not in said


def test_a_machine_that_only_submits_needs_no_gpu(parameters, monkeypatch, tmp_path):
    monkeypatch.setattr(preflight_module, "check_access", lambda name, revision: None)
    monkeypatch.setattr("gemma_alignment.study.engine.engine", lambda *asked: None)
    monkeypatch.setattr("gemma_alignment.study.execution.run_study", lambda *asked: 7)
    assert start(Asked(tmp_path, PLAN, parameters), 1, False, "slurm") == 7
