from spikeserve.cli import main

main()
