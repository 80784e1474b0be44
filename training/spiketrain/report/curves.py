"""The curves of a run, from the TensorBoard logs in its folder."""

from __future__ import annotations

from pathlib import Path

Curve = list[tuple[int, float]]


def read_curves(folder: Path) -> dict[str, Curve]:
    """Values by epoch of each tag. Empty where the folder has no logs.

    A run that was stopped and went on wrote several files; of an epoch that is in two of them the later one counts.
    Raises ModuleNotFoundError where TensorBoard is not installed.
    """
    logs = folder / "tensorboard"
    if not any(logs.glob("events.out.tfevents.*")):
        return {}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(logs), size_guidance={"scalars": 0})
    events.Reload()
    curves = {}
    for tag in events.Tags()["scalars"]:
        by_epoch = {}
        for event in sorted(events.Scalars(tag), key=lambda event: event.wall_time):
            by_epoch[event.step] = float(event.value)
        curves[tag] = sorted(by_epoch.items())
    return curves
