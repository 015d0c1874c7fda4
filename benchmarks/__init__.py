"""Times against every peer a user could pick instead, after parity, with the machine's measured peaks beside them.

``python -m benchmarks.ops`` and ``python -m benchmarks.model`` compare in interleaved rounds;
``python -m benchmarks.kernels`` times the kernels of a GPU one by one; ``benchmarks.device`` does all that needs a GPU;
``pytest benchmarks --benchmark-only`` tracks the same operator cases from commit to commit.
"""
