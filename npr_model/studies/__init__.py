"""Many evaluations or trainings under one question: ablation, robustness, comparison of detectors.
The audit asks whether a data set can be told apart without its pixels.
"""
