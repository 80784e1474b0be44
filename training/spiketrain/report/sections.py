"""The sections of figures: curves, accuracy by timestep, confusion, firing rates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from spiketrain.report import charts
from spiketrain.report.curves import Curve
from spiketrain.report.html import figures, note, section, table
from spiketrain.report.measure import Measured

_MANY_CLASSES = 25
_MOST_CURVES = 6
_MOST_STEPS = 12


def training_curves(curves: Mapping[str, Curve], missing: str) -> str:
    """`missing` says why there are none."""
    if not curves:
        return section("Training", note(missing))
    loss = {
        name: curves[f"loss/{name}"] for name in ("train", "validation") if f"loss/{name}" in curves
    }
    rates = {
        tag.removeprefix("firing_rate/"): curve
        for tag, curve in curves.items()
        if tag.startswith("firing_rate/")
    }
    shown = []
    if loss:
        shown.append(("Loss", charts.lines(loss, "epoch")))
    if "accuracy/validation" in curves:
        accuracy = {"validation": curves["accuracy/validation"]}
        shown.append(("Accuracy on validation", charts.lines(accuracy, "epoch", charts.percent)))
    if rates:
        some = dict(list(rates.items())[:: -(-len(rates) // _MOST_CURVES)])
        which = "" if len(some) == len(rates) else f", {len(some)} of {len(rates)} layers"
        chart = charts.lines(some, "epoch", from_zero=True)
        shown.append((f"Firing rate on validation{which}", chart))
    if "learning_rate" in curves:
        chart = charts.lines({"learning rate": curves["learning_rate"]}, "epoch", from_zero=True)
        shown.append(("Learning rate, at the end of each epoch", chart))
    return section("Training", figures(shown))


def accuracy_by_timestep(values: Sequence[float]) -> str:
    points = list(enumerate(values, 1))
    chart = charts.lines({"accuracy": points}, "timesteps", charts.percent)
    rows = [(str(t), f"{100 * value:.2f} %") for t, value in points[:_MOST_STEPS]]
    said = note("The answer after the first t timesteps, of the same run.")
    return section(
        "Accuracy by timestep",
        f'{said}<div class="row">{chart}{table(("timesteps", "accuracy"), rows)}</div>',
    )


def confusion(measured: Measured, classes: Sequence[str]) -> str:
    counts, size = measured.confusion, len(classes)
    of_label = counts.sum(1)
    shares = (counts.double() / of_label.clamp(min=1).unsqueeze(1)).tolist()
    many = size > _MANY_CLASSES
    side = max(3, 600 // size)
    chart = charts.heat(
        classes,
        [""] * size if many else classes,
        shares,
        lambda share: str(round(100 * share) or ""),
        lambda i, j: f"{classes[i]} as {classes[j]}: {int(counts[i, j])} of {int(of_label[i])}",
        (side, side) if many else (56, 24),
        widest=120,
        axes=("label", "answer"),
        top=1.0,
    )
    wrong = counts.clone().fill_diagonal_(0).flatten()
    worst = [k for k in wrong.argsort(descending=True, stable=True)[:8].tolist() if wrong[k]]
    rows = [
        (classes[k // size], classes[k % size], f"{int(wrong[k])} of {int(of_label[k // size])}")
        for k in worst
    ]
    mistakes = table(("label", "answer", "samples"), rows)
    said = note("In % of each label's samples; beside it the most frequent mistakes.")
    return section("Confusion", f'{said}<div class="row">{chart}{mistakes}</div>')


def firing_rates(measured: Measured) -> str:
    names = list(measured.rates)
    steps = len(measured.accuracy_by_timestep)
    values = [measured.rates[name].tolist() for name in names]
    chart = charts.heat(
        names,
        [str(t + 1) for t in range(steps)],
        values,
        lambda rate: f"{rate:.3f}",
        lambda i, t: f"{names[i]}, timestep {t + 1}: {values[i][t]:.4f}",
        (50 if steps <= _MOST_STEPS else max(6, 600 // steps), 22),
        axes=("layer", "timestep"),
    )
    rows = [
        (
            name,
            f"{measured.neurons[name]:,}",
            f"{measured.rates[name].mean().item():.4f}",
            f"{100 * measured.silent[name]:.1f} %",
        )
        for name in names
    ]
    about = table(("layer", "neurons", "mean rate", "never fired"), rows)
    said = note("Spikes per neuron and timestep, mean of all samples.")
    return section("Firing rates", f'{said}<div class="row">{chart}{about}</div>')
