"""The inputs of a run: folders, lists of names, patterns, archives, Parquet files and URLs, as a stream of items.
What is skipped on the way is counted with its reason.
"""
