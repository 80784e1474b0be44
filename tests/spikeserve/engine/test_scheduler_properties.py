"""The scheduler's invariants, whatever happens in whatever order.

The executor adds up the inputs of each sample, and every input is a number of its own: a power of two times one more
number. So the logits say exactly which inputs a sample has had, and a foreign one cannot hide.
"""

import struct
import threading
import time
from concurrent.futures import CancelledError

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from spikeserve.engine import Sample, Scheduler, StepResult
from spikeserve.errors import ErrorKind, ServiceError

LONG = 30


class Recorder:
    """Adds inputs up in float64, checks how it is called, and can be held or made to crash between two steps."""

    layers = ("only",)

    def __init__(self, slots, faults, gate):
        self.slots = slots
        self.faults = faults
        self.gate = gate
        self.sums = {}
        self.constants = {}
        self.steps = {}
        self.crash = False

    def admit(self, slot, sample: Sample):
        self.sums[slot] = 0.0
        self.constants[slot] = sample.constant

    def step(self, slots, frames):
        self.gate.wait(LONG)
        if self.crash:
            raise RuntimeError("crash")
        inputs = {slot: self.constants[slot] for slot in slots}
        if frames is not None:
            for row, value in zip(frames.rows, frames.values, strict=True):
                if inputs[slots[row]] is not None:
                    self.faults.append("a frame for a picture")
                inputs[slots[row]] = value
        if len(slots) > self.slots or len(set(slots)) != len(slots):
            self.faults.append(f"a batch of {slots} in {self.slots} slots")
        for slot in slots:
            x = float(inputs[slot])
            self.sums[slot] += x
            self.steps[x] = self.steps.get(x, 0) + 1
        rows = [[self.sums[slot], float(inputs[slot])] for slot in slots]
        count = len(slots)
        return StepResult(
            torch.tensor(rows, dtype=torch.float64),
            torch.ones(count, 1).double(),
            torch.ones(count),
        )

    def save(self, slot):
        return struct.pack("<d", self.sums.pop(slot))

    def load(self, slot, state):
        self.constants[slot] = None
        (self.sums[slot],) = struct.unpack("<d", state)


class Machine(RuleBasedStateMachine):
    pictures = Bundle("pictures")
    streams = Bundle("streams")

    @initialize(slots=st.integers(1, 4), max_queue=st.integers(1, 6))
    def start(self, slots, max_queue):
        self.faults = []
        self.gate = threading.Event()
        self.gate.set()
        self.executors = []
        self.numbers = 0
        self.slots, self.max_queue = slots, max_queue
        self.accepted = []  # futures and what must come of them
        self.windows = {}  # stream: [(number, future)]
        self.scheduler = Scheduler(self.make, name="p", max_queue=max_queue)
        self.scheduler.start()

    def make(self):
        self.executors.append(Recorder(self.slots, self.faults, self.gate))
        return self.executors[-1]

    def number(self):
        self.numbers += 1
        return float(self.numbers)

    @rule(target=pictures, timesteps=st.integers(1, 5))
    def submit(self, timesteps):
        x = self.number()
        try:
            future = self.scheduler.submit(torch.tensor([x], dtype=torch.float64), timesteps)
        except ServiceError as error:
            if error.kind is not ErrorKind.UNAVAILABLE:
                self.faults.append(f"refused with {error.kind}")
            return None
        self.accepted.append((future, x, timesteps))
        return future

    @rule(future=pictures)
    def cancel(self, future):
        if future is not None:
            future.cancel()

    @rule(target=streams)
    def open(self):
        try:
            stream = self.scheduler.open_stream()
        except ServiceError:  # restarting
            return None
        self.windows[stream] = []
        return stream

    @rule(stream=streams, count=st.integers(1, 4))
    def feed(self, stream, count):
        if stream is None:
            return
        for _ in range(count):
            x = self.number()
            try:
                future = stream.submit(torch.tensor([x], dtype=torch.float64))
            except ServiceError:
                return
            self.windows[stream].append((x, future))

    @rule(stream=streams)
    def close(self, stream):
        if stream is not None:
            stream.close()

    @rule()
    def pause(self):
        self.gate.clear()

    @rule()
    def resume(self):
        self.gate.set()

    @rule()
    def crash(self):
        self.executors[-1].crash = True

    @rule()
    def settle(self):
        self.gate.set()
        self.wait()

    @invariant()
    def nothing_went_wrong(self):
        assert self.faults == []
        assert 0 <= self.scheduler.waiting <= self.max_queue

    def wait(self):
        for future in [f for f, _, _ in self.accepted] + [
            f for w in self.windows.values() for _, f in w
        ]:
            try:
                future.exception(LONG)
            except CancelledError:
                continue

    def teardown(self):
        if not hasattr(self, "scheduler"):
            return
        self.gate.set()
        try:
            self.wait()
            self.check()
        finally:
            self.scheduler.stop()
        assert not self.scheduler._inbox._unanswered
        assert not [t for t in threading.enumerate() if t.name == "engine p"]

    def check(self):
        assert self.faults == []
        for future, x, timesteps in self.accepted:
            self.check_picture(future, x, timesteps)
        for windows in self.windows.values():
            self.check_stream(windows)
        assert self.scheduler.drain(LONG)
        end = time.monotonic() + LONG
        while self.scheduler.waiting or self.scheduler.slots_in_use > len(self.windows):
            assert time.monotonic() < end, "pictures that are answered still take up places"
            time.sleep(0.001)

    def steps_of(self, x):
        return sum(executor.steps.get(x, 0) for executor in self.executors)

    def check_picture(self, future, x, timesteps):
        if future.cancelled():
            assert self.steps_of(x) <= timesteps
        elif error := future.exception():
            assert error.kind is ErrorKind.INTERNAL
        else:
            expected = [[x * t, x] for t in range(1, timesteps + 1)]
            assert future.result().logits.tolist() == expected
            assert self.steps_of(x) == timesteps

    def check_stream(self, windows):
        total, failed = 0.0, False
        for x, future in windows:
            if error := future.exception():
                # Once a window is missing no later one is answered.
                failed = True
                assert error.kind in (ErrorKind.INTERNAL, ErrorKind.CANCELLED)
                continue
            assert not failed
            total += x
            assert future.result().logits.tolist() == [[total, x]]
            assert self.steps_of(x) == 1


TestScheduler = Machine.TestCase
TestScheduler.settings = settings(
    max_examples=100,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
