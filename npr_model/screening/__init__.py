"""Screening of image collections: inputs yield items, the scorer (here or in Ray) yields rows, outputs write them.
Also here: the summary of a run and its HTML page.
"""
