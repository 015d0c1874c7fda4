"""What an image file says about its own origin: the traces of generators, editors and cameras in its metadata.
Everything here is read from headers, never from pixels, and a file can claim anything.
"""
