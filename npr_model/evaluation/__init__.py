"""Measuring detectors: metrics with intervals, benchmark sets, published numbers, reports.
Also here: calibration, which turns logits into thresholds.
"""
