from __future__ import annotations

import importlib
import io
import json
from collections.abc import Callable

import pytest
import torch
from rich.console import Console
from torch import Tensor

from spiketrain.checkpoint import Checkpoint
from spiketrain.convert import ConversionError, convert_to_lif, judge, sweep
from spiketrain.convert.sweep import LITERATURE, OURS
from spiketrain.evaluate import evaluate
from spiketrain.neurons import CLIFConfig, GLIFConfig

MakeCheckpoint = Callable[..., Checkpoint]
Batches = list[tuple[Tensor, Tensor]]


def single(batches: Batches) -> Batches:
    return [(x.float(), y) for x, y in batches]


def test_a_network_judged_against_itself_has_lost_nothing(
    make_checkpoint: MakeCheckpoint, batches: Batches
):
    network = make_checkpoint(CLIFConfig(), dtype=torch.float32).network()
    (judgement,) = judge(network, [network], single(batches))
    assert judgement.samples == 48
    assert judgement.agreement == 1
    assert judgement.change == 0
    assert set(judgement.spike_mismatch.values()) == {0.0}
    assert judgement.total_mismatch == 0


def test_accuracies_and_rates_are_those_of_evaluation(
    make_checkpoint: MakeCheckpoint, batches: Batches
):
    parent = make_checkpoint(CLIFConfig(), dtype=torch.float32)
    child = convert_to_lif(parent, reset="soft").network()
    seen: list[int] = []
    (judgement,) = judge(parent.network(), [child], single(batches), seen.append)
    expected = evaluate(child, single(batches))
    assert seen == [16, 16, 16]
    assert judgement.accuracy_by_timestep == pytest.approx(expected.accuracy_by_timestep)
    assert judgement.accuracy == pytest.approx(expected.accuracy)
    before = evaluate(parent.network(), single(batches))
    assert judgement.parent_accuracy == pytest.approx(before.accuracy)
    same = (before.predictions == expected.predictions).double().mean().item()
    assert judgement.agreement == pytest.approx(same)
    for name, profile in expected.rate_profiles().items():
        assert judgement.rates[name].profile.model_dump() == pytest.approx(
            profile.model_dump(), abs=1e-6
        )


def test_mismatch_is_given_of_the_spikes_and_of_all_neurons(
    make_checkpoint: MakeCheckpoint, batches: Batches, monkeypatch: pytest.MonkeyPatch
):
    parent = make_checkpoint(CLIFConfig(), dtype=torch.float32)
    networks = [parent.network(), convert_to_lif(parent, reset="soft").network()]
    (judgement,) = judge(networks[0], [networks[1]], single(batches))
    different = neurons = fired = 0
    with torch.no_grad():
        for x, _ in single(batches):
            mine, theirs = (network(x).spikes for network in networks)
            for name, spikes in mine.items():
                different += int((spikes != theirs[name]).sum())
                neurons += spikes.numel()
                fired += int(spikes.sum())
    assert different > 0
    assert judgement.total_mismatch == pytest.approx(different / fired)
    assert judgement.differing == pytest.approx(different / neurons)
    # A timestep at a time, where all at once would take too much memory, it is the same.
    module = importlib.import_module("spiketrain.convert.judge")  # the package has its function
    monkeypatch.setattr(module, "MOST_SPIKES", 0)
    assert judge(networks[0], [networks[1]], single(batches)) == [judgement]


def test_judging_on_nothing_is_refused(make_checkpoint: MakeCheckpoint):
    network = make_checkpoint(CLIFConfig()).network()
    with pytest.raises(ValueError, match="no batches"):
        judge(network, [network], [])


def test_the_sweep_has_the_literatures_rows_and_ours(
    make_checkpoint: MakeCheckpoint, batches: Batches
):
    parent = make_checkpoint(CLIFConfig(), dtype=torch.float32)
    data = single(batches)
    report = sweep(
        parent, [x for x, _ in data[:1]], data[1:], calibrated_on="train, 16", judged_on="test, 32"
    )
    assert [row.variant for row in report.rows] == [*LITERATURE, *OURS]
    assert len(LITERATURE) == 2 + 2 * 5
    assert report.parent_digest == parent.manifest.digest
    rows = {(row.variant.label, row.variant.rest): row for row in report.rows}
    mismatch = {key: row.judgement.total_mismatch for key, row in rows.items()}
    assert mismatch["soft, 1.8", "zero"] < mismatch["soft, threshold", "zero"] / 3
    assert mismatch["soft, closed form", "zero"] < mismatch["soft, threshold", "zero"] / 3
    assert mismatch["hard, closed form", "zero"] < mismatch["hard, 0", "zero"]
    assert set(rows["soft, closed form", "zero"].values) == set(parent.network().neuron_shapes())
    (alone,) = judge(
        parent.network(),
        [convert_to_lif(parent, reset="hard", value=-0.06, rest="reset").network()],
        data[1:],
    )
    assert rows["hard, -0.06", "reset"].judgement == alone

    printed = io.StringIO()
    Console(file=printed, width=100).print(report.table())
    text = " ".join(printed.getvalue().split())
    for words in (
        "soft, threshold",
        "moves with it",
        "closed form",
        "judged on test, 32",
        "train, 16",
    ):
        assert words in text

    content = json.loads(report.to_json())
    assert content["judged_on"] == "test, 32"
    assert [row["variant"]["label"] for row in content["rows"]] == [
        row.variant.label for row in report.rows
    ]
    assert content["rows"][0]["judgement"]["accuracy"] == report.rows[0].judgement.accuracy


def test_a_model_that_cannot_be_converted_is_refused(
    make_checkpoint: MakeCheckpoint, batches: Batches
):
    parent = make_checkpoint(GLIFConfig(), dtype=torch.float32)
    data = single(batches)
    with pytest.raises(ConversionError, match="gate alpha"):
        sweep(parent, [data[0][0]], data, calibrated_on="", judged_on="")
