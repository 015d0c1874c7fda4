"""From encoded bytes to pixels and back: decoding, headers, encoding, and the views that the network sees.
Also here: what a JPEG tells about its past (quality, earlier compression), and perturbations. ``formats`` checks that a
file is complete.
"""
