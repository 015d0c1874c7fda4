"""Jobs for a machine with a GPU, which scripts/gpu_*.sh start: jobs.py lists the steps of each, plan.py runs them."""
