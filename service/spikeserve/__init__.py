"""Serve spiking neural networks: images over REST, event streams over gRPC, firing rates in Prometheus."""

from spiketrain import __version__

__all__ = ["__version__"]
