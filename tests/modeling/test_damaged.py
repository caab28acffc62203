"""Directories of models that are damaged: one message that names the directory and what to do."""

import json
import os

import pytest
from toy import chat, shared

from gemma_alignment.errors import UserError
from gemma_alignment.modeling.loading import load_base, load_chat
from gemma_alignment.modeling.saving import SavedModel, read_normalizer, saved_adapter


def halved(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def removed(path):
    path.unlink()


def emptied(path):
    path.write_text("{}")


def narrowed(path):
    """The rank that the configuration names is not that of the weights."""
    path.write_text(json.dumps(json.loads(path.read_text()) | {"r": 2}))


def thinned(path):
    """A valid file that lacks every other tensor."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    save_file({name: tensors[name] for name in sorted(tensors)[::2]}, path, {"format": "pt"})


@pytest.fixture
def adapter(tmp_path):
    """A whole adapter with a head and a normaliser."""
    saved_adapter(shared(("reward",)), "reward", "base", {"mean": 0.5, "sd": 2.0}).save_pretrained(str(tmp_path))
    return tmp_path


@pytest.fixture
def model(tmp_path):
    """A whole model with its tokenizer."""
    SavedModel(shared(()).model, chat().tokenizer).save_pretrained(str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("adapter_model.safetensors", halved),
        ("adapter_model.safetensors", removed),
        ("adapter_model.safetensors", thinned),
        ("adapter_config.json", removed),
        ("adapter_config.json", halved),
        ("adapter_config.json", emptied),
        ("adapter_config.json", narrowed),
        ("head.safetensors", halved),
        ("head.safetensors", removed),
    ],
)
@pytest.mark.parametrize("roles", [(), ("policy",)], ids=["first", "second"])
def test_a_damaged_adapter_is_refused(adapter, roles, name, damage):
    shared(roles).load("reward", str(adapter))
    damage(adapter / name)
    with pytest.raises(UserError, match=r"(?s)The adapter in .* cannot be used .*'reward'.*Make it anew") as error:
        shared(roles).load("reward", str(adapter))
    assert str(adapter) in str(error.value)


@pytest.mark.parametrize(
    ("name", "damage"), [("model.safetensors", halved), ("model.safetensors", thinned), ("config.json", removed)]
)
def test_a_damaged_model_is_refused(model, name, damage):
    load_base(str(model), "none", "float32", "cpu")
    damage(model / name)
    with pytest.raises(UserError, match=r"(?s)Cannot load a model from .*A damaged directory is made anew"):
        load_base(str(model), "none", "float32", "cpu")


@pytest.mark.parametrize("damage", [halved, removed])
def test_a_damaged_tokenizer_is_refused(model, damage):
    load_chat(str(model))
    damage(model / "tokenizer.json")
    with pytest.raises(UserError, match=r"(?s)Cannot load a model from .*A damaged directory is made anew"):
        load_chat(str(model))


@pytest.mark.parametrize("damage", [halved, removed, emptied])
def test_a_damaged_normalizer_is_refused(adapter, damage):
    assert read_normalizer(str(adapter)) == (0.5, 2.0)
    damage(adapter / "normalizer.json")
    with pytest.raises(UserError, match=r"(?s)Cannot read .*normalizer\.json.*--pipeline=reward_model"):
        read_normalizer(str(adapter))


@pytest.mark.parametrize("umask", [0o022, 0o027])
def test_weights_can_be_read_by_whom_the_umask_lets(tmp_path, umask):
    """A server of another account reads an export: safetensors alone would not let it."""
    before = os.umask(umask)
    try:
        SavedModel(shared(()).model, chat().tokenizer).save_pretrained(str(tmp_path / "model"))
        saved_adapter(shared(("reward",)), "reward", "base", {"mean": 0.0}).save_pretrained(str(tmp_path / "adapter"))
    finally:
        os.umask(before)
    files = [one for one in tmp_path.glob("*/*") if one.is_file()]
    assert {one.name for one in files} >= {"model.safetensors", "adapter_model.safetensors", "head.safetensors"}
    assert {one.stat().st_mode & 0o777 for one in files} == {0o666 & ~umask}


def test_four_bits_where_they_cannot_be_computed_are_refused(model, monkeypatch):
    def unfit(*args, **more):
        raise RuntimeError("no kernel image is available")

    load_base(str(model), "none", "float32", "cpu")
    monkeypatch.setattr("bitsandbytes.functional.quantize_4bit", unfit)
    message = r"(?s)4 bits cannot be computed on cpu here: RuntimeError: no kernel.*modeling\.quantization=none"
    with pytest.raises(UserError, match=message):
        load_base(str(model), "nf4", "float32", "cpu")
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes.functional", None)
    with pytest.raises(UserError, match="4 bits cannot be computed on cpu"):
        load_base(str(model), "nf4", "float32", "cpu")
