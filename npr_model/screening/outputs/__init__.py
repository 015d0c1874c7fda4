"""The outputs of a run: CSV, JSON Lines and Parquet files, and folders of parts that a later run can continue.
A journal beside the parts tells which input a killed run died of.
"""
