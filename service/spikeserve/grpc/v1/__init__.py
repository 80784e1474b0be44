"""Generated from proto/spikeserve/v1."""
