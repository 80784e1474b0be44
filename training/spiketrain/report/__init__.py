"""`spiketrain report`: what one trained network does, measured anew on held-out samples, as one HTML page."""
