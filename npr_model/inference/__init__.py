"""Detectors frozen for scoring: fused, quantised, replayed as CUDA graphs, or exported to one file.
Training never imports this room.
"""
