"""How well a detector tells the classes apart: metrics with intervals, benchmark sets, published numbers, reports.
Calibration, which turns logits into thresholds, lives here, too.
"""
