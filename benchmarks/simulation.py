"""Servers behind a balancer as a queueing simulation of discrete events: what scale.py checks against real ones.

Processor time is shared: whatever threads have work run at the same speed, that of a whole core where there are cores enough
(processor sharing). A thread does one thing after the other (first come, first served). A server is a thread that talks to its
clients (the event loop) and one that computes (the engine), and the two share one lock (Python's). The engine takes in who
waits when a pass begins, as far as it has free slots; a picture leaves after its timesteps, one to a pass, or, with an
executor that computes ahead, all in one. Pictures beyond `max_queue` that wait are refused with 503; the balancer gives each
request to the server with the fewest under way, and one that was refused to another, `retries` times.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

Then = Callable[[], None]


class Clock:
    """Events in the order of their times, in seconds; at the same time, in the order in which they were asked for."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Then]] = []
        self._order = itertools.count()

    def after(self, seconds: float, then: Then) -> None:
        self.at(self.now + seconds, then)

    def at(self, time: float, then: Then) -> None:
        heapq.heappush(self._events, (time, next(self._order), then))

    def run(self, end: float = math.inf) -> None:
        while self._events and self._events[0][0] <= end:
            self.now, _, then = heapq.heappop(self._events)
            then()


class Cores:
    """Work under way, all of it at the same speed: that of a core, or less where there is more work than cores."""

    def __init__(self, clock: Clock, count: float) -> None:
        self.clock = clock
        self.busy_seconds = 0.0
        self._count = count
        # When one core's worth of work has got so far that a piece is done; all pieces go on alike.
        self._reached = 0.0
        self._seen = 0.0
        self._pieces: list[tuple[float, int, Then]] = []
        self._order = itertools.count()
        self._version = 0

    def work(self, seconds: float, then: Then) -> None:
        """Calls `then` when so much processor time was had."""
        self._advance()
        heapq.heappush(self._pieces, (self._reached + seconds, next(self._order), then))
        self._plan()

    def _speed(self) -> float:
        return min(1.0, self._count / len(self._pieces)) if self._pieces else 0.0

    def _advance(self) -> None:
        passed = (self.clock.now - self._seen) * self._speed()
        self._reached += passed
        self.busy_seconds += passed * len(self._pieces)
        self._seen = self.clock.now

    def _plan(self) -> None:
        self._version += 1
        if self._pieces:
            version = self._version
            left = max(0.0, self._pieces[0][0] - self._reached) / self._speed()
            self.clock.after(left, lambda: self._done(version))

    def _done(self, version: int) -> None:
        if version != self._version:
            return  # something came or went meanwhile
        self._advance()
        at, _, then = heapq.heappop(self._pieces)
        self._reached = max(self._reached, at)
        self._plan()
        then()


class Lock:
    """Who asks for it gets it, one after the other."""

    def __init__(self) -> None:
        self._held = False
        self._waiting: deque[Then] = deque()

    def acquire(self, then: Then) -> None:
        if self._held:
            self._waiting.append(then)
        else:
            self._held = True
            then()

    def release(self) -> None:
        if self._waiting:
            self._waiting.popleft()()
        else:
            self._held = False


class Thread:
    """Pieces of work, one after the other. After a pause it begins `hop` seconds later, and needs `wake` more."""

    def __init__(
        self, cores: Cores, hop: float = 0.0, wake: float = 0.0, lock: Lock | None = None
    ) -> None:
        self._cores = cores
        self._hop = hop
        self._wake = wake
        self._lock = lock
        self._pieces: deque[tuple[float, Then]] = deque()
        self._busy = False

    def do(self, seconds: float, then: Then) -> None:
        if self._busy:
            self._pieces.append((seconds, then))
            return
        self._busy = True
        self._cores.clock.after(self._hop, lambda: self._begin(seconds + self._wake, then))

    def _begin(self, seconds: float, then: Then) -> None:
        if self._lock is None:
            self._cores.work(seconds, lambda: self._end(then))
        else:
            self._lock.acquire(lambda: self._cores.work(seconds, lambda: self._end(then)))

    def _end(self, then: Then) -> None:
        if self._lock is not None:
            self._lock.release()
        then()
        if self._pieces:
            self._begin(*self._pieces.popleft())
        else:
            self._busy = False


@dataclass(frozen=True)
class Costs:
    """Seconds of processor time, measured. `hop` passes until a thread that sleeps goes on. Of the event loop: `receive` until a picture is handed over, `reply` for its
    answer, `refuse` instead of both, `loop_wake` after a pause. Of the engine: `turn` of a pass and `answer` of a picture
    with Python's lock, `pass_` and `picture` of the executor without it, `engine_wake` after a pause. `delays` of an
    executor that sleeps, the pass and each picture in it. `client` and `balancer` of a request, there and back together.
    """

    receive: float = 0.0
    reply: float = 0.0
    refuse: float = 0.0
    loop_wake: float = 0.0
    turn: float = 0.0
    answer: float = 0.0
    pass_: float = 0.0
    picture: float = 0.0
    engine_wake: float = 0.0
    hop: float = 0.0
    delays: tuple[float, float] = (0.0, 0.0)
    client: float = 0.0
    balancer: float = 0.0
    # What a pass took over what it should have taken, to draw from.
    spread: tuple[float, ...] = (1.0,)


class Request(NamedTuple):
    due: float
    answered: Callable[[bool], None]


class Target(Protocol):
    def arrive(self, request: Request) -> None: ...


@dataclass
class _Seated:
    request: Request
    left: int


class Server:
    def __init__(
        self, clock: Clock, cores: Cores, costs: Costs, *, slots: int, max_queue: int,
        timesteps: int, ahead: bool, dice: random.Random,
    ) -> None:  # fmt: skip
        self._clock, self._cores, self._costs = clock, cores, costs
        self._slots, self._max_queue = slots, max_queue
        self._timesteps = 1 if ahead else timesteps
        self._dice = dice
        self._lock = Lock()
        self._loop = Thread(cores, costs.hop, costs.loop_wake, self._lock)
        self._waiting: deque[Request] = deque()
        self._seated: list[_Seated] = []
        self._computing = False
        self.passes = 0

    def arrive(self, request: Request) -> None:
        # Whether there is room is seen when the event loop comes to it, not before.
        self._loop.do(0.0, lambda: self._received(request))

    def _received(self, request: Request) -> None:
        costs = self._costs
        if len(self._waiting) >= self._max_queue:
            self._loop.do(costs.refuse, lambda: request.answered(False))
        else:
            self._loop.do(costs.receive, lambda: self._submit(request))

    def _submit(self, request: Request) -> None:
        self._waiting.append(request)
        if not self._computing:
            self._computing = True
            self._clock.after(self._costs.hop, lambda: self._turn(self._costs.engine_wake))

    def _turn(self, wake: float = 0.0) -> None:
        """Who is in is decided with the lock, when the engine has it."""
        self._lock.acquire(lambda: self._cores.work(wake + self._costs.turn, self._fill))

    def _fill(self) -> None:
        self._lock.release()
        while self._waiting and len(self._seated) < self._slots:
            self._seated.append(_Seated(self._waiting.popleft(), self._timesteps))
        if not self._seated:
            self._computing = False
            return
        self.passes += 1
        costs, count = self._costs, len(self._seated)
        spread = self._dice.choice(costs.spread)
        sleep = costs.delays[0] + costs.delays[1] * count
        work = (costs.pass_ + costs.picture * count) * spread
        after = self._computed if work == 0 else lambda: self._cores.work(work, self._computed)
        if sleep:
            self._clock.after(sleep, after)
        else:
            after()

    def _computed(self) -> None:
        for each in self._seated:
            each.left -= 1
        done = [each.request for each in self._seated if not each.left]
        self._seated = [each for each in self._seated if each.left]

        def answered() -> None:
            self._lock.release()
            for request in done:
                self._answer(request)
            if self._seated or self._waiting:
                self._turn()
            else:
                self._computing = False

        work = self._costs.answer * len(done)
        self._lock.acquire(lambda: self._cores.work(work, answered))

    def _answer(self, request: Request) -> None:
        self._loop.do(self._costs.reply, lambda: request.answered(True))


class Balancer:
    """To the server with the fewest under way; of equal ones to the one that had none for the longest time."""

    def __init__(self, cores: Cores, costs: Costs, servers: Sequence[Target], retries: int) -> None:
        self._thread = Thread(cores, costs.hop)
        self._cost = costs.balancer / 2
        self._servers = list(servers)
        self._under_way = [0] * len(servers)
        self._last = list(range(-len(servers), 0))
        self._turns = itertools.count()
        self._retries = retries
        self.retried = 0

    def arrive(self, request: Request) -> None:
        self._thread.do(self._cost, lambda: self._send(request, self._retries, None))

    def _send(self, request: Request, retries: int, refused_by: int | None) -> None:
        others = [i for i in range(len(self._servers)) if i != refused_by] or [0]
        chosen = min(others, key=lambda i: (self._under_way[i], self._last[i]))
        self._last[chosen] = next(self._turns)
        self._under_way[chosen] += 1

        def answered(fine: bool) -> None:
            self._under_way[chosen] -= 1
            if fine or not retries:
                self._thread.do(self._cost, lambda: request.answered(fine))
            else:
                self.retried += 1
                self._thread.do(self._cost, lambda: self._send(request, retries - 1, chosen))

        self._servers[chosen].arrive(Request(request.due, answered))


@dataclass
class Outcome:
    """`latencies` of those answered within the time that is looked at, by when they were answered; in seconds."""

    latencies: list[float] = field(default_factory=list)
    refused: int = 0


def poisson(rate: float, seconds: float, seed: int = 0) -> Iterator[float]:
    """Times of arrival, the first at 0: those of load.py's open loop with the same seed."""
    dice = random.Random(seed)
    due = 0.0
    while due < seconds:
        yield due
        due += dice.expovariate(rate)


def open_loop(
    clock: Clock, cores: Cores, target: Target, costs: Costs, times: Iterable[float],
    begin: float, end: float,
) -> Outcome:  # fmt: skip
    """Requests at these times, whatever becomes of those before. Runs the clock until all are answered."""
    outcome = Outcome()
    client, cost = Thread(cores, costs.hop), costs.client

    def one(due: float) -> None:
        def received(fine: bool) -> None:
            if not begin <= clock.now < end:
                return
            if fine:
                outcome.latencies.append(clock.now - due)
            else:
                outcome.refused += 1

        def answered(fine: bool) -> None:
            client.do(cost / 2, lambda: received(fine))

        # It was awake when it sent, which is when its time was noted.
        cores.work(cost / 2, lambda: target.arrive(Request(due, answered)))

    for due in times:
        clock.at(due, lambda due=due: one(due))  # type: ignore[misc]
    clock.run()
    return outcome


def closed_loop(
    clock: Clock, cores: Cores, target: Target, costs: Costs, clients: int, begin: float, end: float
) -> Outcome:
    """Each client sends its next request when it has the answer to its last."""
    outcome = Outcome()
    thread, cost = Thread(cores, costs.hop), costs.client

    def send() -> None:
        due = clock.now

        def received() -> None:
            if begin <= clock.now < end:
                outcome.latencies.append(clock.now - due)
            if clock.now < end:
                send()

        def answered(_: bool) -> None:
            thread.do(cost / 2, received)

        thread.do(cost / 2, lambda: target.arrive(Request(due, answered)))

    for _ in range(clients):
        send()
    clock.run()
    return outcome
