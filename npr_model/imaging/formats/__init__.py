"""One file per image format: is the data of every pixel in the file?

Decoders fill in what a file lacks, with black, grey or the rows above, and few of them say so. Each module checks its
format's structure before anything is decoded, and reduces the file to what decides the first image's pixels.
"""
