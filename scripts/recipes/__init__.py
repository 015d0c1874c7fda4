"""Recipes to screen with Slurm and with Spark."""
