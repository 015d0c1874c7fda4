"""Limits on the size of images. Loads nothing, so that option defaults can name them."""

MAX_PIXELS = 178_956_970  # where Pillow also refuses an image as a decompression bomb
MAX_SIDE = 13_377  # side of a view; its square is at most MAX_PIXELS
