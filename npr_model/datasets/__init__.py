"""Labelled images. folders.py finds them in folders named 0_real and 1_fake.
checks.py finds faults of a set: files in both classes, classes of different formats, files that do not decode.
"""
