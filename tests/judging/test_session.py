"""Both orders, once each: what is asked, asked again, and left out."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from gemma_alignment.errors import UserError
from gemma_alignment.judging.cache import ReplyCache
from gemma_alignment.judging.claims import Claims
from gemma_alignment.judging.client import JudgeUnavailable, RequestRefused
from gemma_alignment.judging.recorded import RecordedJudge
from gemma_alignment.judging.session import FAILURES_IN_A_ROW, Comparison, Session

A_BETTER = Comparison("p1", "prompt", "ppo/seed=1", "sft", "longer", "short")
SAME = Comparison("p2", "prompt", "ppo/seed=1", "sft", "equal", "equal")


def session(judge, cache=None, concurrency=1, attempts=3, skip_identical=True):
    return Session(judge, cache, concurrency, attempts, skip_identical)


def many(n):
    return [Comparison(f"p{i}", f"prompt {i}", "a", "b", "x" * (i % 7), "y" * (i % 5)) for i in range(n)]


def test_one_row_for_each_order_in_the_order_given(scripted, longer_wins):
    judge = scripted(longer_wins)
    rows = session(judge).judgements([A_BETTER])
    assert [(row["order"], row["verdict"]) for row in rows] == [("ab", "first"), ("ba", "second")]
    assert [(r.answer_1, r.answer_2) for r, _ in judge.asked] == [("longer", "short"), ("short", "longer")]
    first = rows[0]
    assert first == {
        "prompt_id": "p1",
        "system_a": "ppo/seed=1",
        "system_b": "sft",
        "order": "ab",
        "verdict": "first",
        "reply": '{"reason": "because", "verdict": "1"}',
        "model": "scripted",
        "prompt_version": "scripted-1",
        "cost": 0.25,
        "calls": 1,
        "tokens_in": 10,
        "tokens_out": 5,
        "fingerprint": "fp",
        "content_key": A_BETTER.request("ab").content_key,
    }


def test_identical_answers_are_a_tie_without_a_call(scripted, longer_wins):
    judge = scripted(longer_wins)
    rows = session(judge).judgements([SAME])
    assert [row["verdict"] for row in rows] == ["tie", "tie"]
    assert [row["calls"] for row in rows] == [0, 0]
    assert judge.asked == []


def test_identical_answers_can_be_put_to_the_judge(scripted):
    judge = scripted(lambda request, attempt: '{"verdict": "1"}')
    rows = session(judge, skip_identical=False).judgements([SAME])
    assert [row["verdict"] for row in rows] == ["first", "first"]
    assert len(judge.asked) == 1  # both orders are the same request


def test_equal_requests_are_sent_once(scripted, longer_wins):
    judge = scripted(longer_wins)
    twin = Comparison("p1", "prompt", "ppo/seed=2", "sft", "longer", "short")
    rows = session(judge).judgements([A_BETTER, twin])
    assert len(judge.asked) == 2
    assert [row["verdict"] for row in rows] == ["first", "second"] * 2


def test_a_reply_that_does_not_parse_is_asked_for_again(scripted):
    judge = scripted(lambda request, attempt: "I would rather not." if attempt < 2 else '{"verdict": "1"}')
    row = session(judge).judgements([A_BETTER])[0]
    assert (row["verdict"], row["calls"], row["cost"]) == ("first", 3, 0.75)
    assert [attempt for _, attempt in judge.asked[:3]] == [0, 1, 2]


def test_a_refusal_is_unparsed_after_a_bounded_number_of_attempts(scripted):
    judge = scripted(lambda request, attempt: "I would rather not.")
    rows = session(judge).judgements([A_BETTER])
    assert [row["verdict"] for row in rows] == ["unparsed", "unparsed"]
    assert [row["reply"] for row in rows] == ["I would rather not."] * 2
    assert len(judge.asked) == 6


def test_what_is_asked_is_shown_to_the_judge_beforehand(scripted, longer_wins):
    judge = scripted(longer_wins)
    session(judge).judgements([A_BETTER, SAME])
    assert [len(requests) for requests in judge.prepared] == [2]
    assert not judge.asked[2:]


@pytest.mark.parametrize("concurrency", [1, 4])
def test_rows_do_not_depend_on_the_cache_or_on_concurrency(scripted, longer_wins, tmp_path, concurrency):
    plain = session(scripted(longer_wins)).judgements(many(40))
    cache = ReplyCache(tmp_path / "cache.jsonl")
    first = session(scripted(longer_wins), cache, concurrency).judgements(many(40))
    again_judge = scripted(longer_wins)
    again = session(again_judge, ReplyCache(tmp_path / "cache.jsonl"), concurrency).judgements(many(40))
    assert json.dumps(first) == json.dumps(plain)
    assert json.dumps(again) == json.dumps(plain)
    assert again_judge.asked == []


def test_unparsed_replies_are_kept_and_asked_for_again(scripted, longer_wins, tmp_path):
    path = tmp_path / "cache.jsonl"
    session(scripted(lambda r, a: "no"), ReplyCache(path), attempts=1).judgements([A_BETTER])
    assert [json.loads(line)["reply"] for line in path.read_text().splitlines()] == ["no", "no"]
    judge = scripted(longer_wins)
    rows = session(judge, ReplyCache(path)).judgements([A_BETTER])
    assert [row["verdict"] for row in rows] == ["first", "second"]
    assert len(judge.asked) == 2


def test_attempts_are_counted_over_all_runs_and_a_higher_number_asks_again(scripted, longer_wins, tmp_path, caplog):
    """A reply that was paid for and is no verdict is not paid for again in each run."""
    path = tmp_path / "cache.jsonl"
    refusing = scripted(lambda r, attempt: f"no {attempt}")
    first = session(refusing, ReplyCache(path), attempts=2).judgements([A_BETTER])
    assert len(refusing.asked) == 4
    again = session(refusing, ReplyCache(path), attempts=2).judgements([A_BETTER])
    assert len(refusing.asked) == 4
    assert again == first
    assert [(row["verdict"], row["calls"], row["reply"], row["cost"]) for row in again] == [
        ("unparsed", 2, "no 1", 0.5), ("unparsed", 2, "no 1", 0.5),
    ]  # fmt: skip
    assert "2 requests had their 2 replies, and none is a verdict" in caplog.text
    assert "A higher judge.attempts asks for more" in caplog.text
    judge = scripted(lambda r, attempt: longer_wins(r, attempt) if attempt == 3 else "no")
    rows = session(judge, ReplyCache(path), attempts=5).judgements([A_BETTER])
    assert [attempt for _, attempt in judge.asked] == [2, 3, 2, 3]  # other seeds than before
    assert [(row["verdict"], row["calls"]) for row in rows] == [("first", 4), ("second", 4)]


def test_two_sessions_at_once_ask_each_request_once(scripted, longer_wins, tmp_path):
    """Each with locks of its own, as in two processes: who comes second waits for the first one's reply."""
    asked = []

    def say(request, attempt):
        asked.append(request)
        time.sleep(0.02)
        return longer_wins(request, attempt)

    def judge_all():
        return session(scripted(say), ReplyCache(tmp_path / "cache.jsonl"), concurrency=3).judgements(many(20))

    with ThreadPoolExecutor(2) as pool:
        first, second = (future.result() for future in [pool.submit(judge_all) for _ in range(2)])
    assert first == second
    assert len(asked) == len(set(asked)) == len((tmp_path / "cache.jsonl").read_text().splitlines())


def test_a_claim_is_waited_for_until_the_wait_is_ended(tmp_path):
    claims = Claims(tmp_path / "claims")

    def give_up(seconds):
        raise JudgeUnavailable("stopped")

    with claims.held("ab1", give_up), claims.held("cd2", give_up):
        for taken in (lambda: claims.held("ab3", give_up), lambda: claims.alone(give_up)):
            with pytest.raises(JudgeUnavailable), taken():
                pass
    with claims.alone(give_up), pytest.raises(JudgeUnavailable), claims.held("ef4", give_up):
        pass
    with claims.held("ab1", give_up):
        pass


def test_requests_run_at_the_same_time_but_not_more_than_allowed(scripted, longer_wins):
    running, most, lock = 0, 0, threading.Lock()

    def say(request, attempt):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.01)
        with lock:
            running -= 1
        return longer_wins(request, attempt)

    session(scripted(say), concurrency=3).judgements(many(30))
    assert most == 3


@pytest.mark.parametrize("concurrency", [1, 4])
def test_what_cannot_go_on_stops_at_once_and_keeps_what_it_has(scripted, longer_wins, tmp_path, concurrency):
    cache = ReplyCache(tmp_path / "cache.jsonl")

    def say(request, attempt):
        if len(judge.asked) > 20:
            raise UserError("the quota is used up")
        return longer_wins(request, attempt)

    judge = scripted(say)
    with pytest.raises(UserError, match="quota"):
        session(judge, cache, concurrency).judgements(many(100))
    kept = len((tmp_path / "cache.jsonl").read_text().splitlines())
    assert kept == 20
    assert len(judge.asked) <= 20 + concurrency
    assert judge.stopped or concurrency == 1

    resumed = scripted(longer_wins)
    rows = session(resumed, ReplyCache(tmp_path / "cache.jsonl"), concurrency).judgements(many(100))
    assert rows == session(scripted(longer_wins)).judgements(many(100))
    distinct = {c.request(order).content_key for c in many(100) for order in ("ab", "ba") if c.answer_a != c.answer_b}
    assert len(resumed.asked) == len(distinct) - 20


def test_single_requests_without_a_reply_are_unparsed_and_the_rest_goes_on(scripted, longer_wins):
    def say(request, attempt):
        if request.answer_1 == "longer":
            raise JudgeUnavailable("503")
        return longer_wins(request, attempt)

    rows = session(scripted(say)).judgements([A_BETTER])
    assert [(row["verdict"], row["calls"]) for row in rows] == [("unparsed", 0), ("second", 1)]


def test_an_outage_is_told_from_bad_luck(scripted):
    def say(request, attempt):
        raise JudgeUnavailable("503")

    judge = scripted(say)
    with pytest.raises(UserError, match=f"no reply to {FAILURES_IN_A_ROW} requests in a row"):
        session(judge).judgements(many(50))
    assert len(judge.asked) == FAILURES_IN_A_ROW


def test_requests_that_are_refused_one_after_the_other_do_not_hold_up_the_rest(scripted, longer_wins, tmp_path):
    """Neither in the first run, nor in a later one that has nothing but them left to ask."""

    def say(request, attempt):
        if int(request.prompt.split()[1]) >= 20:
            raise RequestRefused("content filter")
        return longer_wins(request, attempt)

    for _ in range(2):
        rows = session(scripted(say), ReplyCache(tmp_path / "cache.jsonl")).judgements(many(40))
        unparsed = {row["prompt_id"] for row in rows if row["verdict"] == "unparsed"}
        assert unparsed == {c.prompt_id for c in many(40)[20:] if c.answer_a != c.answer_b}


def test_a_judge_that_refuses_everything_from_the_start_is_not_asked_everything(scripted):
    def say(request, attempt):
        raise RequestRefused("no such parameter")

    judge = scripted(say)
    with pytest.raises(UserError, match="no such parameter"):
        session(judge).judgements(many(50))
    assert len(judge.asked) == FAILURES_IN_A_ROW


def test_what_another_process_has_paid_for_meanwhile_is_not_asked_again(scripted, longer_wins, tmp_path):
    """Meanwhile: after this one has looked into the cache and before it asks."""
    path = tmp_path / "cache.jsonl"
    judge = scripted(longer_wins)
    judge.prepare = lambda requests: session(scripted(longer_wins), ReplyCache(path)).judgements(many(20))
    rows = session(judge, ReplyCache(path)).judgements(many(40))
    assert len(judge.asked) == 2 * sum(c.answer_a != c.answer_b for c in many(40)[20:])
    assert rows == session(scripted(longer_wins)).judgements(many(40))


def test_failures_with_replies_between_them_are_no_outage(scripted, longer_wins):
    def say(request, attempt):
        if len(judge.asked) % FAILURES_IN_A_ROW:
            raise JudgeUnavailable("503")
        return longer_wins(request, attempt)

    judge = scripted(say)
    rows = session(judge).judgements(many(40))
    replied = sum(row["calls"] for row in rows)
    assert replied == len(judge.asked) // FAILURES_IN_A_ROW > 2


def test_recorded_judgements_replay_to_the_same_rows(scripted, longer_wins, tmp_path):
    path = tmp_path / "judgements.jsonl"
    rows = session(scripted(longer_wins)).judgements(many(20))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert session(RecordedJudge(path), attempts=1).judgements(many(20)) == rows


def test_a_cache_replays_too_and_prefers_what_parses(scripted, longer_wins, tmp_path):
    path = tmp_path / "cache.jsonl"
    session(scripted(lambda r, a: "no"), ReplyCache(path), attempts=1).judgements([A_BETTER])
    session(scripted(longer_wins), ReplyCache(path)).judgements([A_BETTER])
    with path.open("a") as file:
        file.write('{"content_key": "torn')
    rows = session(RecordedJudge(path), attempts=1).judgements([A_BETTER])
    assert [row["verdict"] for row in rows] == ["first", "second"]


def test_missing_records_are_counted_before_anything_is_judged(scripted, longer_wins, tmp_path):
    path = tmp_path / "judgements.jsonl"
    rows = session(scripted(longer_wins)).judgements([A_BETTER])
    path.write_text(json.dumps(rows[0]) + "\n")
    with pytest.raises(UserError, match="1 of 2 judgements are not in"):
        session(RecordedJudge(path)).judgements([A_BETTER])


def test_a_record_that_is_not_there_or_empty_says_so(tmp_path):
    with pytest.raises(UserError, match="no file of recorded judgements"):
        RecordedJudge(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n[]\n{}\n")
    with pytest.raises(UserError, match="holds no judgement"):
        RecordedJudge(tmp_path / "empty.jsonl")
