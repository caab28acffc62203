"""Judging in batches over HTTP: joined by id, resumed after any step, billed once."""

import fcntl
import json
import logging
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from chat_service import Answer, error, verdict

from gemma_alignment.config import build
from gemma_alignment.errors import UserError
from gemma_alignment.judging.batch_calls import MARK, BatchCalls
from gemma_alignment.judging.batch_log import HeldLog
from gemma_alignment.judging.budget import SpendLedger
from gemma_alignment.judging.cache import ReplyCache
from gemma_alignment.judging.connection import JudgeConnection
from gemma_alignment.judging.session import Comparison
from gemma_alignment.parameters.judge import JudgeParameters

COMPARISONS = [Comparison(f"p{i}", f"q{i}", "a", "b", "x" * (i % 3 + 1), "yyyy") for i in range(10)]
HALF_PRICE = (100 * 0.15 + 20 * 0.6) / 1e6 / 2


class Killed(BaseException):
    """The process ends here."""


def longer(body):
    """The verdict of a judge that looks at length alone."""
    texts = json.loads(body["messages"][1]["content"])
    return verdict("1" if len(texts["answer_1"]) > len(texts["answer_2"]) else "2")


@pytest.fixture
def study(batch_service, judge_section, tmp_path):
    """Judge everything in batches; each call is a run of its own over the same files."""
    batch_service.say = longer

    def run(**remote):
        section = judge_section(base_url=batch_service.url, mode="batch", **remote)
        connection = JudgeConnection(tmp_path / "cache.jsonl", "key")
        return connection.session(build(JudgeParameters, section, "judge")).judgements(COMPARISONS)

    return run


def kept(tmp_path):
    """Replies in the cache."""
    return len((tmp_path / "cache.jsonl").read_text().splitlines())


def spent(tmp_path):
    return SpendLedger(tmp_path / "cache.spend.jsonl", 1.0).spent()


EXPECTED = ["second", "first"] * 10


def test_replies_are_joined_by_id_whatever_their_order(study, batch_service, tmp_path):
    rows = study()
    assert [row["verdict"] for row in rows] == EXPECTED
    assert [row["calls"] for row in rows] == [1] * 20
    assert len(batch_service.batches) == 1
    assert rows[0]["cost"] == pytest.approx(HALF_PRICE)
    assert spent(tmp_path) == pytest.approx(20 * HALF_PRICE)


def test_a_batch_asks_what_a_live_judge_asks(study, batch_service, service, judge_section, tmp_path):
    study()
    live = build(JudgeParameters, judge_section(), "judge")
    JudgeConnection(tmp_path / "other.jsonl", "key").session(live).judgements(COMPARISONS)
    handed_in = sorted(json.dumps(line["body"], sort_keys=True) for line in batch_service.asked())
    assert handed_in == sorted(json.dumps(body, sort_keys=True) for body in service.received)
    assert {(line["method"], line["url"]) for line in batch_service.asked()} == {("POST", "/v1/chat/completions")}
    assert all(len(line["custom_id"]) == 64 for line in batch_service.asked())  # the longest the service takes


def test_what_is_known_is_not_handed_in_again(study, batch_service):
    first = study()
    assert study() == first
    assert len(batch_service.batches) == 1


def test_requests_are_split_by_number(study, batch_service):
    rows = study(batch_size=7)
    assert [row["verdict"] for row in rows] == EXPECTED
    assert len(batch_service.batches) == 3
    assert len({line["custom_id"] for line in batch_service.asked()}) == 20


def test_requests_are_split_by_size(study, batch_service, monkeypatch):
    monkeypatch.setattr("gemma_alignment.judging.batches.MAX_BYTES", 10_000)
    assert [row["verdict"] for row in study()] == EXPECTED
    assert len(batch_service.batches) > 3
    assert all(len(content) <= 10_000 for name, content in batch_service.files.items() if name[:5] == "file-")


def test_what_expired_is_handed_in_again_and_what_was_finished_is_kept(study, batch_service, tmp_path, caplog):
    batch_service.ends = lambda batch: "expired" if batch["id"] == "batch-0" else "completed"

    def after_the_first(body):
        return longer(body) if len(batch_service.batches) > 1 or '"q3"' in body["messages"][1]["content"] else None

    batch_service.say = after_the_first
    rows = study()
    assert [row["verdict"] for row in rows] == EXPECTED
    sizes = [len(batch_service.files[b["input_file_id"]].split(b"\n")) for b in batch_service.batches.values()]
    assert sizes == [20, 18]
    assert spent(tmp_path) == pytest.approx(20 * HALF_PRICE)
    assert {line["body"]["seed"] for line in batch_service.asked()} == {42}  # not answered, so asked as before
    assert "is expired; 18 requests have no reply (batch_expired: 18)" in caplog.text


def test_what_the_error_file_calls_refused_is_handed_in_once_and_listed(study, batch_service, caplog):
    def say(body):
        if '"q3"' in body["messages"][1]["content"]:
            return error(400, "content_filter", "flagged")
        return longer(body) if '"q4"' not in body["messages"][1]["content"] else error(500)

    batch_service.say = say
    rows = {(row["prompt_id"], row["order"]): row for row in study()}
    assert {row["verdict"] for (prompt, _), row in rows.items() if prompt in ("p3", "p4")} == {"unparsed"}
    assert sum(row["verdict"] != "unparsed" for row in rows.values()) == 16
    sizes = [len(batch_service.files[b["input_file_id"]].split(b"\n")) for b in batch_service.batches.values()]
    assert sizes == [20, 2, 2]  # a failing service is asked again, a refusal stands
    assert "content_filter: 2" in caplog.text


def test_a_quota_used_up_within_a_batch_stops_and_keeps_what_was_answered(study, batch_service, tmp_path):
    def say(body):
        if '"q3"' in body["messages"][1]["content"] and len(batch_service.batches) == 1:
            return error(429, "insufficient_quota")
        return longer(body)

    batch_service.say = say
    with pytest.raises(UserError, match="quota is used up"):
        study()
    assert len(batch_service.batches) == 1
    assert spent(tmp_path) == pytest.approx(18 * HALF_PRICE)
    assert [row["verdict"] for row in study()] == EXPECTED
    assert len(batch_service.asked()) == 22


def test_lines_that_count_no_tokens_are_billed_at_the_worst(study, batch_service, tmp_path):
    results = batch_service._results

    def uncounted(name, lines):
        ids = results(name, lines)
        batch_service.files[ids["output_file_id"]] = re.sub(
            rb'"usage": {[^}]*}', b'"usage": null', batch_service.files[ids["output_file_id"]]
        )
        return ids

    batch_service._results = uncounted
    rows = study()
    reserved = json.loads((tmp_path / "cache.spend.jsonl").read_text().splitlines()[0])["usd"]
    assert spent(tmp_path) == pytest.approx(reserved) == pytest.approx(sum(row["cost"] for row in rows))


def test_a_completed_batch_may_hold_only_errors(study, batch_service):
    batch_service.say = lambda body: None
    rows = study()
    assert {row["verdict"] for row in rows} == {"unparsed"}
    assert {row["calls"] for row in rows} == {0}
    assert len(batch_service.batches) == 3  # attempts


def test_refusals_are_asked_again_with_another_seed(study, batch_service):
    batch_service.say = lambda body: longer(body) if body["seed"] == 44 else "I would rather not."
    rows = study()
    assert [row["verdict"] for row in rows] == EXPECTED
    assert {row["calls"] for row in rows} == {3}
    assert [line["body"]["seed"] for line in batch_service.asked()] == [42] * 20 + [43] * 20 + [44] * 20


def test_a_refused_batch_says_why(study, batch_service, tmp_path):
    batch_service.ends = lambda batch: "failed"
    with pytest.raises(UserError, match="refused batch batch-0: line 1 is no JSON"):
        study()
    assert spent(tmp_path) == 0
    batch_service.ends = lambda batch: "completed"
    assert [row["verdict"] for row in study()] == EXPECTED


@pytest.mark.parametrize("step", ["POST /files", "POST /batches", "GET /batches/", "GET /files"])
@pytest.mark.parametrize("fault", [error(500), error(429, "rate_limit_exceeded"), Answer(drop=True)])
def test_faults_at_every_step_are_survived(study, batch_service, tmp_path, step, fault):
    batch_service.faults = [(step, fault), (step, fault)]
    assert [row["verdict"] for row in study()] == EXPECTED
    assert len(batch_service.batches) == 1
    assert spent(tmp_path) == pytest.approx(20 * HALF_PRICE)


def test_a_batch_whose_confirmation_was_lost_is_not_handed_in_twice(study, batch_service, tmp_path):
    batch_service.faults = [("POST /batches", Answer(drop=True))]
    batch_service.after_faults = {"POST /batches"}
    assert [row["verdict"] for row in study()] == EXPECTED
    assert len(batch_service.batches) == 1
    assert spent(tmp_path) == pytest.approx(20 * HALF_PRICE)


STEPS = {
    "before the plan": (HeldLog, "planned"),
    "before the reservation": (SpendLedger, "reserve"),
    "before the file": (BatchCalls, "upload"),
    "before the batch": (BatchCalls, "create"),
    "before its name is written down": (HeldLog, "handed_in"),
    "while waiting": (BatchCalls, "wait"),
    "before the results": (BatchCalls, "content"),
    "before the replies": (ReplyCache, "put_once"),
    "before the bill": (SpendLedger, "settle"),
    "before it is written down as collected": (HeldLog, "collected"),
}


@pytest.mark.parametrize("step", STEPS)
def test_a_run_killed_at_any_step_is_taken_up(study, batch_service, tmp_path, monkeypatch, step):
    """What the service has is collected, billed and kept once; what it never got is handed in."""

    def die(*args, **kwargs):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(*STEPS[step], die)
        with pytest.raises(Killed):
            study(timeout_s=0.5)
    place = list(STEPS).index(step)
    reserved = spent(tmp_path)
    if step in ("before the plan", "before the reservation"):
        assert reserved == 0
    elif step == "before it is written down as collected":
        assert reserved == pytest.approx(20 * HALF_PRICE)
    else:
        assert reserved > 20 * HALF_PRICE  # the worst case, until the bill is known
    assert len(batch_service.batches) == (place > list(STEPS).index("before the batch"))
    assert [row["verdict"] for row in study(timeout_s=0.5)] == EXPECTED
    assert len(batch_service.batches) == 1
    assert spent(tmp_path) == pytest.approx(20 * HALF_PRICE)
    assert kept(tmp_path) == 20
    assert {batch["metadata"][MARK] for batch in batch_service.batches.values()} != {None}


def test_a_call_of_the_dead_that_arrives_late_is_waited_for(study, batch_service, tmp_path, monkeypatch):
    """The kill came with the request under way: who looks for the batch at once finds nothing yet."""
    late = []

    def die(calls, file_id, mark, before_sending):
        before_sending()
        body = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "metadata": {MARK: mark}}

        def arrive():
            time.sleep(0.4)
            httpx2.post(f"{batch_service.url}/batches", json=body)

        late.append(threading.Thread(target=arrive))
        late[0].start()
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(BatchCalls, "create", die)
        with pytest.raises(Killed):
            study(timeout_s=2.0)
    assert [row["verdict"] for row in study(timeout_s=2.0)] == EXPECTED
    late[0].join()
    assert len(batch_service.batches) == 1
    assert spent(tmp_path) == pytest.approx(20 * HALF_PRICE)


def test_two_runs_at_once_hand_in_each_request_once(study, batch_service, tmp_path):
    """Each with files and locks of its own, as in two processes; the first is still sending when the second plans."""
    batch_service.delays = {"POST /files": 0.3, "POST /batches": 0.3}
    with ThreadPoolExecutor(2) as pool:
        rows = [future.result() for future in [pool.submit(study, batch_size=13) for _ in range(2)]]
    assert [[row["verdict"] for row in found] for found in rows] == [EXPECTED, EXPECTED]
    assert len(batch_service.asked()) == len({line["custom_id"] for line in batch_service.asked()}) == 20
    assert spent(tmp_path) == pytest.approx(20 * HALF_PRICE)
    assert kept(tmp_path) == 20


def test_two_runs_at_once_share_refusals_and_further_attempts(study, batch_service, tmp_path):
    """What was refused costs nothing, and may be handed in once by each."""

    def say(body):
        if '"q3"' in body["messages"][1]["content"]:
            return error(400, "content_filter", "flagged")
        return longer(body) if '"q4"' not in body["messages"][1]["content"] or body["seed"] == 43 else "no"

    batch_service.say = say
    batch_service.delays = {"POST /files": 0.2}
    with ThreadPoolExecutor(2) as pool:
        rows = [future.result() for future in [pool.submit(study) for _ in range(2)]]
    assert rows[0] == rows[1]
    assert sum(row["verdict"] == "unparsed" for row in rows[0]) == 2
    asked = Counter(json.loads(line["body"]["messages"][1]["content"])["prompt"] for line in batch_service.asked())
    assert asked.pop("q3") in (2, 4)
    assert asked.pop("q4") == 4
    assert set(asked.values()) == {2}
    assert spent(tmp_path) == pytest.approx(20 * HALF_PRICE)


KILLED = """
import json, sys
sys.path.insert(0, sys.argv[3])
from gemma_alignment.config import build
from gemma_alignment.judging.connection import JudgeConnection
from gemma_alignment.judging.session import Comparison
from gemma_alignment.parameters.judge import JudgeParameters

comparisons = [Comparison(f"p{i}", f"q{i}", "a", "b", "x" * (i % 3 + 1), "yyyy") for i in range(10)]
parameters = build(JudgeParameters, json.loads(sys.argv[2]), "judge")
JudgeConnection(sys.argv[1], "key").session(parameters).judgements(comparisons)
"""


@pytest.mark.parametrize("call", ["POST /files", "POST /batches"])
def test_a_process_killed_while_it_hands_in_lets_the_next_one_go_on(
    study, batch_service, judge_section, tmp_path, call
):
    """SIGKILL with the request under way: the locks fall with the process, its plan is found, nothing is paid twice."""
    batch_service.delays = {call: 0.5}
    section = judge_section(base_url=batch_service.url, mode="batch")
    source = str(Path(__file__).parents[2] / "src")
    words = [sys.executable, "-c", KILLED, str(tmp_path / "cache.jsonl"), json.dumps(section), source]
    process = subprocess.Popen(words)
    while not any(made.startswith(call) for made in batch_service.calls):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    batch_service.delays = {}
    assert [row["verdict"] for row in study(timeout_s=3.0)] == EXPECTED
    assert len(batch_service.batches) == 1
    assert spent(tmp_path) == pytest.approx(20 * HALF_PRICE)
    assert kept(tmp_path) == 20


def test_a_live_run_waits_for_the_batch_instead_of_paying_again(study, batch_service, judge_section, tmp_path):
    """The service of these tests answers no single request."""
    batch_service.faults = [("GET /batches/", error(503))] * 4
    with pytest.raises(UserError, match="the same command collects it"):
        study()
    section = judge_section(base_url=batch_service.url, mode="live")
    live = JudgeConnection(tmp_path / "cache.jsonl", "key").session(build(JudgeParameters, section, "judge"))
    assert [row["verdict"] for row in live.judgements(COMPARISONS)] == EXPECTED
    assert spent(tmp_path) == pytest.approx(20 * HALF_PRICE)


def test_a_judge_elsewhere_leaves_the_batch_alone(study, batch_service, service, judge_section, tmp_path):
    batch_service.faults = [("GET /batches/", error(503))] * 4
    with pytest.raises(UserError, match="the same command collects it"):
        study()
    calls = len(batch_service.calls)
    parameters = build(JudgeParameters, judge_section(), "judge")
    elsewhere = JudgeConnection(tmp_path / "cache.jsonl", "key").session(parameters)
    assert len(elsewhere.judgements(COMPARISONS)) == len(service.received) == 20
    assert len(batch_service.calls) == calls
    assert [row["verdict"] for row in study()] == EXPECTED
    assert len(batch_service.batches) == 1


@pytest.fixture
def overtaken(study, batch_service, judge_section, tmp_path):
    """A session of some mode; another run hands everything in after it has looked for batches, and leaves it there."""

    def make(mode):
        section = judge_section(base_url=batch_service.url, mode=mode)
        session = JudgeConnection(tmp_path / "cache.jsonl", "key").session(build(JudgeParameters, section, "judge"))

        def then_a_batch():
            batch_service.faults = [("GET /batches/", error(503))] * 4
            with pytest.raises(UserError, match="the same command collects it"):
                study()

        session.finish_earlier = then_a_batch
        return session

    return make


def test_what_waits_in_the_batch_of_another_run_is_not_handed_in_again(overtaken, batch_service, tmp_path):
    assert [row["verdict"] for row in overtaken("batch").judgements(COMPARISONS)] == EXPECTED
    assert len(batch_service.asked()) == 20
    assert spent(tmp_path) == pytest.approx(20 * HALF_PRICE)


def test_a_live_run_does_not_ask_what_somebody_hands_in_meanwhile(overtaken, batch_service):
    with pytest.raises(UserError, match="handed in the same judgements as a batch"):
        overtaken("live").judgements(COMPARISONS)
    assert not [call for call in batch_service.calls if "chat" in call]


def test_a_large_file_may_take_longer_than_a_judgement(study, batch_service):
    batch_service.delays = {"GET /files": 0.6, "POST /files": 0.6}
    assert [row["verdict"] for row in study(timeout_s=0.3)] == EXPECTED
    assert [call.split("/")[1] for call in batch_service.calls].count("files") == 2


def test_a_service_out_of_reach_leaves_the_batch_to_be_collected(study, batch_service):
    batch_service.faults = [("GET /batches/", error(503))] * 4
    with pytest.raises(UserError, match="the same command collects it"):
        study()
    assert [row["verdict"] for row in study()] == EXPECTED
    assert len(batch_service.batches) == 1


def test_a_batch_is_reserved_at_its_worst_and_refused_above_the_cap(study, batch_service, tmp_path):
    with pytest.raises(UserError, match="cap is reached"):
        study(spend_cap_usd=0.002)
    assert not batch_service.batches
    assert not batch_service.calls
    assert spent(tmp_path) == 0
    with pytest.raises(UserError, match="Nothing was sent"):
        study(spend_cap_usd=0.0001)
    assert [row["verdict"] for row in study()] == EXPECTED
    assert len(batch_service.batches) == 1
    assert not [call for call in batch_service.calls if call.startswith("GET /batches?")]  # no plan is left to look for


def test_what_was_answered_and_cannot_be_read_is_billed_at_the_worst(study, batch_service, tmp_path):
    results = batch_service._results

    def spoilt(name, lines):
        ids = results(name, lines)
        if name == "batch-0":
            whole = batch_service.files[ids["output_file_id"]].splitlines()
            rows = [json.loads(line) for line in whole]
            rows[0]["response"]["body"] = {}
            batch_service.files[ids["output_file_id"]] = "\n".join(map(json.dumps, rows)).encode()
        return ids

    batch_service._results = spoilt
    assert [row["verdict"] for row in study()] == EXPECTED
    reserved = json.loads((tmp_path / "cache.spend.jsonl").read_text().splitlines()[0])["usd"]
    assert spent(tmp_path) == pytest.approx(20 * HALF_PRICE + reserved / 20)


def test_lines_that_make_no_sense_are_passed_over(study, batch_service):
    results = batch_service._results

    def odd(name, lines):
        ids = results(name, lines)
        extra = [b"not json", b"[]", b"{}", b'{"custom_id": "unknown", "response": {"status_code": 200, "body": {}}}']
        known = json.dumps({"custom_id": lines[0]["custom_id"], "response": {"status_code": 200, "body": {}}})
        batch_service.files[ids["output_file_id"]] += b"\n".join([*extra, known.encode()]) + b"\n"
        return ids

    batch_service._results = odd
    assert [row["verdict"] for row in study()] == EXPECTED


def reserved_for(tmp_path, place):
    """What was set aside for the batch handed in at ``place``."""
    records = map(json.loads, (tmp_path / "cache.spend.jsonl").read_text().splitlines())
    return [record["usd"] for record in records if record["event"] == "reserve"][place]


@pytest.mark.parametrize("handed_in_by", ["this run", "an earlier run"])
def test_a_batch_that_is_gone_is_named_counted_as_spent_and_judged_anew(
    study, batch_service, tmp_path, caplog, handed_in_by
):
    if handed_in_by == "an earlier run":
        batch_service.faults = [("GET /batches/", error(503))] * 4
        with pytest.raises(UserError, match="the same command collects it"):
            study()
    batch_service.faults = [("GET /batches/batch-0", error(404, "not_found"))] * 3
    assert [row["verdict"] for row in study()] == EXPECTED
    assert len(batch_service.batches) == 2
    assert "no longer has anything (status 404) of batch batch-0" in caplog.text
    assert spent(tmp_path) == pytest.approx(reserved_for(tmp_path, 0) + 20 * HALF_PRICE)
    calls = len(batch_service.calls)
    assert [row["verdict"] for row in study()] == EXPECTED
    assert len(batch_service.calls) == calls


@pytest.mark.parametrize("field", ["output_file_id", "error_file_id"])
def test_a_file_of_results_that_is_gone_costs_its_batch_and_no_more(study, batch_service, tmp_path, caplog, field):
    def say(body):
        is_first = len(batch_service.batches) == 1
        return error(500) if is_first and '"q3"' in body["messages"][1]["content"] else longer(body)

    batch_service.say = say
    name = f"{field}-batch-0"
    batch_service.faults = [(f"GET /files/{name}", error(404, "not_found"))] * 3
    assert [row["verdict"] for row in study()] == EXPECTED
    sizes = [len(batch_service.files[b["input_file_id"]].split(b"\n")) for b in batch_service.batches.values()]
    again = 20 if field == "output_file_id" else 2
    assert sizes == [20, again]
    assert f"no longer has the file {name} (status 404) of batch batch-0" in caplog.text
    assert spent(tmp_path) == pytest.approx(reserved_for(tmp_path, 0) + again * HALF_PRICE)


def test_a_batch_that_is_not_known_everywhere_at_once_is_not_taken_to_be_gone(study, batch_service, tmp_path):
    batch_service.faults = [("GET /batches/", error(404, "not_found"))] * 2
    assert [row["verdict"] for row in study()] == EXPECTED
    assert len(batch_service.batches) == 1
    assert spent(tmp_path) == pytest.approx(20 * HALF_PRICE)


def test_nobody_else_waits_while_results_are_fetched(study, tmp_path, monkeypatch):
    fetch = BatchCalls.content

    def content(calls, name):
        with (tmp_path / "cache.batches.jsonl").open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError where somebody holds it
        return fetch(calls, name)

    monkeypatch.setattr(BatchCalls, "content", content)
    assert [row["verdict"] for row in study()] == EXPECTED


def test_a_wait_for_another_process_is_said_and_can_be_ended(
    batch_service, judge_section, tmp_path, caplog, monkeypatch
):
    """The other one hands in or looks for a batch, and its service does not answer."""
    monkeypatch.setattr("gemma_alignment.judging.append_log.TOLD_AFTER_S", 0.1)
    caplog.set_level(logging.INFO)
    parameters = build(JudgeParameters, judge_section(base_url=batch_service.url, mode="batch"), "judge")
    session = JudgeConnection(tmp_path / "cache.jsonl", "key").session(parameters)
    with (tmp_path / "cache.batches.jsonl").open("ab") as file, ThreadPoolExecutor(1) as pool:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            waiting = pool.submit(session.judgements, COMPARISONS)
            time.sleep(0.3)
            session.judge.stop()
            with pytest.raises(UserError, match="judging was stopped"):
                waiting.result(timeout=5.0)
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)  # a thread that waits for it would never end
    assert caplog.text.count("is waited for") == 1
    assert "cache.batches.jsonl" in caplog.text
