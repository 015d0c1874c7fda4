"""Parts that several detectors are built of: residual networks, transforms, and ways to change images.
The files beside this folder are the detectors.
"""
