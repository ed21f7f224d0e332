"""Clipmill beside other ways to do the same work: see `python -m benchmarks.peers --help`."""
