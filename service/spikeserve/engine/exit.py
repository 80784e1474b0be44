"""When a picture is sure enough of its answer to leave before its last timestep.

After timestep t the score is the top probability of the running mean of the logits, at that timestep's temperature
(`spiketrain.exit`); a picture leaves when it reaches the timestep's threshold.
"""

from __future__ import annotations

from dataclasses import dataclass

from spiketrain.exit import NEVER, ExitTable


@dataclass(frozen=True)
class ExitPolicy:
    """What one request is willing to accept: one threshold and one temperature for each timestep but the last.

    `risk` is the bound on disagreement with all timesteps that the thresholds were verified for.
    """

    risk: float
    thresholds: tuple[float, ...]
    temperatures: tuple[float, ...]


def exit_policy(table: ExitTable, risk: float) -> ExitPolicy | None:
    """The policy of the largest level that is not above `risk`; None where all timesteps have to be run."""
    level = table.level(risk)
    if level is None or all(threshold is None for threshold in level.thresholds):
        return None
    thresholds = tuple(NEVER if each is None else each for each in level.thresholds)
    return ExitPolicy(level.risk, thresholds, table.temperatures)
