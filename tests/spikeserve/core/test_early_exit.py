"""Early exit and priority of requests: what the classifier makes of them."""

import asyncio
import threading

import numpy as np
import pytest
import torch

from spikeserve.classify import ClassifyRequest
from spikeserve.engine import Priority
from spikeserve.engine.readout import probabilities
from spikeserve.errors import ErrorKind, ServiceError
from spikeserve.images import ImageLimits, decode_image
from spiketrain.checkpoint import load_checkpoint, save_checkpoint
from spiketrain.exit import ExitLevel, ExitTable, exit_scores, leaving_timesteps, running_means

LONG = 30


@pytest.fixture
def with_exits(write):
    """A checkpoint with exits by risk; returns it as it was loaded."""

    def make(name="alpha", thresholds=None, **options):
        path = write(name, **options)
        loaded = load_checkpoint(path)
        levels = {0.005: 0.9998, 0.01: 0.999, 0.02: 0.98} if thresholds is None else thresholds
        table = ExitTable(
            model=loaded.manifest.digest,
            temperatures=(0.01, 0.01, 0.01),
            levels=tuple(
                ExitLevel(
                    risk=risk,
                    thresholds=(one,) * 3,
                    disagreement=0,
                    upper_bound=0,
                    mean_timesteps=1,
                )
                for risk, one in levels.items()
            ),
            confidence=0.95,
            dataset="d",
            split="validation",
            fitted=1,
            verified=1,
            seed=0,
        )
        manifest = loaded.manifest.model_copy(update={"exit": table})
        save_checkpoint(path, manifest, loaded.tensors)
        return load_checkpoint(path)

    return make


def expected(checkpoint, picture, risk):
    """How many timesteps the picture takes, and its logits after each."""
    x = decode_image(picture, checkpoint.manifest.input, ImageLimits(10**6, 10**6))
    with torch.no_grad():
        logits = checkpoint.network()(x[None]).logits.numpy()
    table = checkpoint.manifest.exit
    scores = exit_scores(running_means(logits), table.temperatures)
    return int(leaving_timesteps(scores, table.level(risk).thresholds)[0]), logits[:, 0]


async def refused(classifier, **options):
    with pytest.raises(ServiceError) as error:
        await classifier.classify(ClassifyRequest(**options))
    return error.value


@pytest.mark.parametrize("readout", ["mean", "sum", "rate"])
@pytest.mark.parametrize(
    ("asked", "risk"),
    [
        ({"exit": "balanced"}, 0.005),
        ({"exit": "fast"}, 0.02),
        ({"risk": 0.019}, 0.01),
        ({"risk": 0.5}, 0.02),
    ],
)
async def test_a_picture_leaves_when_it_is_sure_enough(
    with_exits, classifier_of, picture, asked, risk, readout, scraped
):
    checkpoint = with_exits(readout=readout)
    classifier = classifier_of()
    used = []
    for seed in range(12):
        answer = await classifier.classify(ClassifyRequest(picture(seed), top_k=10, **asked))
        steps, logits = expected(checkpoint, picture(seed), risk)
        assert (answer.timesteps_used, answer.timesteps_of) == (steps, 4)
        assert answer.exit_risk == risk
        chances = probabilities(readout, logits[:steps])
        assert [p.index for p in answer.predictions] == np.argsort(-chances, kind="stable").tolist()
        used.append(steps)
    labels = {"model": "alpha", "exit": "on"}
    total = scraped(classifier.metrics, "spikeserve_timesteps_used_sum", **labels)
    assert total == sum(used)
    assert len(set(used)) > 1


@pytest.mark.parametrize("asked", [{}, {"exit": "off"}, {"risk": 0.0}, {"risk": 0.0049}])
async def test_all_timesteps_are_run_when_exit_is_off_or_no_level_is_small_enough(
    with_exits, classifier_of, picture, asked, scraped
):
    with_exits(thresholds={0.005: 1e-9})
    classifier = classifier_of()
    answer = await classifier.classify(ClassifyRequest(picture(), **asked))
    assert (answer.timesteps_used, answer.exit_risk) == (4, 0.0)
    counted = scraped(classifier.metrics, "spikeserve_timesteps_used_count", exit="off")
    assert counted == 1


async def test_the_setting_holds_for_requests_that_say_nothing(with_exits, classifier_of, picture):
    with_exits(thresholds={0.005: 1e-9})
    classifier = classifier_of(exit="balanced")
    used = [
        (await classifier.classify(ClassifyRequest(picture(), **asked))).timesteps_used
        # Exits are known for the model's own timesteps only; asking for others turns the setting off, not the request.
        for asked in ({}, {"timesteps": 4}, {"exit": "off"}, {"timesteps": 3}, {"timesteps": 7})
    ]
    assert used == [1, 1, 4, 3, 7]


async def test_the_setting_does_not_refuse_models_without_exits(write, classifier_of, picture):
    write("alpha")
    answer = await classifier_of(exit="fast").classify(ClassifyRequest(picture()))
    assert (answer.timesteps_used, answer.exit_risk) == (4, 0.0)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"exit": "balanced", "risk": 0.01}, "exit and risk"),
        ({"exit": "off", "risk": 0.01}, "exit and risk"),
        ({"risk": 1.0}, "risk is 1: it must be from 0 to below 1"),
        ({"risk": -0.1}, "risk is -0.1"),
        ({"risk": float("nan")}, "risk is nan"),
        ({"exit": "fast", "timesteps": 5}, "timesteps is 5: the exits of alpha are for 4"),
        ({"risk": 0.01, "timesteps": 3}, "timesteps is 3"),
        ({"exit": "balanced", "model": "plain"}, "plain has no early exit.*calibrate-exit"),
        ({"risk": 0.0, "model": "plain"}, "plain has no early exit"),
    ],
)
async def test_exits_that_cannot_be(with_exits, write, classifier_of, picture, asked, says):
    with_exits()
    write("plain")
    classifier = classifier_of()
    error = await refused(classifier, image=picture(), **{"model": "alpha"} | asked)
    assert error.kind is ErrorKind.IMPOSSIBLE
    with pytest.raises(ServiceError, match=says):
        raise error


async def test_pictures_with_and_without_exit_share_a_batch_and_get_their_own_answers(
    with_exits, classifier_of, picture
):
    with_exits()
    classifier = classifier_of(slots=3)
    asked = [{}, {"exit": "balanced"}, {"exit": "fast"}, {"timesteps": 6}]
    requests = [ClassifyRequest(picture(i), **asked[i % 4]) for i in range(24)]
    alone = [await classifier.classify(request) for request in requests]
    together = await asyncio.gather(*map(classifier.classify, requests))
    assert [a.timesteps_used for a in alone] == [t.timesteps_used for t in together]
    assert [a.predictions for a in alone] == [t.predictions for t in together]
    assert [a.synaptic_operations for a in alone] == [t.synaptic_operations for t in together]
    assert len({a.timesteps_used for a in alone}) > 2


async def until(condition):
    for _ in range(LONG * 1000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it never happened")


async def test_priority_orders_those_that_wait(write, classifier_of, picture):
    write("alpha")
    classifier = classifier_of(slots=1)
    engine = classifier.repository.get().engine
    gate, reached = threading.Event(), threading.Event()
    executor = engine._pool.executor
    step = executor.step

    def held(slots, frames):
        reached.set()
        if not gate.wait(LONG):
            raise TimeoutError("the test never opened the gate")
        return step(slots, frames)

    executor.step = held
    done = []

    async def ask(name, priority):
        await classifier.classify(ClassifyRequest(picture(), timesteps=1, priority=priority))
        done.append(name)

    tasks = [asyncio.create_task(ask("first", None))]
    await asyncio.to_thread(reached.wait, LONG)
    order = [("low", Priority.LOW), ("normal", None), ("high", Priority.HIGH)]
    for waiting, (name, priority) in enumerate(order, 1):
        tasks.append(asyncio.create_task(ask(name, priority)))
        await until(lambda waiting=waiting: engine.waiting == waiting)
    gate.set()
    await asyncio.gather(*tasks)
    assert done == ["first", "high", "normal", "low"]


async def test_a_server_may_keep_high_priority_to_itself(write, classifier_of, picture):
    write("alpha")
    classifier = classifier_of(highest_priority="low")
    for priority in (Priority.HIGH, Priority.NORMAL):
        error = await refused(classifier, image=picture(), priority=priority)
        assert error.kind is ErrorKind.IMPOSSIBLE
        assert "low is the highest" in error.message
    for priority in (None, Priority.LOW):
        assert await classifier.classify(ClassifyRequest(picture(), priority=priority))
