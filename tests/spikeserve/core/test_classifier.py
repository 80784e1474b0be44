import asyncio
import itertools
import threading
import time

import numpy as np
import pytest
import torch

from spikeserve.classify import Classifier, ClassifyRequest
from spikeserve.engine.readout import probabilities
from spikeserve.errors import ErrorKind, ServiceError
from spikeserve.images import ImageLimits, decode_image
from spiketrain.checkpoint import load_checkpoint
from spiketrain.energy import encoder_macs, energy_joules, fan_out, synaptic_operations
from spiketrain.manifest import DurationWindow, EventInput
from spiketrain.neurons import GLIFConfig

LONG = 30
MOVES = EventInput(sensor=(34, 34), shape=(2, 34, 34), window=DurationWindow(microseconds=1000))


async def refused(classifier, request):
    with pytest.raises(ServiceError) as error:
        await classifier.classify(request)
    return error.value


@pytest.mark.parametrize("readout", ["mean", "sum", "rate", "vote"])
@pytest.mark.parametrize("timesteps", [None, 1, 7])
async def test_the_answer_is_that_of_the_network(write, classifier_of, picture, readout, timesteps):
    checkpoint = load_checkpoint(write("alpha", readout=readout))
    network, used = checkpoint.network(), timesteps or 4
    x = decode_image(picture(), checkpoint.manifest.input, ImageLimits(10**6, 10**6))
    with torch.no_grad():
        run = network(x[None], used)
    chances = probabilities(readout, run.logits[:, 0].numpy())
    answer = await classifier_of().classify(
        ClassifyRequest(picture(), top_k=10, timesteps=timesteps)
    )
    assert (answer.model, answer.version) == ("alpha", "1")
    assert (answer.timesteps_used, answer.timesteps_of) == (used, used)
    assert [p.index for p in answer.predictions] == np.argsort(-chances, kind="stable").tolist()
    for prediction in answer.predictions:
        assert prediction.label == "abcdefghij"[prediction.index]
        assert prediction.probability == pytest.approx(chances[prediction.index], abs=1e-6)
    rates = {name: spikes.mean().item() for name, spikes in run.spikes.items()}
    assert answer.firing_rates == pytest.approx(rates, abs=1e-6)
    assert max(rates.values()) > 0
    reach = fan_out(network)
    operations = sum(
        synaptic_operations({k: s[t] for k, s in run.spikes.items()}, reach).item()
        for t in range(used)
    )
    assert answer.synaptic_operations == operations > 0
    assert answer.energy_joules == energy_joules(operations, encoder_macs(network))
    assert set(answer.timing_seconds) == {"decode", "queue", "compute"}
    assert min(answer.timing_seconds.values()) >= 0


async def test_many_at_once_get_their_own_answers(write, classifier_of, picture):
    write("alpha")
    classifier = classifier_of(slots=3)
    requests = [ClassifyRequest(picture(i), timesteps=1 + i % 4) for i in range(12)]
    alone = [await classifier.classify(request) for request in requests]
    together = await asyncio.gather(*map(classifier.classify, requests))
    for one, other in zip(alone, together, strict=True):
        assert one.predictions == other.predictions
        assert one.firing_rates == other.firing_rates
        assert one.synaptic_operations == other.synaptic_operations


async def test_models_and_versions_can_be_named(write, classifier_of, picture):
    write("alpha", file="alpha/1.safetensors")
    write("alpha", file="alpha/2.safetensors", seed=1)
    write("beta", seed=2)
    classifier = classifier_of()
    for model, version, expected in [
        (None, None, ("alpha", "2")),
        ("alpha", "1", ("alpha", "1")),
        ("beta", None, ("beta", "1")),
    ]:
        answer = await classifier.classify(ClassifyRequest(picture(), model=model, version=version))
        assert (answer.model, answer.version) == expected
    assert (
        await refused(classifier, ClassifyRequest(picture(), model="gamma"))
    ).kind is ErrorKind.NOT_FOUND


async def test_rates_can_be_left_out(write, classifier_of, picture):
    write("alpha")
    answer = await classifier_of().classify(ClassifyRequest(picture(), rates=False))
    assert answer.firing_rates == {}
    assert answer.synaptic_operations > 0


async def test_top_k_is_five_or_all_there_are(write, classifier_of, picture):
    write("alpha")
    write("two", classes=("a", "b"))
    classifier = classifier_of()
    assert len((await classifier.classify(ClassifyRequest(picture()))).predictions) == 5
    assert (
        len((await classifier.classify(ClassifyRequest(picture(), model="two"))).predictions) == 2
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"top_k": 0}, "top_k is 0: alpha has 10 classes"),
        ({"top_k": 11}, "top_k is 11"),
        ({"timesteps": 0}, "timesteps is 0: alpha runs 1 to 128"),
        ({"timesteps": 129}, "timesteps is 129"),
        ({"model": "moves"}, "takes events, not pictures"),
        ({"model": "bound", "timesteps": 5}, "bound runs 1 to 4 .*parameters for each timestep"),
    ],
)
async def test_impossible_requests(write, classifier_of, picture, options, says):
    write("alpha")
    write("bound", neuron=GLIFConfig())
    write("moves", MOVES)
    error = await refused(classifier_of(), ClassifyRequest(picture(), **options))
    assert error.kind is ErrorKind.IMPOSSIBLE
    with pytest.raises(ServiceError, match=says):
        raise error


async def test_what_a_model_was_trained_with_is_always_allowed(write, classifier_of, picture):
    write("alpha", timesteps=6)
    classifier = classifier_of(max_timesteps=2)
    assert (await classifier.classify(ClassifyRequest(picture()))).timesteps_used == 6
    assert (
        await refused(classifier, ClassifyRequest(picture(), timesteps=7))
    ).kind is ErrorKind.IMPOSSIBLE


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"hello, this is text", ErrorKind.UNSUPPORTED_MEDIA),
        (b"", ErrorKind.MALFORMED),
        (b"\x89PNG\r\n\x1a\n\0\0", ErrorKind.MALFORMED),
        (bytes(2000), ErrorKind.TOO_LARGE),
    ],
)
async def test_bad_pictures(write, classifier_of, picture, data, kind):
    write("alpha")
    classifier = classifier_of(max_body_bytes=1500)
    assert (await refused(classifier, ClassifyRequest(data))).kind is kind
    assert await classifier.classify(ClassifyRequest(picture()))


async def test_a_deadline_that_has_passed(write, classifier_of, picture):
    write("alpha")
    classifier = classifier_of()
    error = await refused(classifier, ClassifyRequest(picture(), deadline=time.monotonic()))
    assert error.kind is ErrorKind.DEADLINE
    assert await classifier.classify(ClassifyRequest(picture(), deadline=time.monotonic() + LONG))


class Gate:
    """Holds the engine of a model between two timesteps."""

    def __init__(self, model):
        self.executor = model.engine._pool.executor
        self.step = self.executor.step
        self.open, self.reached = threading.Event(), threading.Event()
        self.batches = []
        self.executor.step = self.held

    def held(self, slots, frames):
        self.reached.set()
        if not self.open.wait(LONG):
            raise TimeoutError("the test never opened the gate")
        self.batches.append(len(slots))
        return self.step(slots, frames)


async def until(condition):
    for _ in range(LONG * 1000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it never happened")


async def test_a_deadline_is_answered_on_time_even_while_the_engine_is_busy(
    write, classifier_of, picture
):
    write("alpha")
    classifier = classifier_of()
    gate = Gate(classifier.repository.get())
    error = await refused(classifier, ClassifyRequest(picture(), deadline=time.monotonic() + 0.1))
    assert error.kind is ErrorKind.DEADLINE
    gate.open.set()
    await until(lambda: classifier.repository.get().engine.slots_in_use == 0)


async def test_a_client_that_leaves_frees_its_slot(write, classifier_of, picture):
    write("alpha")
    classifier = classifier_of(slots=1)
    gate = Gate(classifier.repository.get())
    task = asyncio.create_task(classifier.classify(ClassifyRequest(picture(), timesteps=100)))
    await until(gate.reached.is_set)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gate.open.set()
    await classifier.classify(ClassifyRequest(picture(), timesteps=3))
    # One timestep of the first; of the second three, or one call for all where the executor computes ahead.
    assert len(gate.batches) in (2, 4)


async def test_a_full_queue_refuses_before_decoding(write, classifier_of, picture, monkeypatch):
    write("alpha")
    classifier = classifier_of(slots=1, max_queue=1)
    gate = Gate(classifier.repository.get())
    first = asyncio.create_task(classifier.classify(ClassifyRequest(picture())))
    await until(gate.reached.is_set)
    second = asyncio.create_task(classifier.classify(ClassifyRequest(picture())))
    await until(lambda: classifier.repository.get().engine.waiting == 1)
    error = await refused(classifier, ClassifyRequest(b"not even a picture"))
    assert error.kind is ErrorKind.UNAVAILABLE
    assert error.retry_after
    gate.open.set()
    await asyncio.gather(first, second)


async def test_pictures_that_wait_to_be_decoded_are_bounded(
    write, classifier_of, picture, monkeypatch
):
    write("alpha")
    monkeypatch.setattr("spikeserve.classify.decodes_at_once", lambda image: False)
    classifier = classifier_of(max_queue=3, decode_threads=1)
    gate = threading.Event()
    monkeypatch.setattr(
        "spikeserve.classify.decode_image",
        lambda *arguments: (gate.wait(LONG), decode_image(*arguments))[1],
    )
    tasks = [
        asyncio.create_task(classifier.classify(ClassifyRequest(picture(i)))) for i in range(3)
    ]
    await asyncio.sleep(0)
    assert (await refused(classifier, ClassifyRequest(picture()))).kind is ErrorKind.UNAVAILABLE
    gate.set()
    assert len(await asyncio.gather(*tasks)) == 3


async def test_a_crash_of_the_engine_is_in_the_log_and_the_picture_is_answered(
    write, classifier_of, picture, caplog, scraped
):
    write("alpha")
    classifier = classifier_of()
    model = classifier.repository.get()

    def crash(slots, frames):
        raise RuntimeError("burnt")

    model.engine._pool.executor.step = crash
    assert await classifier.classify(ClassifyRequest(picture()))
    assert "burnt" in caplog.text
    assert classifier.repository.ready
    assert scraped(classifier.metrics, "spikeserve_engine_restarts_total", model="alpha") == 1


async def test_a_closed_classifier_refuses_and_leaves_no_thread(
    write, classifier_of, load, picture, monkeypatch
):
    monkeypatch.setattr("spikeserve.classify.decodes_at_once", lambda image: False)
    write("alpha")
    repository, metrics, settings = load()
    classifier = Classifier(repository, metrics, settings)
    await classifier.classify(ClassifyRequest(picture()))
    assert [t for t in threading.enumerate() if t.name.startswith("decode")]
    classifier.close()
    classifier.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("decode")]
    assert (await refused(classifier, ClassifyRequest(picture()))).kind is ErrorKind.UNAVAILABLE


class FailsAt:
    """An executor that fails in these of its steps."""

    def __init__(self, executor, steps):
        self.executor, self.steps = executor, steps

    def __getattr__(self, name):
        return getattr(self.executor, name)

    def step(self, slots, frames):
        if next(self.steps):
            raise RuntimeError("the executor failed")
        return self.executor.step(slots, frames)


@pytest.mark.parametrize("step", [0, 3, 9])
async def test_an_exception_in_the_executor_loses_no_picture(write, classifier_of, picture, step):
    write("a")
    classifier = classifier_of(executor="reference")
    engine = classifier.repository.get("a").engine
    numbers = itertools.count()
    failing = iter(lambda: next(numbers) == step, None)
    make = engine._make_executor
    engine._make_executor = lambda: FailsAt(make(), failing)
    engine._turns.pool.executor = FailsAt(engine._turns.pool.executor, failing)
    asked = [ClassifyRequest(picture(seed)) for seed in range(12)]
    results = await asyncio.gather(*(classifier.classify(each) for each in asked))
    again = await asyncio.gather(*(classifier.classify(each) for each in asked))
    assert [r.predictions for r in results] == [r.predictions for r in again]
    assert next(numbers) > step


async def test_an_executor_that_always_fails_is_an_error(write, classifier_of, picture, caplog):
    write("a")
    classifier = classifier_of(executor="reference")
    engine = classifier.repository.get("a").engine
    make = engine._make_executor
    always = itertools.repeat(True)
    engine._make_executor = lambda: FailsAt(make(), always)
    engine._turns.pool.executor = FailsAt(engine._turns.pool.executor, always)
    with pytest.raises(ServiceError) as error:
        await classifier.classify(ClassifyRequest(picture()))
    assert error.value.kind is ErrorKind.INTERNAL
    assert "the executor failed" not in error.value.message
    assert error.value.incident in caplog.text
