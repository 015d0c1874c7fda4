"""Scoring image collections: sources yield items, the runner (or Ray) yields rows, sinks write them.
Also here: the summary of a run, its HTML page, and the web page for one image.
"""
