"""Studies over many evaluations or trainings: ablation, robustness, comparison of detectors.
The audit asks whether a data set can be told apart by its file headers.
"""
