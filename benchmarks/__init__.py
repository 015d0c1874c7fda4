"""Times against every peer a user could pick instead, after parity, with the machine's measured peaks beside them.

``python -m benchmarks.ops`` and ``python -m benchmarks.model`` compare in interleaved rounds;
``pytest benchmarks --benchmark-only`` tracks the same operator cases from commit to commit.
"""
