"""Encoded bytes to pixels and back: decoding, headers, encoding, and the views that a network is given.
What a JPEG tells of its past (quality, earlier compression), and changes to images for tests, live here, too.
"""
