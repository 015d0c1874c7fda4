"""Where a screening runs: on this machine (local.py) or on a cluster with Ray (ray.py).
An engine takes sources and yields the rows of those that have none yet.
"""
