"""Screens the images below PHOTOS, any URL that Spark reads, as a Spark job; writes the rows of `npr screen`.

    spark-submit scripts/recipes/screen_spark.py PHOTOS SCORES

npr-kernels must be installed on the workers. Spark reads the images and repeats failed tasks. The tasks of one machine
share its cores, so set `--conf spark.task.cpus` to the number of cores that a network should use.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pyarrow as pa

CHECKPOINT = "wild-2"


def score(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Score batches with the columns "path" and "content"; yields batches with the columns of rows.SCHEMA."""
    from npr_model import checkpoints
    from npr_model.scoring.items import in_memory
    from npr_model.scoring.rows import as_table
    from npr_model.scoring.scorer import Scorer

    scorer = Scorer(checkpoints.load(CHECKPOINT))  # once per task
    for batch in batches:
        items = map(in_memory, batch.column("path").to_pylist(), batch.column("content").to_pylist())
        yield from as_table(scorer.score(items)).to_batches()


def main(photographs: str, scores: str) -> None:
    from pyspark.sql import SparkSession
    from pyspark.sql.pandas.types import from_arrow_schema

    from npr_model.scoring.rows import SCHEMA

    spark = SparkSession.builder.appName("npr screen").getOrCreate()
    files = spark.read.format("binaryFile").option("recursiveFileLookup", True).load(photographs)
    files.select("path", "content").mapInArrow(score, from_arrow_schema(SCHEMA)).write.parquet(scores)


if __name__ == "__main__":
    main(*sys.argv[1:])
