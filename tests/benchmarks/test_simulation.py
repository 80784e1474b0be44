"""The queueing simulation against what queueing theory says in closed form."""

from __future__ import annotations

import importlib.util
import math
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

FILE = Path(__file__).parents[2] / "benchmarks" / "simulation.py"
SERVED = 10_000


@pytest.fixture(scope="module")
def simulation() -> ModuleType:
    spec = importlib.util.spec_from_file_location("simulation", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Data classes look their module up.
    sys.modules["simulation"] = module
    spec.loader.exec_module(module)
    return module


def arrivals(rate: float, seed: int = 0) -> Iterator[float]:
    dice, now = random.Random(seed), 0.0
    for _ in range(SERVED):
        now += dice.expovariate(rate)
        yield now


def waits(simulation: ModuleType, rate: float, count: int, service: list[float]) -> float:
    """Mean time in a system of `count` threads with one queue: each arrival begins as soon as a thread is free."""
    clock = simulation.Clock()
    cores = simulation.Cores(clock, count)
    free = [simulation.Thread(cores) for _ in range(count)]
    queue: list[tuple[float, float]] = []
    times: list[float] = []

    def begin() -> None:
        if queue and free:
            came, seconds = queue.pop(0)
            thread = free.pop()

            def done() -> None:
                times.append(clock.now - came)
                # The thread is free once this has returned.
                clock.after(0.0, lambda: (free.append(thread), begin()))

            thread.do(seconds, done)

    def arrive(seconds: float) -> None:
        queue.append((clock.now, seconds))
        begin()

    for at, seconds in zip(arrivals(rate), service, strict=True):
        clock.at(at, lambda seconds=seconds: arrive(seconds))  # type: ignore[misc]
    clock.run()
    assert len(times) == SERVED
    return sum(times) / SERVED


def test_one_thread_is_an_m_m_1_queue(simulation: ModuleType) -> None:
    dice = random.Random(1)
    service = [dice.expovariate(1.0) for _ in range(SERVED)]
    assert waits(simulation, 0.5, 1, service) == pytest.approx(1 / (1 - 0.5), rel=0.06)


def test_one_thread_with_constant_work_is_an_m_d_1_queue(simulation: ModuleType) -> None:
    load = 0.7
    expected = 1 + load / (2 * (1 - load))  # Pollaczek and Khinchine
    assert waits(simulation, load, 1, [1.0] * SERVED) == pytest.approx(expected, rel=0.05)


def test_two_threads_are_an_m_m_2_queue(simulation: ModuleType) -> None:
    """Erlang's C formula."""
    dice = random.Random(1)
    service = [dice.expovariate(1.0) for _ in range(SERVED)]
    load, count = 1.4, 2
    busy = load**count / math.factorial(count) * count / (count - load)
    chance = busy / (sum(load**k / math.factorial(k) for k in range(count)) + busy)
    expected = 1 + chance / (count - load)
    assert waits(simulation, load, count, service) == pytest.approx(expected, rel=0.06)


def test_two_threads_with_constant_work_are_an_m_d_2_queue(simulation: ModuleType) -> None:
    """Cosmetatos' approximation, which is within a percent here."""
    load, count = 0.7, 2
    waiting_m_m_2 = load**2 / (1 - load**2)
    shape = (1 - load) * (count - 1) * (math.sqrt(4 + 5 * count) - 2) / (16 * load * count)
    expected = 1 + waiting_m_m_2 * (1 + shape) / 2
    found = waits(simulation, load * count, count, [1.0] * SERVED)
    assert found == pytest.approx(expected, rel=0.05)


def test_shared_cores_are_a_processor_sharing_queue(simulation: ModuleType) -> None:
    """M/G/1 with processor sharing: the mean is that of M/M/1, whatever the distribution of the work."""
    clock = simulation.Clock()
    cores = simulation.Cores(clock, 1)
    dice = random.Random(1)
    times: list[float] = []

    def arrive() -> None:
        came = clock.now
        # Nine of ten are short: served in turn, the mean would be 2.6.
        cores.work(5.5 if dice.random() < 0.1 else 0.5, lambda: times.append(clock.now - came))

    for at in arrivals(0.5):
        clock.at(at, arrive)
    clock.run()
    assert sum(times) / len(times) == pytest.approx(2.0, rel=0.12)
    assert cores.busy_seconds == pytest.approx(SERVED, rel=0.05)


def served(simulation: ModuleType, rate: float, **changes: object) -> object:
    """An engine that sleeps, and costs no processor time."""
    clock = simulation.Clock()
    cores = simulation.Cores(clock, 2)
    given = {"slots": 1, "max_queue": 10**6, "timesteps": 1, "ahead": False, **changes}
    costs = given.pop("costs", simulation.Costs(delays=(0.0, 1.0)))
    server = simulation.Server(clock, cores, costs, dice=random.Random(0), **given)
    return simulation.open_loop(clock, cores, server, costs, arrivals(rate), 0.0, math.inf)


def test_a_server_with_one_slot_is_an_m_d_1_queue(simulation: ModuleType) -> None:
    outcome = served(simulation, 0.7)
    mean = sum(outcome.latencies) / SERVED  # type: ignore[attr-defined]
    assert mean == pytest.approx(1 + 0.7 / (2 * 0.3), rel=0.05)


def test_a_server_without_a_queue_refuses_as_erlang_says(simulation: ModuleType) -> None:
    """M/D/c/c: with so many slots and as good as no queue. A queue of one, which is as short as it gets, makes it M/D/1/2."""
    outcome = served(simulation, 1.0, max_queue=1)
    refused = outcome.refused / SERVED  # type: ignore[attr-defined]
    # M/D/1/2 at a load of 1: a share of exp(-1) of the services is followed by a pause, which is 1 long on average.
    assert 1 - refused == pytest.approx(1 / (1 + math.exp(-1)), rel=0.02)


def test_a_pass_takes_in_all_who_wait(simulation: ModuleType) -> None:
    """A constant pass, whatever is in it: at great loads half a pass to wait for it and one to be in it, on average."""
    costs = simulation.Costs(delays=(1.0, 0.0))
    outcome = served(simulation, 50.0, slots=1000, costs=costs, timesteps=4, ahead=True)
    mean = sum(outcome.latencies) / SERVED  # type: ignore[attr-defined]
    assert mean == pytest.approx(1.5, rel=0.03)
    # One timestep to a pass: joins at the next one, wherever the others are.
    outcome = served(simulation, 50.0, slots=1000, costs=costs, timesteps=4)
    mean = sum(outcome.latencies) / SERVED  # type: ignore[attr-defined]
    assert mean == pytest.approx(4.5, rel=0.03)


def test_a_balancer_halves_the_load(simulation: ModuleType) -> None:
    """Where all take the same time, the shorter queue is the one that is free first: M/D/2."""
    clock = simulation.Clock()
    cores = simulation.Cores(clock, 4)
    dice = random.Random(0)
    servers = [
        simulation.Server(
            clock, cores, simulation.Costs(delays=(0.0, 1.0)), slots=1, max_queue=10**6,
            timesteps=1, ahead=False, dice=dice,
        )
        for _ in range(2)
    ]  # fmt: skip
    balancer = simulation.Balancer(cores, simulation.Costs(), servers, retries=3)
    outcome = simulation.open_loop(
        clock, cores, balancer, simulation.Costs(), arrivals(1.4), 0.0, math.inf
    )
    mean = sum(outcome.latencies) / SERVED
    assert mean == pytest.approx(waits(simulation, 1.4, 2, [1.0] * SERVED), rel=1e-6)


def test_what_is_refused_is_tried_elsewhere(simulation: ModuleType) -> None:
    clock = simulation.Clock()
    cores = simulation.Cores(clock, 4)
    dice = random.Random(0)

    def server(slots: int) -> object:
        return simulation.Server(
            clock, cores, simulation.Costs(delays=(0.0, 1.0)), slots=slots, max_queue=1,
            timesteps=1, ahead=False, dice=dice,
        )  # fmt: skip

    balancer = simulation.Balancer(cores, simulation.Costs(), [server(1), server(1)], retries=3)
    outcome = simulation.open_loop(
        clock, cores, balancer, simulation.Costs(), (i / 100 for i in range(6)), 0.0, math.inf
    )
    # One in the slot and one in the queue of each; the other two were refused by all that were asked.
    assert (len(outcome.latencies), outcome.refused) == (4, 2)
    assert balancer.retried == 6
