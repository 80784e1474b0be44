"""What load balancers and orchestrators are told about this process."""

from __future__ import annotations

import asyncio

from spikeserve.repository import Repository


class Health:
    """Ready once the models are warm, until the server is told to stop or its engine no longer moves."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._draining = asyncio.Event()

    def drain(self) -> None:
        """Not ready from now on."""
        self._draining.set()

    @property
    def draining(self) -> bool:
        return self._draining.is_set()

    @property
    def ready(self) -> bool:
        return not self.draining and self._repository.ready

    @property
    def state(self) -> str:
        if self.draining:
            return "draining"
        return "ready" if self._repository.ready else "not ready"

    @property
    def progress(self) -> str | None:
        """How far the first loading of all models is, while it is under way."""
        done, found = self._repository.progress
        return f"{done} of {found} models" if done < found else None

    async def wait_for_draining(self) -> None:
        await self._draining.wait()

    async def draining_within(self, seconds: float) -> bool:
        """Waits for so long at most, less when draining begins."""
        try:
            async with asyncio.timeout(seconds):
                await self._draining.wait()
        except TimeoutError:
            pass
        return self.draining
