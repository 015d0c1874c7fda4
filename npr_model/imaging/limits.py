"""Limits on the size of images. Loads nothing, so that option defaults can name them."""

MAX_PIXELS = 178_956_970  # where Pillow, too, refuses an image as a decompression bomb
MAX_SIDE = 13_377  # of a view: its square is not more than MAX_PIXELS
