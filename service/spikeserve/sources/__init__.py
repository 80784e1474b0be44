"""Models from elsewhere: object storage, the web, other folders, copied into a cache and verified before they are served."""

from spikeserve.sources.address import Address, SourceError, parse_address
from spikeserve.sources.sources import Sources, with_sources

__all__ = ["Address", "SourceError", "Sources", "parse_address", "with_sources"]
