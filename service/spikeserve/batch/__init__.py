"""Bulk work: a folder, Parquet files or tar shards of pictures or recordings, classified into Parquet files."""

from spikeserve.batch.pieces import BatchError, Piece, find_pieces
from spikeserve.batch.run import Batch, Summary, run_batch

__all__ = ["Batch", "BatchError", "Piece", "Summary", "find_pieces", "run_batch"]
