"""Training: the config, the crops and their order, the optimizer steps, and the folder of a run.
``loop.train`` ties them together, in one process or in several that torchrun starts.
"""
