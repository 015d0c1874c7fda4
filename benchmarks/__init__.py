"""Times beside those of every peer that a user could pick instead, and beside the machine's measured peaks.

``python -m benchmarks.X --json FILE`` measures and writes ``{"machine": {...}, "rows": [{...}, ...]}``. X is one of

- ops: the fused operators; kernels: the GPU kernels one by one; trunk: the residual blocks on a GPU
- model: the detector; train: a training step, and training from files; precision: what bfloat16 and int8 cost
- screening: files to rows; cascade: a cascade and its parts; scaling: a model of the time of screening; memory: the
  most memory; cluster: Ray
- report: no measurement; it writes the tables of README and docs/performance.md from benchmarks/results

``pytest benchmarks --benchmark-only`` tracks the operator cases from commit to commit.
"""
