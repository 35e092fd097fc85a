"""Training of one network, by one process or several."""
