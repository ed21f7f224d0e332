"""How much of a GPU's speed the model stages keep: see `python -m benchmarks.gpu --help`."""
