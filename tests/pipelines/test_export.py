"""A trained policy leaves the project: plain libraries load it and write the same greedy tokens."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import toy
import yaml

from gemma_alignment.errors import UserError
from gemma_alignment.fingerprints import Record
from gemma_alignment.modeling.card import model_card
from gemma_alignment.modeling.saving import SavedModel, saved_adapter
from gemma_alignment.pipelines.export.nodes import export_policy

ROOT = Path(__file__).parents[2]
RUNTIME = {"device": "cpu", "threads": 1}
HISTORY = [
    {"iteration": 0, "eval/score_mean": 0.0, "eval/perplexity": 2.5},
    {"iteration": 1, "reward/score_mean": 9.0},
    {"iteration": 2, "eval/score_mean": 0.75, "eval/perplexity": 2.25, "eval/kl_to_reference": 0.5},
]
PLAIN = """
import json, sys
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
merged, base, adapter = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(merged)
models = [
    AutoModelForCausalLM.from_pretrained(merged),
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter),
    AutoModelForCausalLM.from_pretrained(base),
]
found = [[], [], []]
for prompt in json.loads(sys.stdin.read()):
    turns = [{"role": "user", "content": prompt}]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    for model, tokens in zip(models, found, strict=True):
        out = model.generate(**ids, max_new_tokens=12, do_sample=False)
        tokens.append(out[0, ids["input_ids"].shape[1]:].tolist())
print(json.dumps({"tokens": found, "ours": "gemma_alignment" in sys.modules}))
"""


def section(name):
    values = yaml.safe_load((ROOT / "conf/base/parameters_modeling.yml").read_text(encoding="utf-8"))
    values |= yaml.safe_load((ROOT / "conf/base/parameters_data_processing.yml").read_text(encoding="utf-8"))
    values |= yaml.safe_load((ROOT / "conf/base/parameters_grpo.yml").read_text(encoding="utf-8"))
    return values[name]


def record(**changes):
    parameters = {"modeling": section("modeling"), "preferences": section("preferences"), "grpo": section("grpo")}
    facts = {"method": "grpo", "status": "finished", "commit": "abc123"}
    return Record("grpo", 777, "", {"configuration": "f" * 64}, parameters, **facts | changes)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data folder as an arm leaves it: a merged SFT model, a policy that moved, its history and its record."""
    root = tmp_path_factory.mktemp("data")
    model = toy.shared(("policy",))
    toy.disturb(model, "policy", 0.15)
    base, run = root / "06_models/sft_merged_model", "grpo/seed=777"
    plain = toy.tiny_gemma(toy.SHAPE, len(toy.chat().tokenizer), 0)
    SavedModel(plain, toy.chat().tokenizer).save_pretrained(str(base))
    saved_adapter(model, "policy", str(base), method="grpo").save_pretrained(str(root / "06_models" / run / "policy"))
    for name in ("base_model", "sft_adapter"):
        (root / "06_models" / name).mkdir()
        (root / "06_models" / name / "not_read").touch()
    output = root / "07_model_output" / run
    record().write(output)
    (output / "history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in HISTORY))
    return root


def exported(data, run=None, seed=777):
    folder = data / "06_models"
    return export_policy(
        str(folder / "sft_merged_model"), str(folder / "grpo/seed=777/policy"), HISTORY, vars(run or record()), "grpo",
        seed, RUNTIME, "no base", "no adapter",
    )  # fmt: skip


@pytest.fixture
def export(tmp_path, empty_store, monkeypatch):
    """``export(**params)``: the pipeline in a project of its own, in this process."""
    from kedro.framework.project import pipelines
    from kedro.framework.session import KedroSession
    from kedro.framework.startup import bootstrap_project

    shutil.copytree(ROOT / "conf", tmp_path / "conf", ignore=shutil.ignore_patterns("local"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    for name in ("src", "conf/local"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def run(**params):
        bootstrap_project(tmp_path)
        pipelines.configure("gemma_alignment.pipeline_registry")
        with KedroSession.create(tmp_path, runtime_params=params, save_on_close=False) as session:
            session.run(pipeline_names=["export"])

    return run


@pytest.mark.pipeline
@pytest.mark.cli
def test_plain_libraries_load_the_export_and_write_the_tokens_of_base_and_adapter(data, export, tmp_path):
    from mlflow import MlflowClient

    root = tmp_path / "data" / "mine"
    shutil.copytree(data, root)
    export(data_root=str(root), method="grpo", seed=777)
    folder = root / "06_models/grpo/seed=777"
    assert (folder / "merged/README.md").read_text().startswith("---\nlibrary_name:")
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, folder / "merged", data / "06_models/sft_merged_model", folder / "policy"],
        input=json.dumps(toy.PROMPTS), capture_output=True, text=True, check=True, timeout=300,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
    )  # fmt: skip
    found = json.loads(done.stdout)
    merged, adapted, base = found["tokens"]
    assert not found["ours"]
    assert merged == adapted
    assert merged != base, "a policy that does nothing would pass"
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert client.search_runs([one.experiment_id for one in client.search_experiments()]) == []


@pytest.mark.pipeline
def test_what_is_missing_is_named_with_the_command_that_makes_it(export):
    with pytest.raises(UserError) as error:
        export(data_root="data/none", method="ppo", seed=7)
    said = str(error.value)
    assert "chosen_policy  (data/none/06_models/ppo/seed=7/policy)" in said
    assert "kedro run --pipeline=ppo --params data_root=data/none,seed=7" in said
    assert "--pipeline=grpo" not in said
    with pytest.raises(UserError, match="unknown method gpro; did you mean grpo"):
        export(method="gpro")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"status": "killed"}, r"grpo with seed 777 is killed: finish it with kedro run --pipeline=grpo --params seed"),
        ({"method": "ppo"}, "holds a run of ppo with seed 777: move it back"),
        ({"seed": 42}, "holds a run of grpo with seed 42: move it back"),
    ],
)
def test_a_run_of_something_else_is_refused(data, changes, message):
    kept = vars(record()) | changes
    with pytest.raises(UserError, match=message):
        exported(data, Record(**kept))


def test_the_card_says_what_it_was_made_from_and_what_was_measured_last(data):
    card = exported(data).card
    head, body = card.split("---", 2)[1:]
    assert yaml.safe_load(head) == {
        "library_name": "transformers", "pipeline_tag": "text-generation", "license": "apache-2.0",
        "tags": ["rlhf", "grpo", "lora-merged"],
    }  # fmt: skip
    assert "| Seed | 777 |" in body and "| Commit | abc123 |" in body
    assert "a small Gemma, pre-trained by this project" in body
    assert "At iteration 2, the last one" in body
    assert "(`eval/score_mean`) | 0.75 |" in body and "(`eval/perplexity`) | 2.25 |" in body
    assert "reward/score_mean" not in body


def test_the_card_of_the_real_study_carries_the_terms_of_base_and_data():
    modeling = {**section("modeling"), "base_model": "google/gemma-2b-it", "revision": "9698", "quantization": "nf4"}
    source = {"source": "huggingface", "repository": "HuggingFaceH4/ultrafeedback_binarized", "revision": "3949"}
    parameters = {"modeling": modeling, "preferences": {**section("preferences"), **source}, "grpo": section("grpo")}
    card = model_card(vars(record()) | {"parameters": parameters}, {})
    head = yaml.safe_load(card.split("---")[1])
    assert (head["license"], head["base_model"]) == ("gemma", "google/gemma-2b-it")
    assert head["datasets"] == ["HuggingFaceH4/ultrafeedback_binarized"]
    assert "ai.google.dev/gemma/terms" in card and "MIT licence" in card
    assert "held in 4 bits" in card and "google/gemma-2b-it at revision 9698" in card
