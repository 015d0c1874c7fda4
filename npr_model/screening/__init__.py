"""Scoring image collections: sources give items, the runner gives rows, sinks keep them."""
