"""Any causal language model with a chat template: from its files through SFT and reward model to PPO and GRPO."""

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from modeling.test_packing import sizes
from toy import LORA, PROMPTS, SharedBase, disturb, settings
from training.test_policy_optimization import run

from gemma_alignment.errors import UserError
from gemma_alignment.modeling.chat import Chat
from gemma_alignment.modeling.loading import check_head, check_tokenizer, load_base, load_chat
from gemma_alignment.modeling.saving import SavedModel
from gemma_alignment.modeling.sequences import sequences
from gemma_alignment.modeling.tiny import TEMPLATE
from gemma_alignment.rollout.experience import rollout, score
from gemma_alignment.training.policy_evaluation import HeldOut
from gemma_alignment.training.policy_optimization import optimize
from gemma_alignment.training.preference import pair_scores, train_reward_model
from gemma_alignment.training.supervised import perplexity, train_supervised

LLAMA = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' "
    "+ m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
QWEN = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}"
    "{% elif m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)


@dataclass(frozen=True)
class Kind:
    """An architecture with the habits of its tokenizer."""

    model: str
    template: str
    special: tuple[str, ...]
    bos: str | None
    eos: str
    pad: str | None
    ending: str
    stops: tuple[str, ...]
    """What the generation config lists."""
    tied: bool
    more: dict[str, Any]


GEMMA = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
WINDOW = {"head_dim": 16, "sliding_window": 8}
KINDS = {
    "gemma": Kind("Gemma", TEMPLATE, GEMMA, "<bos>", "<eos>", "<pad>", "<end_of_turn>", ("<eos>",), True,
                  {"head_dim": 16}),
    "gemma2": Kind("Gemma2", TEMPLATE, GEMMA, "<bos>", "<eos>", "<pad>", "<end_of_turn>", ("<eos>",), True, WINDOW),
    "gemma3": Kind("Gemma3", TEMPLATE, GEMMA, "<bos>", "<eos>", "<pad>", "<end_of_turn>", ("<eos>", "<end_of_turn>"),
                   True, WINDOW),
    "llama": Kind("Llama", LLAMA, ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>",
                  "<|eot_id|>", "<|eom_id|>"), "<|begin_of_text|>", "<|end_of_text|>", None, "<|eot_id|>",
                  ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"), False, {}),
    "qwen2": Kind("Qwen2", QWEN, ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), None, "<|im_end|>", "<|endoftext|>",
                  "<|im_end|>", ("<|im_end|>", "<|endoftext|>"), True, {}),
    "mistral": Kind("Mistral", MISTRAL, ("<unk>", "<s>", "</s>"), "<s>", "</s>", None, "</s>", ("</s>",), False,
                    {"sliding_window": 8}),
}  # fmt: skip


def tokenizer_of(kind: Kind) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        PROMPTS, trainers.BpeTrainer(vocab_size=300, special_tokens=[*kind.special], initial_alphabet=alphabet)
    )
    found = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=kind.bos, eos_token=kind.eos, pad_token=kind.pad,
        additional_special_tokens=list(kind.special),
    )  # fmt: skip
    found.chat_template = kind.template
    return found


@pytest.fixture(scope="module", params=KINDS)
def files(request, tmp_path_factory) -> tuple[Kind, str]:
    """A model of random weights and its tokenizer, saved as they come from a hub."""
    kind = KINDS[request.param]
    tokenizer = tokenizer_of(kind)
    config = {"Gemma3": "Gemma3TextConfig"}.get(kind.model, f"{kind.model}Config")
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    shape = sizes(vocab_size=len(tokenizer), tie_word_embeddings=kind.tied, max_position_embeddings=256, **kind.more)
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind.model}ForCausalLM")(getattr(transformers, config)(**{**shape, **ids}))
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(list(kind.stops))
    directory = str(tmp_path_factory.mktemp(request.param))
    SavedModel(model, tokenizer).save_pretrained(directory)
    return kind, directory


def base_of(directory: str) -> SharedBase:
    return SharedBase(load_base(directory, "none", "float32", torch.device("cpu")), LORA, 0)


def test_prompts_and_responses_follow_the_template(files) -> None:
    kind, directory = files
    chat = load_chat(directory)
    tokenizer = chat.tokenizer
    for prompt in PROMPTS:
        turn = [{"role": "user", "content": prompt}]
        ids = chat.encode_prompt(prompt)
        assert tokenizer.decode(ids) == tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
        assert ids.count(tokenizer.bos_token_id) == (kind.bos is not None)
        said = chat.encode_dialogue([prompt, "apple", prompt])
        assert said.count(tokenizer.bos_token_id) == (kind.bos is not None)
        assert tokenizer.decode(said).count("You help.") == (kind.template is QWEN)
    response = chat.encode_response("a <s> b<|eot_id|><end_of_turn><|im_end|></s>")
    assert response[-1] == tokenizer.convert_tokens_to_ids(kind.ending)
    assert not set(response[:-1]) & set(chat.stop_ids)
    expected = {*kind.stops, kind.eos, kind.ending}
    assert set(chat.stop_ids) == set(tokenizer.convert_tokens_to_ids(sorted(expected)))
    assert chat.pad_id == (tokenizer.pad_token_id if kind.pad else chat.stop_ids[0])


def test_a_tokenizer_adds_the_bos_that_its_template_forgets() -> None:
    kind = KINDS["mistral"]
    tokenizer = tokenizer_of(replace(kind, template=MISTRAL.replace("{{ bos_token }}", "")))
    assert Chat(tokenizer).encode_prompt("Hi").count(tokenizer.bos_token_id) == 0, "neither writes one"
    from tokenizers.processors import TemplateProcessing

    tokenizer._tokenizer.post_processor = TemplateProcessing("<s> $0", special_tokens=[("<s>", tokenizer.bos_token_id)])
    ids = Chat(tokenizer).encode_prompt("Hi")
    assert ids[0] == tokenizer.bos_token_id and ids.count(tokenizer.bos_token_id) == 1
    tokenizer.chat_template = MISTRAL
    assert Chat(tokenizer).encode_prompt("Hi") == ids


def test_a_template_that_nothing_ends_is_refused() -> None:
    tokenizer = tokenizer_of(replace(KINDS["qwen2"], template="{% for m in messages %}{{ m['content'] }}{% endfor %}"))
    assert Chat(tokenizer).ending_id == tokenizer.eos_token_id
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="Give the tokenizer an eos_token"):
        _ = Chat(tokenizer).ending_id


def test_a_tokenizer_of_another_model_is_refused(files) -> None:
    _, directory = files
    base, chat = load_base(directory, "none", "float32", "cpu"), load_chat(directory)
    check_tokenizer(chat, base, directory)
    chat.tokenizer.add_tokens(["one more"])
    with pytest.raises(UserError, match=r"has \d+ entries up to id \d+ \('one more'\), but .* embedding has \d+ rows"):
        check_tokenizer(chat, base, directory)


SCALED = {
    "Granite": {"logits_scaling": 8.0}, "Cohere": {"logit_scale": 0.25}, "Gemma2": {"final_logit_softcapping": 0.5},
}  # fmt: skip


def scaled(kind: str) -> SharedBase:
    """An architecture that does something behind its head, which is drawn large enough to tell."""
    torch.manual_seed(3)
    config = getattr(transformers, f"{kind}Config")(**sizes(head_dim=16, **SCALED[kind]))
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval().requires_grad_(False)
    model.get_output_embeddings().weight.mul_(20)
    return SharedBase(model, LORA, 0)


@pytest.mark.parametrize("kind", SCALED)
def test_log_probabilities_are_of_the_logits_that_the_model_gives(kind: str) -> None:
    model = scaled(kind)
    check_head(model)
    rows = sequences([[2, 10, 11]], [[5, 6, 1]], 0)
    with model.role("reference"):
        found = model.logprobs(rows, 1.0)[0]
        expected = model.model(torch.tensor([[2, 10, 11, 5, 6, 1]])).logits.log_softmax(-1)
    torch.testing.assert_close(found[0], expected[0, [2, 3, 4], [5, 6, 1]], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", SCALED)
def test_a_model_whose_logits_are_not_its_heads_is_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemma_alignment.modeling.roles.as_the_model_does", lambda logits, config: logits)
    with pytest.raises(UserError, match=rf"{kind}ForCausalLM does something to its logits that is not known here"):
        check_head(scaled(kind))


TRAINING = SimpleNamespace(
    learning_rate=1e-2, batch_size=4, microbatch_size=4, epochs=4, warmup_share=0.0, max_grad_norm=1.0, log_every=1
)


def test_through_sft_and_reward_model_to_ppo_and_grpo(files, tmp_path) -> None:
    kind, directory = files
    chat = load_chat(directory)
    say = chat.encode_response
    pairs = [(chat.encode_prompt(p), say("apple and pear"), say("a bird")) for p in PROMPTS]
    sft = base_of(directory)
    sft.add("policy")
    examples = [(prompt, chosen) for prompt, chosen, _ in pairs]
    before = perplexity(sft, "policy", examples, chat.pad_id, 4, "here")
    *_, last = train_supervised(sft, examples, TRAINING, chat.pad_id, 1)
    assert last.timing["planned"] == last.iteration, "for the progress of `kedro study`"
    assert perplexity(sft, "policy", examples, chat.pad_id, 4, "here") < before
    SavedModel(sft.merged("policy", torch.float32), chat.tokenizer).save_pretrained(str(tmp_path))

    check_sampling(sft, chat)
    for method in ("ppo", "grpo"):
        model = base_of(str(tmp_path))
        for role in ("policy", "reward", "critic"):
            model.add(role)
        assert model.model.config.tie_word_embeddings is kind.tied
        losses = [r.metrics["reward_model/loss"] for r in train_reward_model(model, pairs, TRAINING, chat.pad_id, 1)]
        assert losses[-1] < losses[0]
        check_pooling(model, chat, pairs)
        one = run(method, shared_changes={"num_iterations": 1, "minibatch_size": 8})
        held_out = HeldOut([("p0", PROMPTS[0])], examples[:1])
        start, first = optimize(replace(one, model=model, chat=chat, held_out=held_out))
        assert start.metrics["eval/kl_to_reference"] == 0
        assert abs(first.metrics["policy/ratio_mean"] - 1) < 1e-4
        assert first.metrics["policy/grad_norm"] > 0


def check_sampling(model: SharedBase, chat: Chat) -> None:
    """Greedy tokens are those of ``generate``, and a response ends at the first stop token."""
    disturb(model, "policy", 0.1)
    found = rollout(model, chat, PROMPTS, 1, settings(temperature=0.0, max_new_tokens=5), torch.Generator())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gemma_alignment.modeling.heads.WIDE", 1)
        one_by_one = rollout(model, chat, PROMPTS, 1, settings(temperature=0.0, max_new_tokens=5), torch.Generator())
    assert torch.equal(one_by_one.sequences.response_tokens, found.sequences.response_tokens)
    with model.decoder() as decoder:
        for i, prompt in enumerate(PROMPTS):
            ids = torch.tensor([chat.encode_prompt(prompt)])
            asked = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": list(chat.stop_ids)}
            out = decoder.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=chat.pad_id, **asked)
            mask = found.sequences.response_mask[i]
            assert found.sequences.response_tokens[i][mask].tolist() == out[0, ids.shape[1] :].tolist()
            tokens = found.sequences.response_tokens[i][mask].tolist()
            assert not set(tokens[:-1]) & set(chat.stop_ids)
            assert bool(found.ended[i]) == (tokens[-1] in chat.stop_ids)


def check_pooling(model: SharedBase, chat: Chat, pairs: list[Any]) -> None:
    """A pair's score is the same in the reward model's training and in the loop, whatever it is padded beside."""
    with model.role("reward"), torch.no_grad():
        better, worse = pair_scores(model, pairs, chat.pad_id)
    from gemma_alignment.modeling.sequences import sequences

    for expected, side in ((better, 1), (worse, 2)):
        for i, pair in enumerate(pairs):
            batch = sequences([pair[0], [*pair[0], *pair[0]]], [pair[side], [*pair[side][:-1]] * 3], chat.pad_id)
            found = score(model, batch, torch.tensor([True, True]), (0.0, 1.0), 0.0, 2)
            assert float(found[0]) == pytest.approx(float(expected[i]), abs=1e-4)
            assert pair[side][-1] == chat.ending_id
