"""Probes: now and then a sample of the traffic is run once more, in plain torch, and every neuron is looked at.

The engine answers with sums over layers only, so that it stays fast. Probes run one after the other in a thread of
their own and rest in between, so that they take a small share of one processor's time, whatever the network costs.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from spikeserve.drift import Array, DriftMonitor
from spikeserve.engine import RunResult
from spikeserve.engine.threads import compute_alone
from spiketrain.health import look
from spiketrain.manifest import Manifest
from spiketrain.networks import Network

logger = logging.getLogger(__name__)


class Watch:
    """What one model's answers are told to: the monitor of their firing rates, and the probes."""

    def __init__(
        self,
        manifest: Manifest,
        network: Network,
        layers: tuple[str, ...],
        neurons: dict[str, int],
        probe_share: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.monitor = DriftMonitor(manifest.health, layers)
        self.timesteps = manifest.timesteps
        self._manifest = manifest
        self._network = network
        self._neurons = np.array([neurons[each] for each in layers], dtype=np.float64)
        self._share = probe_share if self.monitor.watches else 0.0
        self._clock = clock
        self._lock = threading.Lock()
        self._worker: ThreadPoolExecutor | None = None
        self._busy = False
        self._not_before = -np.inf

    def picture(self, picture: Tensor, result: RunResult, may_leave: bool) -> None:
        """One picture [C, H, W] was answered; `may_leave` where it could do so before its last timestep."""
        if not self.monitor.watches:
            return
        if may_leave or len(result.logits) != self.timesteps:
            # Those that leave early are the easy ones; all of them run the first timestep.
            self.monitor.sample(result.first_spikes / self._neurons, first=True)
        else:
            self.spikes(result.spikes)
        if self.takes():
            self.probe(picture.unsqueeze(0))

    def spikes(self, spikes: Array) -> None:
        """Spikes [layers] of one sample, over as many timesteps as the model was trained with."""
        self.monitor.sample(spikes / (self._neurons * self.timesteps))

    def takes(self) -> bool:
        """Whether a probe would be taken now."""
        return self._share > 0 and not self._busy and self._clock() >= self._not_before

    def probe(self, x: Tensor) -> Future[None] | None:
        """Look at one sample, [1, C, H, W] or [T, 1, C, H, W], in the background; None where another one is under way."""
        with self._lock:
            if not self.takes():
                return None
            self._busy = True
            if self._worker is None:
                self._worker = ThreadPoolExecutor(1, "probe", initializer=compute_alone)
        return self._worker.submit(self._look, x)

    def _look(self, x: Tensor) -> None:
        began = self._clock()
        try:
            self.monitor.look(look(self._network, x, self._manifest.input))
        except Exception:
            logger.exception("a probe of %s failed; there will be no more", self._manifest.name)
            self._share = 0.0
        took = self._clock() - began
        if self._share > 0:
            self._not_before = began + took / self._share
        self._busy = False


class StreamWatch:
    """Of one stream: so many windows as the model was trained with are one sample."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._windows = 0
        self._spikes: Array = np.zeros(1)
        self._frames: list[Array] | None = None

    def window(self, frame: Array, result: RunResult) -> None:
        """The next window was answered."""
        watch = self._watch
        if not watch.monitor.watches:
            return
        if self._windows == 0:
            self._spikes = np.zeros(1)
            self._frames = [] if watch.takes() else None
        self._windows += 1
        self._spikes = self._spikes + result.spikes
        if self._frames is not None:
            self._frames.append(frame)
        if self._windows == watch.timesteps:
            self._windows = 0
            watch.spikes(self._spikes)
            if self._frames is not None:
                watch.probe(torch.from_numpy(np.stack(self._frames)).unsqueeze(1))
                self._frames = None
