"""Which executor is chosen, and what the log says of it."""

from __future__ import annotations

import logging

import pytest
import torch

from spikeserve.engine import ReferenceExecutor, Sample, StepResult, choose
from spikeserve.engine.choose import Candidate, Chooser, Model, UnsupportedError
from spiketrain.energy import fan_out
from spiketrain.networks import build_network
from spiketrain.neurons import CLIFConfig, IntegratorConfig

SMALL = {"input_shape": (1, 8, 8), "channels": [4, 8], "classes": 3}


def model_of(neuron=None, precision="auto", **arguments) -> Model:
    torch.manual_seed(0)
    network = build_network("small-conv", SMALL | arguments, neuron or CLIFConfig(), 2).eval()
    return Model("digits", network, 4, fan_out(network), "w", precision)


class Fixed:
    """An executor that says who made it."""

    slots = 4
    layers = ("a",)

    def __init__(self, label: str) -> None:
        self.label = label

    def admit(self, slot: int, sample: Sample) -> None:
        pass

    def step(self, slots, frames) -> StepResult:
        return StepResult(torch.zeros(len(slots), 3), torch.zeros(len(slots), 1), torch.zeros(1))


def with_executors(monkeypatch, seconds: dict[str, float | str]) -> list[str]:
    """Executors that would take so long, or cannot run for the reason given; returns what is made."""
    made: list[str] = []

    def candidates(label: str):
        def offer(model: Model):
            if isinstance(seconds[label], str):
                raise UnsupportedError(str(seconds[label]))
            yield Candidate(label, lambda: made.append(label) or Fixed(label))

        return offer

    monkeypatch.setattr(choose, "EXECUTORS", {label: candidates(label) for label in seconds})
    monkeypatch.setattr(choose, "seconds_per_timestep", lambda e, network: seconds[e.label])
    return made


def test_the_fastest_is_taken_and_the_log_says_why(monkeypatch, caplog):
    made = with_executors(monkeypatch, {"a": 2e-3, "b": 1e-3, "c": "too large", "d": 3e-3})
    chooser = Chooser(model_of(), "auto")
    with caplog.at_level(logging.INFO):
        assert chooser().label == "b"
    assert chooser.label == "b"
    (line,) = caplog.messages
    assert line.startswith("digits runs on: b: a timestep of one sample takes a 2 ms, b 1 ms, d 3")
    assert "not c: too large" in line
    # After a crash the same is made again, without another comparison.
    assert made == ["a", "b", "d"]
    assert chooser().label == "b"
    assert made == ["a", "b", "d", "b"]


def test_the_one_asked_for_is_taken_without_a_comparison(monkeypatch, caplog):
    made = with_executors(monkeypatch, {"a": 2e-3, "b": 1e-3})
    with caplog.at_level(logging.INFO):
        assert Chooser(model_of(), "a")().label == "a"
    assert made == ["a"]
    assert caplog.messages == ["digits runs on: a"]


def test_none_that_can_run_the_model_is_an_error_with_the_reasons(monkeypatch):
    with_executors(monkeypatch, {"a": "no loops", "b": "no memory"})
    with pytest.raises(UnsupportedError, match=r"digits: no executor .*no loops; not b: no memory"):
        Chooser(model_of(), "auto")()
    with pytest.raises(ValueError, match="executor 'x': there are auto, a, b"):
        Chooser(model_of(), "x")


def test_networks_for_the_reference_alone_are_served_whatever_the_precision(caplog):
    for precision in ("auto", "int8"):
        model = model_of(IntegratorConfig(), precision)
        with caplog.at_level(logging.INFO):
            assert isinstance(Chooser(model, "auto")(), ReferenceExecutor)
        assert "runs on: reference" in caplog.messages[-1]
        assert "not cpu" in caplog.messages[-1]


def test_a_precision_that_an_executor_lacks_is_refused_where_it_is_asked_for():
    with pytest.raises(UnsupportedError, match="reference executor computes in float32"):
        Chooser(model_of(precision="int8"), "reference")()


def test_without_numba_the_reference_runs(monkeypatch, caplog):
    monkeypatch.setitem(__import__("sys").modules, "spikeserve.engine.cpu", None)
    with caplog.at_level(logging.INFO):
        assert isinstance(Chooser(model_of(), "auto")(), ReferenceExecutor)
    assert "needs numba" in caplog.messages[-1]


def test_the_cpu_executor_in_the_precision_asked_for():
    cpu = pytest.importorskip("spikeserve.engine.cpu")
    for precision in ("float32", "int16", "int8"):
        chooser = Chooser(model_of(precision=precision), "cpu")
        assert isinstance(chooser(), cpu.CpuExecutor)
        assert chooser.label == f"cpu, {precision}"
