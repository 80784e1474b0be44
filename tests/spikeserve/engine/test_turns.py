"""The scheduler turn by turn, without its thread and with a clock of the test's own: nothing here depends on time.

The executor keeps a rolling hash of what each sample was given, in order. Every input is a number of its own, so the
answers say exactly which inputs a sample has had: a foreign one, a missing one and a wrong order cannot hide.
"""

import itertools
import struct

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from spikeserve.engine import ExitPolicy, Priority, Scheduler, StateError, StepResult
from spikeserve.engine.inbox import MAX_PENDING_WINDOWS, Inbox
from spikeserve.engine.jobs import QueueLimit
from spikeserve.engine.pool import QUANTUM
from spikeserve.errors import ErrorKind, ServiceError
from spiketrain.exit import exit_scores, leaving_timesteps, running_means

PATIENCE = 10.0
PRIME = 2**31 - 1
STATE = struct.Struct("<qq")


def follow(state, x):
    """The sample's state after one more input: a hash, and how many there were."""
    return (state[0] * 1_000_003 + int(x)) % PRIME, state[1] + 1


class Hasher:
    """Its logits are (hash, input). `steps` has for each input the times at which it was computed."""

    layers = ("only",)

    def __init__(self, slots, driver):
        self.slots = slots
        self.driver = driver
        self.states = {}
        self.constants = {}

    def admit(self, slot, sample):
        self.states[slot], self.constants[slot] = (1, 0), sample.constant

    def step(self, slots, frames):
        driver = self.driver
        driver.batches.append(len(slots))
        if driver.crash:
            driver.crash = False
            raise RuntimeError("crash")
        inputs = [self.constants[slot] for slot in slots]
        if frames is not None:
            for row, value in zip(frames.rows, frames.values, strict=True):
                if inputs[row] is not None:
                    driver.faults.append("a frame for a picture")
                inputs[row] = value
        if len(slots) > self.slots or len(set(slots)) != len(slots):
            driver.faults.append(f"a batch of {slots} in {self.slots} slots")
        for slot, x in zip(slots, inputs, strict=True):
            self.states[slot] = follow(self.states[slot], x)
            driver.steps.setdefault(int(x), []).append(driver.now)
            driver.order.append(int(x))
        rows = [[self.states[slot][0], int(x)] for slot, x in zip(slots, inputs, strict=True)]
        count = len(slots)
        return StepResult(
            torch.tensor(rows, dtype=torch.float64),
            torch.ones(count, 1).double(),
            torch.ones(count).double(),
        )

    def save(self, slot):
        self.driver.moves += 1
        return STATE.pack(*self.states[slot])

    def load(self, slot, state):
        self.states.pop(slot, None)
        if len(state) != STATE.size:
            raise StateError("state: not one of these")
        self.states[slot], self.constants[slot] = STATE.unpack(state), None


class CountingInbox(Inbox):
    """Notes how often each job was answered."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.answered = {}

    def answer(self, answers):
        self._count([job for job, _ in answers])
        super().answer(answers)

    def fail(self, jobs, error):
        self._count(jobs)
        super().fail(jobs, error)

    def _count(self, jobs):
        for job in jobs:
            self.answered[job.future] = self.answered.get(job.future, 0) + 1


class Driver:
    """A scheduler whose turns the test takes."""

    def __init__(self, slots, max_queue=1000):
        self.now = 100.0
        self.crash = False
        self.faults, self.batches, self.order, self.steps = [], [], [], {}
        self.moves = 0
        self.inputs = itertools.count(1)
        self.scheduler = Scheduler(
            lambda: Hasher(slots, self), name="t", max_queue=max_queue, clock=lambda: self.now
        )
        self.inbox = CountingInbox("t", max_queue, PATIENCE, lambda: self.now)
        self.scheduler._inbox = self.inbox
        self.scheduler._turns = self.scheduler._begin()
        self.inbox.open()

    @property
    def pool(self):
        return self.scheduler._pool

    def picture(self, timesteps=1, **options):
        x = next(self.inputs)
        constant = torch.tensor([x], dtype=torch.float64)
        return x, self.scheduler.submit(constant, timesteps, **options)

    def window(self, stream, **options):
        x = next(self.inputs)
        return x, stream.submit(torch.tensor([x], dtype=torch.float64), **options)

    def turn(self):
        turns = self.scheduler._turns
        try:
            turns.run(*self.inbox.take(has_work=True))
        except RuntimeError as error:
            turns = self.scheduler._restart(turns, error)
            self.scheduler._turns = turns
            self.inbox.open()

    def finish(self, limit=10_000):
        for _ in range(limit):
            if not self.inbox._unanswered and not self.inbox._entries:
                return
            self.turn()
        raise AssertionError(f"work is left after {limit} turns: somebody starves")


def refused_with(future):
    error = future.exception(0)
    assert isinstance(error, ServiceError)
    return error.kind


def test_higher_priority_goes_first_and_equals_in_the_order_they_came():
    driver = Driver(slots=1)
    wanted = [Priority.LOW, Priority.NORMAL, Priority.HIGH, Priority.LOW, Priority.HIGH]
    xs = [driver.picture(priority=priority)[0] for priority in wanted]
    driver.finish()
    assert driver.order == [xs[2], xs[4], xs[1], xs[0], xs[3]]


def test_who_has_waited_long_goes_before_later_ones_of_higher_priority():
    driver = Driver(slots=1)
    low = driver.picture(priority=Priority.LOW)[0]
    driver.now += 2 * PATIENCE - 1
    early = driver.picture(priority=Priority.HIGH)[0]
    driver.now += 2
    late = driver.picture(priority=Priority.HIGH)[0]
    normal = driver.picture(priority=Priority.NORMAL)[0]
    driver.finish()
    assert driver.order == [early, low, late, normal]


def test_low_priority_is_not_starved_by_an_endless_supply_of_high():
    driver = Driver(slots=1)
    low, future = driver.picture(priority=Priority.LOW)
    while not future.done() and len(driver.order) < 1000:
        driver.picture(priority=Priority.HIGH)
        driver.picture(priority=Priority.HIGH)
        driver.turn()
        driver.now += 1.0
    assert future.result(0).logits[0, 1] == low
    # Only those went before that came within the patience, once for each step from low to high, at two a second.
    assert len(driver.order) <= 2 * (2 * PATIENCE) + 2


def test_pictures_and_streams_take_their_turns_as_they_come():
    driver = Driver(slots=1)
    stream = driver.scheduler.open_stream()
    expected = [(driver.window(stream) if i % 2 else driver.picture())[0] for i in range(6)]
    driver.finish()
    assert driver.order == expected


def test_a_burst_of_pictures_does_not_hold_a_stream_up_for_longer_than_its_slots_are_taken():
    driver = Driver(slots=2)
    stream = driver.scheduler.open_stream()
    for _ in range(4):
        driver.picture(timesteps=3)
    x, window = driver.window(stream)
    late = [driver.picture(timesteps=3)[1] for _ in range(50)]
    while not window.done() and len(driver.batches) < 100:
        driver.turn()
    # Four pictures of three timesteps were there before it, in two slots.
    assert len(driver.batches) == 7
    assert not any(future.done() for future in late)
    driver.finish()
    assert window.result(0).logits[0, 1] == x


def test_a_stream_that_floods_does_not_hold_others_up_for_longer_than_its_quantum():
    driver = Driver(slots=1)
    flood, other = driver.scheduler.open_stream(), driver.scheduler.open_stream()
    flooding = [driver.window(flood)[0] for _ in range(MAX_PENDING_WINDOWS)]
    picture = driver.picture()[0]
    window = driver.window(other)[0]
    driver.finish()
    assert driver.order[:QUANTUM] == flooding[:QUANTUM]
    assert driver.order[QUANTUM : QUANTUM + 2] == [picture, window]
    assert driver.order[QUANTUM + 2 :] == flooding[QUANTUM:]


def test_floods_share_a_slot_by_quanta_and_are_not_moved_for_each_window():
    driver = Driver(slots=1)
    streams = [driver.scheduler.open_stream() for _ in range(2)]
    for _ in range(4 * QUANTUM):
        for stream in streams:
            driver.window(stream)
    driver.now += 1
    before = driver.moves
    driver.finish()
    runs = [len(list(run)) for _, run in itertools.groupby(driver.order, lambda x: x % 2)]
    assert max(runs) <= QUANTUM
    assert driver.moves - before <= 2 * 4 * QUANTUM


def test_a_deadline_and_a_client_that_left_cost_no_step():
    driver = Driver(slots=2)
    late, expired = driver.picture(timesteps=5, deadline=driver.now + 1)
    left, cancelled = driver.picture(timesteps=5)
    waiting, stays = driver.picture(timesteps=1)
    driver.turn()
    driver.now += 1
    cancelled.cancel()
    assert driver.scheduler.waiting == 1
    driver.finish()
    assert refused_with(expired) is ErrorKind.DEADLINE
    assert len(driver.steps[late]) == len(driver.steps[left]) == len(driver.steps[waiting]) == 1
    assert stays.result(0).logits[0, 1] == waiting
    assert driver.scheduler.waiting == driver.scheduler.slots_in_use == 0


def test_a_picture_that_waits_for_a_slot_for_too_long_is_refused_and_one_that_has_it_is_not():
    driver = Driver(slots=1)
    limit = QueueLimit(5.0, "SOME_LIMIT")
    _, seated = driver.picture(timesteps=3, queue_limit=limit)
    waiting, refused = driver.picture(timesteps=1, queue_limit=limit)
    _, expired = driver.picture(timesteps=1, queue_limit=limit, deadline=driver.now + 4)
    _, patient = driver.picture(timesteps=1)
    driver.turn()
    driver.now += 5
    driver.finish()
    assert seated.exception(0) is None
    assert refused_with(refused) is ErrorKind.UNAVAILABLE
    assert "waited 5 s for a slot, the limit (SOME_LIMIT)" in refused.exception(0).message
    assert refused.exception(0).retry_after == 5
    assert waiting not in driver.steps
    assert refused_with(expired) is ErrorKind.DEADLINE
    assert patient.exception(0) is None
    assert driver.scheduler.waiting == driver.scheduler.slots_in_use == 0


def test_the_order_stays_when_some_have_left():
    driver, rng = Driver(slots=1), np.random.default_rng(0)
    submitted = []
    for _ in range(60):
        priority = Priority(int(rng.integers(-1, 2)))
        submitted.append((priority, *driver.picture(priority=priority)))
    for i in rng.permutation(60)[:25]:
        submitted[i][2].cancel()
    driver.finish()
    assert driver.order == [
        x for _, x, future in sorted(submitted, key=lambda s: s[:2]) if not future.cancelled()
    ]


def test_places_in_the_queue_are_free_again_once_clients_have_left():
    driver = Driver(slots=1, max_queue=2)
    driver.picture(timesteps=10)
    driver.turn()
    waiting = [driver.picture()[1] for _ in range(2)]
    with pytest.raises(ServiceError, match="queue of model t is full"):
        driver.picture()
    for future in waiting:
        future.cancel()
    driver.turn()
    assert driver.scheduler.waiting == 0
    driver.picture()


def test_deadlines_are_looked_through_only_when_one_may_have_passed(monkeypatch):
    driver = Driver(slots=1)
    for _ in range(20):
        driver.picture(deadline=driver.now + 50)
    looked = []
    monkeypatch.setattr(type(driver.pool), "_drop_waiting", lambda *_: looked.append(1) or [])
    for _ in range(10):
        driver.turn()
    assert not looked
    driver.now += 50
    driver.turn()
    assert looked


def test_a_snapshot_has_the_windows_before_it_and_no_later_ones():
    driver = Driver(slots=1)
    stream = driver.scheduler.open_stream()
    xs, saved = [], []
    for _ in range(3):
        xs.append(driver.window(stream)[0])
        saved.append(stream.save())
        xs.append(driver.window(stream)[0])
    driver.finish()
    state, expected = (1, 0), []
    for i, x in enumerate(xs):
        state = follow(state, x)
        if i % 2 == 0:
            expected.append(STATE.pack(*state))
    assert [future.result(0) for future in saved] == expected


def test_snapshots_of_a_fresh_a_resting_and_a_moved_stream():
    driver = Driver(slots=1)
    first, second = driver.scheduler.open_stream(), driver.scheduler.open_stream()
    fresh = first.save()
    driver.finish()
    assert fresh.result(0) == STATE.pack(1, 0)
    x, _ = driver.window(first)
    driver.finish()
    resting = first.save()
    driver.finish()
    driver.window(second)
    driver.finish()
    assert first._resident.saved is not None
    moved = first.save()
    driver.finish()
    assert resting.result(0) == moved.result(0) == STATE.pack(*follow((1, 0), x))
    # It took no slot from anybody.
    assert second._resident.slot is not None


def test_a_state_goes_on_in_another_scheduler():
    here, there = Driver(slots=1), Driver(slots=3)
    stream = here.scheduler.open_stream()
    state = (1, 0)
    for _ in range(3):
        x, _ = here.window(stream)
        state = follow(state, x)
    saved = stream.save()
    assert not here.scheduler.drain(0)
    here.finish()
    resumed = there.scheduler.open_stream(saved.result(0))
    x, future = there.window(resumed)
    again = resumed.save()
    there.finish()
    state = follow(state, x)
    assert future.result(0).logits.tolist() == [[state[0], x]]
    assert again.result(0) == STATE.pack(*state)


def test_a_state_that_cannot_be_loaded_fails_its_stream_and_nobody_else():
    driver = Driver(slots=1)
    stream, other = driver.scheduler.open_stream(b"nonsense"), driver.scheduler.open_stream()
    window, saved = driver.window(stream)[1], stream.save()
    fine = driver.window(other)[1]
    driver.finish()
    assert refused_with(window) is refused_with(saved) is ErrorKind.IMPOSSIBLE
    assert fine.result(0)
    assert stream.lost is not None
    with pytest.raises(ServiceError, match="not one of these"):
        stream.save()
    stream.close()
    driver.turn()
    assert driver.scheduler.slots_in_use == 1


def test_a_snapshot_of_a_closed_stream_fails():
    driver = Driver(slots=1)
    stream = driver.scheduler.open_stream()
    stream.close()
    saved = stream.save()
    driver.finish()
    assert refused_with(saved) is ErrorKind.CANCELLED


def test_a_stream_that_lost_a_window_in_a_crash_is_lost_even_if_its_state_was_elsewhere():
    driver = Driver(slots=1)
    outside, inside = driver.scheduler.open_stream(), driver.scheduler.open_stream()
    for stream in (outside, inside):
        driver.window(stream)
        driver.finish()
    assert outside._resident.saved is not None
    windows = [driver.window(stream)[1] for stream in (inside, outside)]
    driver.crash = True
    driver.turn()
    assert [refused_with(window) for window in windows] == [ErrorKind.INTERNAL] * 2
    # To go on would be to leave the window out.
    for stream in (inside, outside):
        with pytest.raises(ServiceError, match="failed and is being restarted"):
            driver.window(stream)


def policy(thresholds, temperature):
    return ExitPolicy(0.1, tuple(thresholds), (temperature,) * len(thresholds))


def expected_logits(x, timesteps):
    state, rows = (1, 0), []
    for _ in range(timesteps):
        state = follow(state, x)
        rows.append([state[0], x])
    return rows


class Machine(RuleBasedStateMachine):
    pictures = Bundle("pictures")
    streams = Bundle("streams")
    states = Bundle("states")

    @initialize(slots=st.integers(1, 4), max_queue=st.integers(1, 8))
    def start(self, slots, max_queue):
        self.driver = Driver(slots, max_queue)
        self.max_queue = max_queue
        self.pictures_seen = []
        self.streams_seen = []  # (state at the start, [(kind, input, future)])

    @rule(
        target=pictures,
        timesteps=st.integers(1, 5),
        priority=st.sampled_from(Priority),
        patience=st.none() | st.integers(0, 8),
        thresholds=st.none() | st.lists(st.floats(0.5, 0.8), min_size=4, max_size=4),
    )
    def submit(self, timesteps, priority, patience, thresholds):
        driver = self.driver
        deadline = None if patience is None else driver.now + patience
        exits = None if thresholds is None else policy(thresholds[: timesteps - 1], 1e9)
        if driver.scheduler.waiting >= self.max_queue:
            with pytest.raises(ServiceError, match="queue of model t is full"):
                driver.picture(timesteps)
            return multiple()
        x, future = driver.picture(
            timesteps, deadline=deadline, priority=priority, exit_policy=exits
        )
        turn = driver.now + priority * PATIENCE
        self.pictures_seen.append((turn, x, future, timesteps, deadline, exits, driver.now))
        return future

    @rule(future=pictures)
    def cancel(self, future):
        future.cancel()

    @rule(target=streams)
    def open(self):
        stream = self.driver.scheduler.open_stream()
        self.streams_seen.append(((1, 0), stream, []))
        return self.streams_seen[-1]

    @rule(target=streams, saved=states)
    def resume(self, saved):
        if not saved.done() or saved.cancelled() or saved.exception(0):
            return multiple()
        stream = self.driver.scheduler.open_stream(saved.result(0))
        self.streams_seen.append((STATE.unpack(saved.result(0)), stream, []))
        return self.streams_seen[-1]

    @rule(
        entry=streams,
        count=st.integers(1, 2 * QUANTUM),
        patience=st.none() | st.integers(0, 5),
        cancelled=st.integers(0, 20),
    )
    def feed(self, entry, count, patience, cancelled):
        _, stream, jobs = entry
        deadline = None if patience is None else self.driver.now + patience
        for i in range(count):
            try:
                x, future = self.driver.window(stream, deadline=deadline)
            except ServiceError:
                assert stream.lost or stream._resident.unanswered == MAX_PENDING_WINDOWS
                return
            jobs.append(("window", x, future))
            if i == cancelled:
                future.cancel()

    @rule(target=states, entry=streams)
    def save(self, entry):
        _, stream, jobs = entry
        try:
            future = stream.save()
        except ServiceError:
            assert stream.lost or stream._resident.unanswered == MAX_PENDING_WINDOWS
            return multiple()
        jobs.append(("state", None, future))
        return future

    @rule(entry=consumes(streams))
    def close(self, entry):
        entry[1].close()

    @rule(count=st.integers(1, 6))
    def turn(self, count):
        for _ in range(count):
            self.driver.turn()

    @rule(seconds=st.integers(1, 15))
    def wait(self, seconds):
        self.driver.now += seconds

    @rule()
    def crash(self):
        """With nothing to compute there is none."""
        self.driver.crash = True
        self.driver.turn()
        self.driver.crash = False

    @invariant()
    def nothing_went_wrong(self):
        assert self.driver.faults == []
        assert 0 <= self.driver.scheduler.waiting <= self.max_queue
        assert all(count == 1 for count in self.driver.inbox.answered.values())

    def teardown(self):
        if not hasattr(self, "driver"):
            return
        self.driver.finish()
        self.nothing_went_wrong()
        self.check_pictures()
        for start, _, jobs in self.streams_seen:
            self.check_stream(start, jobs)
        assert self.driver.scheduler.waiting == 0
        for _, stream, _ in self.streams_seen:
            stream.close()
        self.driver.turn()
        assert self.driver.scheduler.slots_in_use == 0
        assert not self.driver.pool.has_work

    def check_pictures(self):
        for _, x, future, timesteps, deadline, exits, _ in self.pictures_seen:
            steps = self.driver.steps.get(x, [])
            if future.cancelled():
                assert len(steps) <= timesteps
            elif error := future.exception(0):
                assert error.kind in (ErrorKind.INTERNAL, ErrorKind.DEADLINE)
            else:
                rows = expected_logits(x, timesteps)
                used = timesteps
                if exits is not None and timesteps > 1:
                    means = running_means(np.array(rows)[:, None])
                    scores = exit_scores(means, exits.temperatures)
                    used = leaving_timesteps(scores, exits.thresholds)[0]
                assert future.result(0).logits.tolist() == rows[:used]
                assert future.result(0).synaptic_operations == used == len(steps)
            assert deadline is None or all(time < deadline for time in steps)
        # Whoever has the earlier turn starts first, unless the other one had begun before it came.
        begun = [one for one in self.pictures_seen if one[1] in self.driver.steps]
        for early, late in itertools.permutations(begun, 2):
            if (early[0], early[1]) < (late[0], late[1]):
                first, second = early[1], late[1]
                if self.driver.order.index(second) < self.driver.order.index(first):
                    assert self.driver.steps[second][0] <= early[6]

    def check_stream(self, state, jobs):
        lost = False
        for kind, x, future in jobs:
            if future.cancelled():
                continue
            if error := future.exception(0):
                assert error.kind in (ErrorKind.INTERNAL, ErrorKind.CANCELLED, ErrorKind.DEADLINE)
                lost = lost or error.kind is not ErrorKind.DEADLINE
                continue
            assert not lost
            if kind == "state":
                assert future.result(0) == STATE.pack(*state)
                continue
            state = follow(state, x)
            assert future.result(0).logits.tolist() == [[state[0], x]]
            assert len(self.driver.steps[x]) == 1


TestTurns = Machine.TestCase
TestTurns.settings = settings(
    max_examples=150,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
