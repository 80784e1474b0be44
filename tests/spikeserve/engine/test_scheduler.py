"""The scheduler with an executor that a test holds by the hand.

The executor adds up its inputs: the logits of a timestep are (sum of the sample's inputs so far, this input). So an
answer shows whose it is, and whether anything was added that was not its own.
"""

import itertools
import struct
import threading
import time
from concurrent.futures import CancelledError

import numpy as np
import pytest
import torch

from spikeserve.engine import Sample, Scheduler, StepResult
from spikeserve.engine.inbox import MAX_PENDING_WINDOWS
from spikeserve.errors import ErrorKind, ServiceError

LONG = 30  # seconds within which everything here is done many times over


class Adder:
    """`step` waits until the test lets it go on; `batches` has the slots of each step."""

    layers = ("a", "b")

    def __init__(self, slots):
        self.slots = slots
        self.sums = [None] * slots
        self.constants = [None] * slots
        self.batches = []
        self.go = threading.Event()
        self.go.set()
        self.stepping = threading.Event()
        self.crash = None

    def admit(self, slot, sample: Sample):
        self.sums[slot] = 0.0
        self.constants[slot] = sample.constant

    def step(self, slots, frames):
        self.stepping.set()
        if not self.go.wait(LONG):
            raise TimeoutError("the test never let the step go on")
        if self.crash is not None:
            raise self.crash
        self.batches.append(list(slots))
        inputs = [self.constants[slot] for slot in slots]
        if frames is not None:
            for row, value in zip(frames.rows, frames.values, strict=True):
                inputs[row] = value
        for slot, value in zip(slots, inputs, strict=True):
            self.sums[slot] += float(value)
        logits = torch.tensor(
            [[self.sums[s], float(v)] for s, v in zip(slots, inputs, strict=True)]
        )
        return StepResult(
            logits, torch.ones(len(slots), 2).double(), torch.full((len(slots),), 3.0)
        )

    def save(self, slot):
        return struct.pack("<d", self.sums[slot])

    def load(self, slot, state):
        self.constants[slot] = None
        (self.sums[slot],) = struct.unpack("<d", state)


def value(x):
    return torch.tensor([float(x)])


@pytest.fixture
def make():
    schedulers = []

    def scheduler(slots=2, max_queue=100, executors=None, **options):
        made = executors if executors is not None else itertools.repeat(None)
        made = iter(made)

        def make_executor():
            executor = next(made) or Adder(slots)
            if isinstance(executor, Exception):
                raise executor
            scheduler.executors.append(executor)
            return executor

        scheduler = Scheduler(make_executor, name="m", max_queue=max_queue, **options)
        scheduler.executors = []
        scheduler.start()
        schedulers.append(scheduler)
        return scheduler

    yield scheduler
    for each in schedulers:
        for executor in each.executors:
            executor.go.set()
        each.stop()
    assert not [t for t in threading.enumerate() if t.name.startswith("engine m")]


def hold(scheduler):
    """Let the next step begin, and stop there. Returns what lets it go on."""
    executor = scheduler.executors[-1]
    executor.go.clear()
    executor.stepping.clear()
    return executor


def wait_until(condition):
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.001)


def test_a_picture_gets_the_logits_of_all_its_timesteps(make):
    result = make().submit(value(3), 4).result(LONG)
    assert result.logits.tolist() == [[3, 3], [6, 3], [9, 3], [12, 3]]
    assert result.spikes.tolist() == [4, 4]
    assert result.synaptic_operations == 12
    assert result.queue_seconds >= 0
    assert result.compute_seconds > 0


def test_newcomers_join_at_the_next_timestep_and_leave_when_they_are_done(make):
    scheduler = make(slots=3)
    executor = hold(scheduler)
    first = scheduler.submit(value(1), 3)
    assert executor.stepping.wait(LONG)
    second = scheduler.submit(value(2), 3)
    executor.go.set()
    assert first.result(LONG).logits[:, 0].tolist() == [1, 2, 3]
    assert second.result(LONG).logits[:, 0].tolist() == [2, 4, 6]
    assert [len(batch) for batch in executor.batches] == [1, 2, 2, 1]


def test_a_slot_is_used_again_without_anything_of_the_last_sample(make):
    scheduler = make(slots=1)
    answers = [scheduler.submit(value(x), 2) for x in (5, 7, 11)]
    assert [a.result(LONG).logits[:, 0].tolist() for a in answers] == [[5, 10], [7, 14], [11, 22]]
    assert [len(batch) for batch in scheduler.executors[0].batches] == [1] * 6


def test_a_full_queue_refuses_at_once(make):
    scheduler = make(slots=1, max_queue=2)
    executor = hold(scheduler)
    running = scheduler.submit(value(1), 1)
    assert executor.stepping.wait(LONG)
    waiting = [scheduler.submit(value(x), 1) for x in (2, 3)]
    assert scheduler.waiting == 2
    for refuse in (lambda: scheduler.submit(value(4), 1), scheduler.check):
        with pytest.raises(ServiceError, match="queue of model m is full") as refused:
            refuse()
        assert refused.value.kind is ErrorKind.UNAVAILABLE
        assert refused.value.retry_after
    executor.go.set()
    for future in (running, *waiting):
        future.result(LONG)
    wait_until(lambda: scheduler.waiting == 0)
    scheduler.check()


def test_a_deadline_that_passes_while_waiting_is_an_error_without_compute(make):
    scheduler = make(slots=1)
    executor = hold(scheduler)
    first = scheduler.submit(value(1), 1)
    assert executor.stepping.wait(LONG)
    late = scheduler.submit(value(2), 1, deadline=time.monotonic())
    executor.go.set()
    first.result(LONG)
    with pytest.raises(ServiceError) as error:
        late.result(LONG)
    assert error.value.kind is ErrorKind.DEADLINE
    assert executor.batches == [[0]]


def test_a_deadline_that_passes_in_the_midst_of_compute_frees_the_slot(make):
    scheduler = make(slots=1)
    executor = hold(scheduler)
    deadline = time.monotonic() + 0.05
    late = scheduler.submit(value(1), 1000, deadline=deadline)
    assert executor.stepping.wait(LONG)
    wait_until(lambda: time.monotonic() > deadline)
    following = scheduler.submit(value(2), 1)
    executor.go.set()
    with pytest.raises(ServiceError) as error:
        late.result(LONG)
    assert error.value.kind is ErrorKind.DEADLINE
    assert following.result(LONG).logits.tolist() == [[2, 2]]
    assert len(executor.batches) == 2


@pytest.mark.parametrize("begun", [True, False])
def test_a_cancelled_picture_is_dropped(make, begun):
    scheduler = make(slots=1)
    executor = hold(scheduler)
    first = scheduler.submit(value(1), 1000)
    assert executor.stepping.wait(LONG)
    second = scheduler.submit(value(2), 1000)
    assert (first if begun else second).cancel()
    executor.go.set()
    other = second if begun else first
    assert len(other.result(LONG).logits) == 1000
    with pytest.raises(CancelledError):
        (first if begun else second).result(LONG)
    assert len(executor.batches) <= 1001


def test_a_stream_keeps_its_state_and_its_order(make):
    scheduler = make()
    stream = scheduler.open_stream()
    answers = [stream.submit(value(x)) for x in range(1, 21)]
    sums = list(itertools.accumulate(range(1, 21)))
    assert [a.result(LONG).logits.tolist() for a in answers] == [
        [[s, x]] for s, x in zip(sums, range(1, 21), strict=True)
    ]


def test_pictures_and_streams_share_a_batch(make):
    scheduler = make(slots=2)
    stream = scheduler.open_stream()
    executor = hold(scheduler)
    picture = scheduler.submit(value(10), 3)
    assert executor.stepping.wait(LONG)
    windows = [stream.submit(value(x)) for x in (1, 2)]
    executor.go.set()
    assert [w.result(LONG).logits[0, 0] for w in windows] == [1, 3]
    assert picture.result(LONG).logits[:, 0].tolist() == [10, 20, 30]
    assert [len(batch) for batch in executor.batches] == [1, 2, 2]


def test_more_streams_than_slots_keep_their_states(make):
    scheduler = make(slots=2)
    streams = [scheduler.open_stream() for _ in range(7)]
    for round_ in range(1, 6):
        futures = [stream.submit(value(i + 1)) for i, stream in enumerate(streams)]
        sums = [future.result(LONG).logits[0, 0] for future in futures]
        assert sums == [(i + 1) * round_ for i in range(7)]
    assert max(len(batch) for batch in scheduler.executors[0].batches) == 2


def test_streams_that_never_pause_do_not_keep_a_picture_waiting(make):
    scheduler = make(slots=2)
    streams = [scheduler.open_stream() for _ in range(2)]
    executor = hold(scheduler)
    early = [stream.submit(value(1)) for stream in streams]
    assert executor.stepping.wait(LONG)
    picture = scheduler.submit(value(5), 1)
    later = [stream.submit(value(1)) for _ in range(20) for stream in streams]
    executor.go.set()
    picture.result(LONG)
    for future in early + later:
        future.result(LONG)
    assert [future.result().logits[0, 0] for future in later[-2:]] == [21, 21]
    # With both slots taken by streams, the picture came next, not last.
    assert len(executor.batches) < 25
    assert sum(map(len, executor.batches)) == 43


def test_closing_a_stream_frees_its_slot_and_fails_what_waits(make):
    scheduler = make(slots=1)
    stream = scheduler.open_stream()
    executor = hold(scheduler)
    first, second = stream.submit(value(1)), stream.submit(value(2))
    assert executor.stepping.wait(LONG)
    stream.close()
    stream.close()
    executor.go.set()
    first.result(LONG)
    with pytest.raises(ServiceError) as error:
        second.result(LONG)
    assert error.value.kind is ErrorKind.CANCELLED
    wait_until(lambda: scheduler.slots_in_use == 0)
    with pytest.raises(ServiceError):
        stream.submit(value(3)).result(LONG)


def test_a_stream_cannot_queue_without_end(make):
    scheduler = make()
    stream = scheduler.open_stream()
    executor = hold(scheduler)
    futures = [stream.submit(value(1)) for _ in range(MAX_PENDING_WINDOWS)]
    with pytest.raises(ServiceError) as error:
        stream.submit(value(1))
    assert error.value.kind is ErrorKind.UNAVAILABLE
    executor.go.set()
    assert futures[-1].result(LONG).logits[0, 0] == MAX_PENDING_WINDOWS
    assert stream.submit(value(1)).result(LONG).logits[0, 0] == MAX_PENDING_WINDOWS + 1


class Observer:
    def __init__(self):
        self.batches = []
        self.restarts = 0

    def stepped(self, batch):
        self.batches.append(batch)

    def restarted(self):
        self.restarts += 1


@pytest.mark.parametrize(
    "crash", [RuntimeError("burnt"), SystemExit(1)], ids=lambda e: type(e).__name__
)
def test_a_crash_fails_everything_accepted_and_a_fresh_executor_goes_on(make, caplog, crash):
    observer = Observer()
    scheduler = make(slots=2, observer=observer)
    stream, resting = scheduler.open_stream(), scheduler.open_stream()
    stream.submit(value(1)).result(LONG)
    executor = hold(scheduler)
    futures = [scheduler.submit(value(x), 2) for x in range(5)] + [stream.submit(value(1))]
    assert executor.stepping.wait(LONG)
    executor.crash = crash
    executor.go.set()
    incidents = set()
    for future in futures:
        with pytest.raises(ServiceError) as error:
            future.result(LONG)
        assert error.value.kind is ErrorKind.INTERNAL
        incidents.add(error.value.incident)
    (incident,) = incidents
    assert incident in caplog.text
    wait_until(lambda: scheduler.healthy)
    assert scheduler.submit(value(3), 1).result(LONG).logits.tolist() == [[3, 3]]
    assert len(scheduler.executors) == 2
    assert observer.restarts == 1
    assert stream.lost is not None
    with pytest.raises(ServiceError) as error:
        stream.submit(value(1))
    assert error.value.kind is ErrorKind.INTERNAL
    # A stream that had nothing in the executor lost nothing.
    assert resting.submit(value(4)).result(LONG).logits.tolist() == [[4, 4]]


def test_a_stream_lost_in_a_crash_gives_no_slot_back(make):
    scheduler = make(slots=2)
    streams = [scheduler.open_stream() for _ in range(2)]
    for stream in streams:
        stream.submit(value(1)).result(LONG)
    scheduler.executors[0].crash = RuntimeError("burnt")
    with pytest.raises(ServiceError):
        streams[0].submit(value(1)).result(LONG)
    wait_until(lambda: scheduler.healthy)
    executor = hold(scheduler)
    futures = [scheduler.submit(value(x), 1) for x in range(6)]
    for stream in streams:
        stream.close()
    executor.go.set()
    assert [f.result(LONG).logits[0, 0] for f in futures] == list(range(6))
    assert all(sorted(batch) == [0, 1] or len(batch) == 1 for batch in executor.batches)


def test_a_stream_that_rested_in_a_slot_is_lost_in_a_crash_and_does_not_start_afresh(make):
    scheduler = make(slots=2)
    stream = scheduler.open_stream()
    stream.submit(value(5)).result(LONG)
    scheduler.executors[0].crash = RuntimeError("burnt")
    with pytest.raises(ServiceError):
        scheduler.submit(value(1), 1).result(LONG)
    wait_until(lambda: scheduler.healthy)
    with pytest.raises(ServiceError) as error:
        stream.submit(value(1))
    assert error.value.kind is ErrorKind.INTERNAL


def test_a_stream_moved_out_survives_a_crash(make):
    scheduler = make(slots=1)
    moved, resident = scheduler.open_stream(), scheduler.open_stream()
    moved.submit(value(5)).result(LONG)
    resident.submit(value(1)).result(LONG)
    scheduler.executors[0].crash = RuntimeError("burnt")
    with pytest.raises(ServiceError):
        resident.submit(value(1)).result(LONG)
    wait_until(lambda: scheduler.healthy)
    assert resident.lost
    assert moved.submit(value(2)).result(LONG).logits.tolist() == [[7, 2]]


def test_while_no_executor_can_be_made_it_is_not_healthy_and_refuses(make, monkeypatch):
    monkeypatch.setattr("spikeserve.engine.scheduler._LONGEST_RESTART_PAUSE", 0.01)
    monkeypatch.setattr("spikeserve.engine.scheduler._FIRST_RESTART_PAUSE", 0.01)
    gate = threading.Event()

    def executors():
        yield Adder(1)
        while not gate.is_set():
            yield OSError("no memory")
        yield Adder(1)

    scheduler = make(executors=executors())
    scheduler.executors[0].crash = RuntimeError("burnt")
    with pytest.raises(ServiceError):
        scheduler.submit(value(1), 1).result(LONG)
    assert not scheduler.healthy
    with pytest.raises(ServiceError, match="restarting") as error:
        scheduler.submit(value(1), 1)
    assert error.value.kind is ErrorKind.UNAVAILABLE
    gate.set()
    wait_until(lambda: scheduler.healthy)
    assert scheduler.submit(value(2), 1).result(LONG).logits.tolist() == [[2, 2]]


def test_stopping_ends_the_pauses_between_restarts(make):
    scheduler = make(executors=[Adder(1), *[OSError("no memory")] * 100])
    scheduler.executors[0].crash = RuntimeError("burnt")
    with pytest.raises(ServiceError):
        scheduler.submit(value(1), 1).result(LONG)
    scheduler.stop()


def test_an_executor_that_cannot_be_made_at_the_start_is_the_callers_error():
    def fail():
        raise OSError("no memory")

    scheduler = Scheduler(fail, name="m", max_queue=1)
    with pytest.raises(OSError, match="no memory"):
        scheduler.start()
    assert not scheduler.healthy
    scheduler.stop()


def test_a_step_that_never_ends_makes_it_unhealthy(make):
    scheduler = make(stall_seconds=0.02)
    assert scheduler.healthy
    executor = hold(scheduler)
    future = scheduler.submit(value(1), 1)
    assert executor.stepping.wait(LONG)
    wait_until(lambda: not scheduler.healthy)
    executor.go.set()
    future.result(LONG)
    wait_until(lambda: scheduler.healthy)


def test_draining_finishes_what_was_accepted_and_refuses_new_work(make):
    scheduler = make(slots=1)
    stream = scheduler.open_stream()
    executor = hold(scheduler)
    futures = [scheduler.submit(value(x), 2) for x in (1, 2)]
    assert not scheduler.drain(0)
    for refused in (lambda: scheduler.submit(value(3), 1), scheduler.open_stream, scheduler.check):
        with pytest.raises(ServiceError, match="shutting down"):
            refused()
    # What is open may go on until the server stops.
    window = stream.submit(value(4))
    executor.go.set()
    assert scheduler.drain(LONG)
    assert [len(f.result(0).logits) for f in futures] == [2, 2]
    assert window.result(0).logits[0, 0] == 4


def test_stopping_answers_everything(make):
    scheduler = make(slots=1)
    stream = scheduler.open_stream()
    executor = hold(scheduler)
    futures = [scheduler.submit(value(1), 1000) for _ in range(3)] + [stream.submit(value(1))]
    assert executor.stepping.wait(LONG)
    stopper = threading.Thread(target=scheduler.stop)
    stopper.start()
    wait_until(lambda: scheduler._inbox.stopping)
    executor.go.set()
    stopper.join(LONG)
    for future in futures:
        with pytest.raises(ServiceError, match="shut down") as error:
            future.result(0)
        assert error.value.kind is ErrorKind.UNAVAILABLE
    with pytest.raises(ServiceError):
        scheduler.submit(value(1), 1)
    scheduler.stop()


def test_an_idle_scheduler_does_nothing(make):
    scheduler = make()
    scheduler.submit(value(1), 1).result(LONG)
    thread = next(t for t in threading.enumerate() if t.name == "engine m")
    waits = []
    condition = scheduler._inbox._condition
    wait = condition.wait
    condition.wait = lambda timeout=None: waits.append(timeout) or wait(timeout)
    scheduler.submit(value(1), 1).result(LONG)
    wait_until(lambda: waits)
    # It sleeps without a timeout: only work wakes it.
    assert set(waits) == {None}
    assert thread.is_alive()


def test_a_long_step_of_one_model_does_not_hold_another_one_up(make):
    slow, quick = make(), make()
    executor = hold(slow)
    held = slow.submit(value(1), 1)
    assert executor.stepping.wait(LONG)
    for x in range(20):
        assert len(quick.submit(value(x), 3).result(LONG).logits) == 3
    assert not held.done()
    executor.go.set()
    held.result(LONG)


def test_the_observer_is_told_of_every_step(make):
    observer = Observer()
    scheduler = make(observer=observer)
    scheduler.submit(value(1), 3).result(LONG)
    wait_until(lambda: len(observer.batches) == 3)
    assert observer.batches == [1, 1, 1]
    assert scheduler.slots == 2
    assert scheduler.layers == ("a", "b")


def test_an_executor_with_the_wrong_number_of_rows_is_a_crash(make):
    scheduler = make()
    executor = scheduler.executors[0]
    executor.step = lambda slots, frames: StepResult(
        torch.zeros(5, 2), torch.zeros(5, 2), torch.zeros(5)
    )
    with pytest.raises(ServiceError) as error:
        scheduler.submit(value(1), 1).result(LONG)
    assert error.value.kind is ErrorKind.INTERNAL


def test_results_are_arrays_of_their_own_rows(make):
    scheduler = make(slots=3)
    results = [f.result(LONG) for f in [scheduler.submit(value(x), 2) for x in (1, 2, 3)]]
    assert [r.logits.shape for r in results] == [(2, 2)] * 3
    assert all(isinstance(r.spikes, np.ndarray) for r in results)
