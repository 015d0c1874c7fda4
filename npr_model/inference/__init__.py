"""The frozen detector: folded, fused, quantised or replayed as CUDA graphs, and exported to one file.
Training never imports this room.
"""
