"""Benchmarks against peers from the package index: ``python -m benchmarks`` lists them."""
