"""Benchmarks: a checkpoint or a filtered corpus in, numbers with their intervals out."""
