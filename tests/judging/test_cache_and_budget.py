"""Files that outlive a kill and are shared: every verdict kept, every cent counted."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from chat_service import Answer, completion, verdict
from hypothesis import given, settings
from hypothesis import strategies as st

from gemma_alignment.config import build
from gemma_alignment.errors import UserError
from gemma_alignment.judging.append_log import AppendLog
from gemma_alignment.judging.budget import SpendLedger, cost, estimate, worst_case
from gemma_alignment.judging.cache import ReplyCache
from gemma_alignment.judging.client import Reply, Request, cache_key
from gemma_alignment.judging.connection import JudgeConnection
from gemma_alignment.judging.parsing import parse_verdict
from gemma_alignment.judging.session import Comparison, Session
from gemma_alignment.parameters.judge import JudgeParameters, Price

COMPARISONS = [Comparison(f"p{i}", f"q{i}", "a", "b", "x", "yy") for i in range(30)]
PRICE = Price("m", 0.15, 0.6, 0.5, "2024-07-18")
SOURCE = Path(__file__).parents[2] / "src"

STUDY = """
import json, sys
from gemma_alignment.config import build
from gemma_alignment.judging.connection import JudgeConnection
from gemma_alignment.judging.session import Comparison, Session
from gemma_alignment.parameters.judge import JudgeParameters

folder, section = sys.argv[1], json.loads(sys.argv[2])
connection = JudgeConnection(folder + "/cache.jsonl", "key")
parameters = build(JudgeParameters, section, "judge")
comparisons = [Comparison(f"p{i}", f"q{i}", "a", "b", "x", "yy") for i in range(30)]
session = Session(connection.judge(parameters), connection.cache(), parameters.remote.concurrency, 3)
rows = session.judgements(comparisons)
print(json.dumps(rows))
"""


def study(folder, section):
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", STUDY, str(folder), json.dumps(section)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


# --- the file -----------------------------------------------------------------------------------


def test_a_torn_last_line_is_closed_off_and_skipped(tmp_path, caplog):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"n": 1}\n{"n": 2, "text": "torn \xc3')
    log = AppendLog(path)
    with log.locked() as held:
        assert held.fresh() == [{"n": 1}]
        held.append({"n": 3})
        assert held.fresh() == [{"n": 3}]
    with AppendLog(path).locked() as held:
        assert held.fresh() == [{"n": 1}, {"n": 3}]
    assert "unfinished" in caplog.text


def test_what_others_append_is_seen(tmp_path):
    one, other = AppendLog(tmp_path / "log.jsonl"), AppendLog(tmp_path / "log.jsonl")
    for n in range(3):
        with one.locked() as held:
            held.append({"n": n})
        with other.locked() as held:
            assert held.fresh() == [{"n": n}]


def test_whoever_holds_the_file_holds_it_alone(tmp_path):
    """Between reading and appending nobody else comes in: the cap is decided there."""
    one, other = AppendLog(tmp_path / "log.jsonl"), AppendLog(tmp_path / "log.jsonl")
    inside = threading.Event()

    def enter():
        with other.locked() as held:
            assert held.fresh() == [{"n": 1}]
            inside.set()

    thread = threading.Thread(target=enter)
    with one.locked() as held:
        thread.start()
        assert not inside.wait(0.3)
        held.append({"n": 1})
    assert inside.wait(30)
    thread.join()


def test_threads_with_logs_of_their_own_lose_nothing(tmp_path):
    def write(thread):
        log = AppendLog(tmp_path / "log.jsonl")
        for n in range(50):
            with log.locked() as held:
                held.append({"thread": thread, "n": n, "text": "é" * 200})

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(write, range(6)))
    rows = read(tmp_path / "log.jsonl")
    assert sorted((row["thread"], row["n"]) for row in rows) == [(t, n) for t in range(6) for n in range(50)]


@settings(deadline=None)  # the disk takes its time
@given(st.lists(st.text(), max_size=5))
def test_any_text_survives_the_file(tmp_path_factory, texts):
    log = AppendLog(tmp_path_factory.mktemp("log") / "log.jsonl")
    with log.locked() as held:
        for text in texts:
            held.append({"text": text})
        assert [record["text"] for record in held.fresh()] == texts


# --- the cache ----------------------------------------------------------------------------------


def test_replies_are_found_up_to_the_first_that_parses(scripted, tmp_path):
    judge, request = scripted(lambda r, a: ""), Request("p", "x", "y")
    cache = ReplyCache(tmp_path / "cache.jsonl")
    for text in ("no", verdict("2"), verdict("1")):
        assert cache.get(judge, Request("p", "y", "x")) == []
        cache.put(judge, request, Reply(text, "m", "v", 1, 2, None, 0.5))
        assert cache.get(judge, request)[-1].text == (text if text == "no" else verdict("2"))
    assert [reply.text for reply in cache.get(judge, request)] == ["no", verdict("2")]
    assert cache.get(judge, request) == ReplyCache(tmp_path / "cache.jsonl").get(judge, request)


def test_a_failure_is_never_a_verdict(scripted, tmp_path):
    """It is kept and counted as an attempt, and answers nothing."""
    judge, request = scripted(lambda r, a: ""), Request("p", "x", "y")
    cache = ReplyCache(tmp_path / "cache.jsonl")
    cache.put(judge, request, Reply("I would rather not.", "m", "v"))
    assert [parse_verdict(reply.text) for reply in cache.get(judge, request)] == [None]
    assert read(tmp_path / "cache.jsonl")[0]["reply"] == "I would rather not."


def test_what_came_with_one_batch_is_kept_once(scripted, tmp_path):
    """A batch that a killed run has half collected is read again from its beginning."""
    judge = scripted(lambda r, a: "")
    requests = [Request("p", "x", str(i)) for i in range(3)]
    lines = [(cache_key(judge, r), r.content_key, Reply(verdict("1"), "m", "v", 1, 2, None, 0.5)) for r in requests]
    path = tmp_path / "cache.jsonl"
    ReplyCache(path).put_once("batch", lines[:2])
    cache = ReplyCache(path)
    cache.put_once("batch", lines)
    cache.put_once("batch", lines)
    assert [row["content_key"] for row in read(path)] == [request.content_key for request in requests]
    cache.put_once("another", lines[:1])
    assert len(read(path)) == 4


def test_another_judge_does_not_answer(scripted, tmp_path):
    judge, request = scripted(lambda r, a: ""), Request("p", "x", "y")
    cache = ReplyCache(tmp_path / "cache.jsonl")
    cache.put(judge, request, Reply(verdict("1"), "m", "v"))
    for change in ({"model": "other"}, {"prompt_version": "other"}, {"decoding": {"temperature": 1.0}}):
        other = scripted(lambda r, a: "")
        for name, value in change.items():
            setattr(other, name, value)
        assert cache.get(other, request) == []


def test_lines_of_another_kind_are_passed_over(scripted, tmp_path):
    (tmp_path / "cache.jsonl").write_text('{}\n[1]\n{"key": "k", "reply": "x"}\n\n')
    assert ReplyCache(tmp_path / "cache.jsonl").get(scripted(lambda r, a: ""), Request("p", "x", "y")) == []


def test_an_error_after_reading_reads_nothing_twice(tmp_path):
    log = AppendLog(tmp_path / "log.jsonl")
    with pytest.raises(OSError, match="full"), log.locked() as held:
        held.append({"n": 1})
        assert held.fresh() == [{"n": 1}]
        raise OSError("full")
    with log.locked() as held:
        assert held.fresh() == []


def test_a_killed_run_repeats_at_most_what_was_in_flight(service, judge_section, tmp_path):
    section = judge_section(concurrency=4)
    stuck = threading.Event()

    def script(n, payload):
        if n > 25:  # from here on no reply arrives: the process is killed with requests under way
            stuck.set()
            return Answer(delay_s=3.0, drop=True)
        return completion(verdict("2" if "yy" in payload["messages"][1]["content"][-8:] else "1"))

    service.script = script
    process = study(tmp_path, section)
    wait_until(stuck.is_set)
    wait_until(lambda: len(read(tmp_path / "cache.jsonl")) == 25)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    time.sleep(0.2)  # what was on its way to the service arrives
    sent = len(service.received)
    assert 25 < sent <= 25 + 4

    with (tmp_path / "cache.jsonl").open("ab") as file:  # as if the kill had come amid a write
        file.write(b'{"key": "tor')
    service.script = lambda n, payload: completion(
        verdict("2" if "yy" in payload["messages"][1]["content"][-8:] else "1")
    )
    process = study(tmp_path, section)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err.decode()
    assert len(service.received) - sent == 60 - 25

    clean = tmp_path / "clean"
    clean.mkdir()
    out_clean, _ = study(clean, section).communicate(timeout=120)
    assert out == out_clean
    assert {row["verdict"] for row in json.loads(out)} == {"first", "second"}

    # What was in flight at the kill stays reserved: nobody knows whether it was billed.
    amounts = {row["id"]: row for row in read(tmp_path / "cache.spend.jsonl")}
    open_reservations = sum(row["event"] == "reserve" for row in amounts.values())
    assert sent - 25 <= open_reservations <= 4  # one may have been reserved and not yet sent


def test_two_processes_share_cache_and_cap(service, judge_section, tmp_path):
    section = judge_section(concurrency=2)
    service.script = lambda n, payload: Answer(**{**vars(completion(verdict("1"))), "delay_s": 0.01})
    processes = [study(tmp_path, section) for _ in range(2)]
    outs = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], [err.decode() for _, err in outs]
    assert outs[0][0] == outs[1][0]
    assert len(read(tmp_path / "cache.jsonl")) == len(service.received) == 60
    ledger = SpendLedger(tmp_path / "cache.spend.jsonl", 1.0)
    assert ledger.spent() == pytest.approx(len(service.received) * cost(PRICE, 100, 20))


# --- the cap ------------------------------------------------------------------------------------


def test_the_price_of_tokens():
    assert cost(PRICE, 1_000_000, 0) == 0.15
    assert cost(PRICE, 0, 1_000_000) == 0.6
    assert cost(PRICE, 950, 60) == pytest.approx(0.0001785)


def test_the_estimate_of_a_whole_study():
    """9,000 requests of some 950 tokens come to about 1.6 USD."""
    requests = [Request("q" * 400, "x" * 800, "y" * 800)] * 9000
    expected = estimate(PRICE, requests)
    assert expected.requests == 9000
    assert 700 < expected.tokens_in / 9000 < 1100
    assert 1.2 < expected.usd < 1.9


@given(st.text(), st.text(), st.text())
def test_the_worst_case_is_above_any_probable_cost(prompt, one, two):
    request = Request(prompt, one, two)
    assert worst_case(PRICE, request, 100) > estimate(PRICE, [request]).usd


def test_a_reservation_counts_until_it_is_settled(tmp_path):
    ledger = SpendLedger(tmp_path / "spend.jsonl", 1.0)
    name = ledger.reserve(0.9)
    assert ledger.spent() == 0.9
    with pytest.raises(UserError, match=r"cap is reached: 0\.9000 USD"):
        ledger.reserve(0.2)
    ledger.settle(name, 0.1)
    assert ledger.spent() == 0.1
    ledger.reserve(0.2)


def test_a_reservation_left_open_by_a_kill_counts_as_spent(tmp_path):
    SpendLedger(tmp_path / "spend.jsonl", 1.0).reserve(0.9)
    with (tmp_path / "spend.jsonl").open("ab") as file:
        file.write(b'{"event": "settle", "id": "')
    resumed = SpendLedger(tmp_path / "spend.jsonl", 1.0)
    with pytest.raises(UserError, match="cap is reached"):
        resumed.reserve(0.2)
    assert SpendLedger(tmp_path / "spend.jsonl", 2.0).reserve(0.2)


def test_threads_together_never_pass_the_cap(tmp_path):
    def spend(_):
        ledger = SpendLedger(tmp_path / "spend.jsonl", 1.0)
        taken = 0
        for _ in range(30):
            try:
                ledger.settle(ledger.reserve(0.03), 0.02)
                taken += 1
            except UserError:
                break
        return taken

    with ThreadPoolExecutor(6) as pool:
        taken = sum(pool.map(spend, range(6)))
    spent = 0.0
    open_amounts = {}
    for row in read(tmp_path / "spend.jsonl"):  # replayed line by line: at no moment above the cap
        open_amounts[row["id"]] = row["usd"]
        spent = sum(open_amounts.values())
        assert spent <= 1.0 + 1e-9
    assert spent == pytest.approx(taken * 0.02)
    assert taken >= 40


def test_a_run_stops_before_the_cap_and_goes_on_when_it_is_raised(service, judge_section, tmp_path):
    service.script = lambda n, payload: completion(verdict("1"), tokens=(1800, 90))
    connection = JudgeConnection(tmp_path / "cache.jsonl", "key")

    def run(cap):
        parameters = build(JudgeParameters, judge_section(spend_cap_usd=cap, concurrency=3), "judge")
        return Session(connection.judge(parameters), connection.cache(), 3, 1).judgements(COMPARISONS)

    with pytest.raises(UserError, match="spending cap is reached"):
        run(0.012)
    billed = len(service.received) * cost(PRICE, 1800, 90)
    assert 0.005 < billed <= 0.012
    assert len(read(tmp_path / "cache.jsonl")) == len(service.received)
    sent = len(service.received)
    rows = run(1.0)
    assert len(rows) == 60
    assert len(service.received) == 60
    assert sent < 60
