"""The plain copy that sampling and exports use."""

import pytest
import torch
from toy import rounded

from gemma_alignment.modeling.merging import empty_copy


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_copy_is_made_in_its_type_with_the_frequencies_of_a_loaded_model(dtype, tmp_path, monkeypatch) -> None:
    model = rounded("nf4", tmp_path)
    made = []
    parameter = torch.nn.Parameter.__new__
    monkeypatch.setattr(
        torch.nn.Parameter, "__new__", lambda cls, data=None, *more, **named: made.append(data.dtype)
        or parameter(cls, data, *more, **named),
    )  # fmt: skip
    plain = empty_copy(model, dtype)
    assert made and set(made) == {dtype}
    assert {one.dtype for one in plain.parameters()} == {dtype}
    frequencies = dict(model.named_buffers())["model.rotary_emb.inv_freq"]
    copied = dict(plain.named_buffers())["model.rotary_emb.inv_freq"]
    assert copied.dtype == frequencies.dtype == torch.float32
    assert torch.equal(copied, frequencies)
    assert torch.get_default_dtype() == torch.float32
