"""python -m spiketrain, which is what torchrun starts."""

from spiketrain.cli import main

main()
