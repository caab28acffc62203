"""Servers that speak almost the same language: vLLM and ``transformers serve``, as their code and documents have it.

Neither server runs here. The first is spoken from the shapes of vLLM's ``entrypoints/openai`` (0.12 and later, with the
flat errors of earlier versions); of the second the installed library's own check of a request is asked too.
"""

import json

import pytest
from chat_service import Answer, error

from gemma_alignment.config import build
from gemma_alignment.errors import UserError
from gemma_alignment.judging.client import JudgeUnavailable, RequestRefused
from gemma_alignment.judging.connection import JudgeConnection
from gemma_alignment.judging.parsing import parse_verdict
from gemma_alignment.judging.session import FAILURES_IN_A_ROW, Comparison
from gemma_alignment.parameters.judge import JudgeParameters

MODEL = "Qwen/Qwen2.5-7B-Instruct"
PAIR = ("Which?", "this", "that")
COMPARISONS = [Comparison(f"p{i}", f"q{i}", "a", "b", "x", f"y{i}") for i in range(10)]


def vllm(payload, reply=None, finish="stop"):
    """Free text, unless ``response_format`` holds it to a schema: other fields for that are gone since 0.12."""
    if payload["model"] != MODEL:
        message = f"The model `{payload['model']}` does not exist."
        return Answer(404, {"error": {"message": message, "type": "NotFoundError", "param": "model", "code": 404}})
    wanted = payload.get("response_format", {})
    if reply is None and wanted.get("type") == "json_schema":
        names = wanted["json_schema"]["schema"]["properties"]
        reply = json.dumps({name: rule.get("enum", ["because"])[0] for name, rule in names.items()})
    message = {
        "role": "assistant", "content": reply or "The first one is better.", "refusal": None, "annotations": None,
        "audio": None, "function_call": None, "reasoning": None,
    }  # fmt: skip
    choice = {
        "index": 0, "message": message, "logprobs": None, "finish_reason": finish, "stop_reason": None,
        "token_ids": None,
    }  # fmt: skip
    usage = {"prompt_tokens": 310, "total_tokens": 330, "completion_tokens": 20, "prompt_tokens_details": None}
    return Answer(
        body={
            "id": "chatcmpl-8f2c", "object": "chat.completion", "created": 1, "model": MODEL, "choices": [choice],
            "service_tier": None, "system_fingerprint": None, "usage": usage, "prompt_logprobs": None,
            "prompt_token_ids": None, "kv_transfer_params": None,
        }
    )  # fmt: skip


def transformers_serve(payload, reply):
    """Fields without a value are left out; errors are FastAPI's ``detail``."""
    if payload["model"] != MODEL:
        return Answer(400, {"detail": f"Server is pinned to '{MODEL}'; requested '{payload['model']}'."})
    choice = {"finish_reason": "stop", "index": 0, "message": {"content": reply, "role": "assistant"}}
    usage = {"completion_tokens": 20, "prompt_tokens": 310, "total_tokens": 330}
    return Answer(
        body={
            "id": "8f2c", "choices": [choice], "created": 1, "model": MODEL, "object": "chat.completion",
            "usage": usage,
        }
    )  # fmt: skip


@pytest.fixture
def own(judge_section, tmp_path):
    """A session with a server of one's own: no price, no cap, no key."""

    def make(**changes):
        parameters = build(JudgeParameters, judge_section(model=MODEL, spend_cap_usd=None) | changes, "judge")
        return JudgeConnection(tmp_path / "cache.jsonl").session(parameters)

    return make


def test_vllm_is_held_to_the_schema_by_response_format(service, own):
    service.script = lambda n, payload: vllm(payload)
    rows = own().judgements(COMPARISONS)
    assert {row["verdict"] for row in rows} == {"first"}
    assert json.loads(rows[0]["reply"]) == {"reason": "because", "verdict": "1"}
    assert (rows[0]["model"], rows[0]["fingerprint"], rows[0]["tokens_in"], rows[0]["tokens_out"]) == (
        MODEL, None, 310, 20,
    )  # fmt: skip
    sent = service.received[0]
    assert not set(sent) & {"guided_json", "structured_outputs", "max_completion_tokens"}
    assert isinstance(sent["seed"], int)


def test_vllm_without_the_model_ends_at_once(service, own):
    service.script = lambda n, payload: vllm(payload)
    with pytest.raises(UserError, match=r"knows no model 'other'"):
        own(model="other").judgements(COMPARISONS)
    assert len(service.received) <= 4  # as many as are under way at a time


def test_vllm_with_another_key_ends_at_once(service, own):
    service.script = lambda n, payload: Answer(401, {"error": "Unauthorized"})
    with pytest.raises(UserError, match="refused the key"):
        own().judgements(COMPARISONS)


TOO_LONG = "This model's maximum context length is 4096 tokens. However, your request has 5000 input tokens."
REFUSAL = {"message": TOO_LONG, "type": "BadRequestError", "param": "input_tokens", "code": 400}


@pytest.mark.parametrize("body", [{"error": REFUSAL}, {"object": "error", **REFUSAL}], ids=["nested", "flat, as once"])
def test_vllm_leaves_out_what_does_not_fit_its_context(service, remote_judge, own, body):
    service.script = lambda n, payload: Answer(400, body) if '"q7"' in str(payload) else vllm(payload)
    rows = own().judgements(COMPARISONS)
    assert {row["prompt_id"] for row in rows if row["verdict"] == "unparsed"} == {"p7"}
    service.script = lambda n, payload: Answer(400, body)
    with pytest.raises(RequestRefused, match="maximum context length is 4096 tokens"):
        remote_judge().judge(*PAIR)


def test_vllm_whose_engine_died_is_asked_again_and_then_left(service, remote_judge):
    fault = {"message": "EngineCore encountered an issue.", "type": "InternalServerError", "param": None, "code": 500}
    service.script = lambda n, payload: Answer(500, {"error": fault})
    with pytest.raises(JudgeUnavailable, match="no reply after 4 attempts; the last: status 500"):
        remote_judge().judge(*PAIR)


@pytest.mark.parametrize("reply", ['{"reason": "it is so very mu', " "])
def test_vllm_cut_off_at_the_token_limit_is_no_verdict(service, own, reply):
    """A model that reasons first may have said nothing at all by then."""
    service.script = lambda n, payload: vllm(payload, reply, "length")
    rows = own().judgements(COMPARISONS[:1])
    assert [(row["verdict"], row["calls"]) for row in rows] == [("unparsed", 3)] * 2


@pytest.fixture(scope="module")
def handler():
    """The check that the installed server makes of a request, without the server."""
    pytest.importorskip("fastapi")
    from transformers.cli.serving.chat_completion import UNUSED_CHAT_COMPLETION_FIELDS, ChatCompletionHandler

    assert "response_format" in UNUSED_CHAT_COMPLETION_FIELDS
    return ChatCompletionHandler(None, None)


def test_transformers_serve_takes_what_is_sent_and_ignores_the_schema(service, own, handler):
    """Prose is no verdict, a fenced object is one: the client's own validation carries it."""
    fenced = '```json\n{"reason": "clear", "verdict": "2"}\n```'
    replies = {42: 'The better answer is "1".', 43: fenced}
    service.script = lambda n, payload: transformers_serve(payload, replies[payload["seed"]])
    rows = own().judgements(COMPARISONS)
    assert {(row["verdict"], row["calls"], row["fingerprint"]) for row in rows} == {("second", 2, None)}
    for payload in service.received:
        handler._validate_request(payload)  # raises for a field that it does not know
    with pytest.raises(Exception, match="Unexpected fields"):
        handler._validate_request({**service.received[0], "guided_json": {}})


def test_transformers_serve_pinned_to_another_model_ends_after_a_few(service, own):
    service.script = lambda n, payload: transformers_serve(payload, "1")
    with pytest.raises(UserError, match=r"in a row .*Server is pinned to"):
        own(model="other").judgements(COMPARISONS)
    assert len(service.received) <= FAILURES_IN_A_ROW + 4


def test_transformers_serve_with_a_dead_worker_is_asked_again(service, remote_judge):
    """Its 503 has a word where others have an object."""
    dead = Answer(503, {"error": "the worker is dead"})
    service.script = lambda n, payload: dead if n < 3 else error(500) if n == 3 else transformers_serve(payload, "tie")
    judge = remote_judge(model=MODEL, spend_cap_usd=None)
    assert parse_verdict(judge.judge(*PAIR).text) == "tie"
    assert len(service.received) == 4
