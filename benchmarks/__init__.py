"""Speed, work, honest failure and memory beside the peers; `python -m benchmarks` runs them."""
