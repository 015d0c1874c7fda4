"""Scoring of images, wherever they come from: items of encoded bytes go in, rows with logits and verdicts come out.
Decoding threads, batches of equal size, duplicates and the cache are here.
"""
