"""Adapters to transformers: load, preprocess, forward; one file per kind of model, one catalogue."""
