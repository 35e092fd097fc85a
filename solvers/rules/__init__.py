"""What proposes the next iterate: a file a solver."""
