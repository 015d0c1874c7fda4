"""Scoring image collections: sources give items, the runner (or Ray) gives rows, sinks keep them.
The summary of a run, its HTML page, and the page for one image live here, too.
"""
