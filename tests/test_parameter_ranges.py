"""Values without meaning are refused when the parameters are built, by name, before anything runs."""

from pathlib import Path

import pytest
import yaml

from gemma_alignment.config import ConfigError, build
from gemma_alignment.parameters import data, training

CONF = Path(__file__).parents[1] / "conf" / "base"
SECTIONS = {
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
        ("tiny_model", "heads", 0, "heads is 0"),
        ("tiny_model", "layers", 0, "layers is 0"),
        ("tiny_model", "heads", 3, "hidden_size 128 does not give each of 3 heads an even width"),
        ("pretraining", "learning_rate", -5.0, "learning_rate is -5.0"),
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
