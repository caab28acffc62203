"""Values without meaning are refused when the parameters are built, by name, before anything runs."""

from pathlib import Path

import pytest
import yaml

from gemma_alignment.config import ConfigError, build
from gemma_alignment.parameters import data, training
from gemma_alignment.world.grammar import KINDS

CONF = Path(__file__).parents[1] / "conf" / "base"
SECTIONS = {
    "preferences": (data.PreferencesParameters, "data_processing"),
    "world": (data.WorldParameters, "data_processing"),
    "tiny_model": (data.TinyModelParameters, "data_processing"),
    "pretraining": (data.PretrainingParameters, "data_processing"),
    "kl_control": (training.KLControlParameters, "policy_optimization"),
}


@pytest.mark.parametrize(
    ("section", "name", "value", "message"),
    [
        ("world", "noise", -1.0, "noise is -1.0"),
        ("world", "max_skill", 1.5, "max_skill is 1.5"),
        ("world", "corrupted_share", -0.1, "corrupted_share is -0.1"),
        ("world", "unseen_tasks", 7, "unseen_tasks is 7, but there are 6 kinds"),
        ("world", "unseen_tasks", -1, "unseen_tasks is -1"),
        ("preferences", "score_range", [10, 0], r"score_range is \[10.0, 0.0\]"),
        ("preferences", "score_range", [3, 3], r"score_range is \[3.0, 3.0\]"),
        ("preferences", "score_range", [0, float("inf")], r"score_range\[1\]: expected a finite number, got inf"),
        ("preferences", "score_range", [float("nan"), 1], r"score_range\[0\]: expected a finite number, got nan"),
        ("tiny_model", "heads", 0, "heads is 0"),
        ("tiny_model", "layers", 0, "layers is 0"),
        ("tiny_model", "heads", 3, "hidden_size 128 does not give each of 3 heads an even width"),
        ("pretraining", "learning_rate", -5.0, "learning_rate is -5.0"),
        ("pretraining", "learning_rate", float("nan"), "learning_rate: expected a finite number, got nan"),
        ("pretraining", "batch_size", 0, "batch_size is 0"),
        ("pretraining", "warmup_share", 2.0, "warmup_share is 2.0"),
        ("kl_control", "max_fall", 5.0, "max_fall is 5.0"),
        ("kl_control", "ceiling", 0.04, "ceiling is 0.04, below a phase's value, 0.05"),
        ("kl_control", "max_rise", -5.0, "max_rise is -5.0"),
    ],
)
def test_a_value_without_meaning_is_refused_by_name(section, name, value, message):
    kind, file = SECTIONS[section]
    values = yaml.safe_load((CONF / f"parameters_{file}.yml").read_text(encoding="utf-8"))[section]
    build(kind, values, section)
    with pytest.raises(ConfigError, match=f"{section}.*{message}"):
        build(kind, {**values, name: value}, section)


def test_as_many_tasks_can_be_held_out_as_the_world_has_kinds():
    assert data.MOST_UNSEEN_TASKS == len(KINDS)
