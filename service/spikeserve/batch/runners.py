"""Who does the pieces: processes of this machine, or a Ray cluster. Both yield what was done, in any order."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from spikeserve.batch.pieces import BatchError, Piece
from spikeserve.batch.worker import Done, Job, Worker

Outcome = tuple[Piece, Done | str]
"""What became of a piece; the reason where it could not be done."""

_TRIES = 3


def on_processes(job: Job, pieces: Sequence[Piece], workers: int) -> Iterator[Outcome]:
    """A process that dies takes the pieces under way with it; they are done again, three times at most."""
    left = {piece.number: piece for piece in pieces}
    for again in range(_TRIES):
        pool = ProcessPoolExecutor(
            min(workers, len(left)), multiprocessing.get_context("spawn"), _prepare, (job,)
        )
        try:
            under_way = {pool.submit(_do, piece): piece for piece in left.values()}
            for future in as_completed(under_way):
                piece = under_way[future]
                outcome = _outcome(future)
                del left[piece.number]
                yield piece, outcome
            return
        except BrokenProcessPool:
            if again == _TRIES - 1:
                raise BatchError(
                    f"the processes that work have died {_TRIES} times (out of memory?): use fewer workers or slots; "
                    "the same command goes on with what is left"
                ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _outcome(future: Future[Done]) -> Done | str:
    try:
        return future.result()
    except BrokenProcessPool:
        raise
    except (BatchError, OSError) as error:
        return str(error)


_job: Job
_worker: Worker | None = None


def _prepare(job: Job) -> None:
    global _job
    _job = job


def _do(piece: Piece) -> Done:
    global _worker
    if _worker is None:
        _worker = Worker(_job)
    return _worker.do(piece)


def on_ray(
    job: Job, pieces: Sequence[Piece], workers: int, address: str | None
) -> Iterator[Outcome]:
    """By Ray Data, on the cluster at `address`, or on one of this machine. All nodes need the same paths.

    What a node had under way when it was lost is done by another one. Raises BatchError where Ray is missing.
    """
    try:
        import ray
    except ImportError:
        raise BatchError("Ray is not installed: pip install 'spikeserve[ray]'") from None
    if not ray.is_initialized():
        try:
            ray.init(address, log_to_driver=False, configure_logging=False)
        except ConnectionError as error:
            raise BatchError(f"no Ray cluster answers at {address}: {error}") from error
    by_number = {piece.number: piece for piece in pieces}
    rows = [{"piece": pickle.dumps(piece)} for piece in pieces]
    most = min(workers, len(pieces))
    # A block for each piece, so that one that is lost is all that has to be done again. All workers are started at once, and the
    # work goes on with those that there are, be it one.
    data: Any = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _RayWorker,
        fn_constructor_args=(job,),
        batch_size=1,
        concurrency=(1, most, most),
        num_cpus=1,
    )
    for row in data.iter_rows():
        piece = by_number[int(row["number"])]
        reason = row["reason"]
        done = Done(piece.number, int(row["items"]), int(row["failed"]), float(row["seconds"]))
        yield piece, reason or done


class _RayWorker:
    """What Ray Data keeps one of in each of its processes."""

    def __init__(self, job: Job) -> None:
        # Ray gives each process one processor.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        self._worker = Worker(job)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        answers: list[tuple[Done, str]] = []
        for each in batch["piece"]:
            piece = pickle.loads(each)
            try:
                answers.append((self._worker.do(piece), ""))
            except (BatchError, OSError) as error:
                answers.append((Done(piece.number, 0, 0, 0.0), str(error)))
        return {
            "number": [done.number for done, _ in answers],
            "items": [done.items for done, _ in answers],
            "failed": [done.failed for done, _ in answers],
            "seconds": [done.seconds for done, _ in answers],
            "reason": [reason for _, reason in answers],
        }
