"""REST over HTTP: a thin converter between requests and what the server does."""

from spikeserve.rest.app import create_app

__all__ = ["create_app"]
