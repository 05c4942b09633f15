"""Timings side by side with peers; README.md says how to run and read them."""
