"""A signal stops a run wherever it comes, and never the writing down of how the run ended."""

import os
import signal
import threading
import time
from itertools import islice
from types import SimpleNamespace

import pytest

from gemma_alignment.datasets.metric_writer import MetricWriter
from gemma_alignment.errors import RunInterrupted, chain, let_through
from gemma_alignment.hooks.signals import Signals
from gemma_alignment.hooks.tracking import Tracking
from gemma_alignment.redaction import scrub_error
from gemma_alignment.study.parent import ParentRun

DEFAULTS = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


@pytest.fixture(autouse=True)
def defaults():
    """Handlers as a process begins with, whatever ran in this one before."""
    found = {number: signal.signal(number, handler) for number, handler in DEFAULTS.items()}
    yield
    for number, handler in found.items():
        signal.signal(number, handler)


@pytest.fixture
def signals(defaults):
    listening = Signals()
    listening.install()
    yield listening
    listening.restore()


def stopped(*_args, **_kwargs):
    """A library at work when the signal comes, which makes an error of its own of it."""
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except RunInterrupted as error:
        raise ConnectionError("the store does not answer") from error


def test_a_signal_is_an_error_once_and_then_what_it_was_before(signals):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(RunInterrupted, match="stopped by SIGTERM") as error:
        os.kill(os.getpid(), signal.SIGTERM)
    assert (error.value.code, signals.received) == (128 + signal.SIGTERM, signal.SIGTERM)
    assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_another_thread_stops_the_run_once_with_a_reason_also_out_of_a_wait(signals):
    threads = [threading.Thread(target=signals.stop, args=("the lease was lost",)) for _ in range(8)]
    for thread in threads:
        threading.Timer(0.1, thread.start).start()
    begin = time.monotonic()
    with pytest.raises(RunInterrupted, match=r"^stopped: the lease was lost$") as error:
        threading.Event().wait(30)
    assert time.monotonic() - begin < 25
    assert (error.value.code, signals.received) == (1, signal.SIGTERM)
    time.sleep(0.2)  # the others come too late, and do no harm
    for thread in threads:
        thread.join()
    signals.stop("again")
    with pytest.raises(RunInterrupted, match="lease was lost") as again:
        let_through(error.value)
    assert again.value.code == 1


def test_a_run_that_has_not_begun_or_is_over_is_not_stopped(signals):
    Signals().stop("nobody listens")
    signals.hold()
    signals.stop("it is over")
    time.sleep(0.05)
    assert signals.received is None


def test_what_is_written_at_the_end_is_not_cut_off(signals):
    signals.hold()
    os.kill(os.getpid(), signal.SIGTERM)
    assert signals.received is None  # the run was over before
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL  # a second one acts as ever


@pytest.mark.parametrize("fails", ["gemma_alignment.hooks.tracking.Tracking.before_open", "mlflow.start_run"])
def test_a_run_that_cannot_be_opened_leaves_signals_as_they_were(project, monkeypatch, fails):
    """Before anything of this project's has noted it, and in what opens it."""

    def refused(*_args, **_kwargs):
        raise ConnectionError("the store does not answer")

    with monkeypatch.context() as patch, pytest.raises(ConnectionError):
        patch.setattr(fails, refused)
        project.run("data_processing")
    assert {number: signal.getsignal(number) for number in DEFAULTS} == DEFAULTS


def test_only_what_asks_to_stop_is_let_through():
    let_through(ConnectionError())
    wrapped = ConnectionError()
    wrapped.__context__ = RunInterrupted(signal.SIGINT)
    with pytest.raises(RunInterrupted, match="SIGINT"):
        let_through(wrapped)


def test_what_is_let_through_does_not_lead_to_itself():
    """As in MLflow: what came while it was at work is wrapped, ``from`` it."""
    try:
        try:
            raise RunInterrupted(signal.SIGTERM)
        except RunInterrupted as stop:
            raise ConnectionError("the transaction failed") from stop
    except ConnectionError as error:
        with pytest.raises(RunInterrupted, match="SIGTERM") as found:
            let_through(error)
    led, cause = [], found.value
    while cause is not None and len(led) < 9:
        led.append(type(cause))
        cause = cause.__cause__ or cause.__context__
    assert led == [RunInterrupted, ConnectionError, RunInterrupted]


def test_causes_that_go_round_in_a_circle_come_once_each():
    first, second = ValueError("a"), KeyError("b")
    first.__context__, second.__cause__ = second, first
    assert list(islice(chain(first), 9)) == [first, second]
    scrub_error(first)


def test_a_store_that_is_gone_when_the_process_ends_costs_a_warning(monkeypatch, caplog):
    """After Kedro is through nobody would catch an error: its traceback would be the last that a user sees."""
    import mlflow

    def gone(*_args):
        raise ConnectionError("refused")

    monkeypatch.setattr(mlflow, "active_run", lambda: SimpleNamespace(info=SimpleNamespace(run_id="a")))
    monkeypatch.setattr(mlflow, "end_run", gone)
    tracking = Tracking.__new__(Tracking)
    tracking._config = None
    with caplog.at_level("WARNING"):
        tracking.abandon("FAILED")
    assert tracking.lost and "MLflow does not answer (refused)" in caplog.text


PLACES = ["the last points of a run", "a look at the store", "the end of a stage", "the end of a study"]


@pytest.mark.parametrize("where", PLACES)
def test_a_signal_that_comes_while_mlflow_is_asked_is_no_outage(signals, where, monkeypatch):
    """Elsewhere an error of the store costs a warning, and the run goes on."""
    calls = dict.fromkeys(("log_batch", "get_run", "set_terminated", "search_runs"), stopped)
    client = SimpleNamespace(tracking_uri="http://127.0.0.1:1", **calls)
    monkeypatch.setattr(Tracking, "client", client)
    tracking = Tracking.__new__(Tracking)
    tracking._parent, tracking._borrowed, tracking._asked = None, False, set()
    tracking.run_id, tracking.lost = "a", False
    study = ParentRun.__new__(ParentRun)
    study._client, study._warned, study.run_id, study._experiment = client, False, "a", "0"
    acts = {  # a writer is made where it is closed: one that is left would ask this store a minute later
        "the last points of a run": lambda: MetricWriter(client, "a", interval=60.0, continued=True).close([]),
        "a look at the store": lambda: tracking._is_back(None),
        "the end of a stage": lambda: tracking.end(SimpleNamespace(run_id="b"), "FINISHED"),
        "the end of a study": lambda: study.end("FINISHED"),
    }
    with pytest.raises(RunInterrupted, match="SIGTERM"):
        acts[where]()
