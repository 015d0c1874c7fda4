"""Training: the config, the crops and their order, the optimizer steps, and the folder of a run.
``loop.train`` ties them together; one process or several, started by torchrun.
"""
