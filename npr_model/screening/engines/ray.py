"""Screening on a cluster with Ray Data: the same sources, decoding, network and rows as on one machine.

One task on the machine of the command lists the inputs. Tasks on all nodes read and decode, one archive or some files
each. Workers that hold the network (one per GPU, or one per node without GPUs) score the pixels. The command receives
and writes the rows. If a worker or node fails, Ray repeats its work elsewhere.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import numpy as np
import pyarrow as pa
import torch

from npr_kernels import BackendError
from npr_model.devices import check_device_name
from npr_model.errors import InputError, reason
from npr_model.scoring.decoding import Decoded, Decoder, decode_ahead
from npr_model.scoring.items import Item
from npr_model.scoring.known import Known
from npr_model.scoring.rows import SCHEMA, Row, Totals
from npr_model.scoring.scorer import Scorer
from npr_model.screening.inputs.archives import Archive
from npr_model.screening.inputs.sources import STANDARD_INPUT, Sources
from npr_model.screening.outputs.finished import Finished

try:
    import ray
    from ray.data import ActorPoolStrategy, DataContext, Datasource
    from ray.data.block import BlockMetadata
    from ray.data.datasource import ReadTask
except ImportError as error:
    raise InputError("the engine ray needs Ray: pip install 'npr-kernels[ray]'") from error

FILES_A_UNIT = 128
IMAGES_A_GROUP = 64  # several batches, so that a GPU never waits for rows to be built
BLOCK_BYTES = 2**25  # of decoded pixels, or names, that travel together
DECODING_THREADS = 4  # per task, so that slow file access overlaps
# Rows in transit. A row without source holds a task's counts (a pickled Totals) or reports a failure.
_RESULTS = pa.schema([*SCHEMA, ("counts", pa.binary()), ("failure", pa.string())])
PIXEL_COLUMNS = {"": pa.large_binary(), "_height": pa.int32(), "_width": pa.int32()}
_DECODED = pa.schema(
    [
        *SCHEMA,
        ("counts", pa.binary()),
        *((f"{name}{what}", kind) for name in ("parts", "views") for what, kind in PIXEL_COLUMNS.items()),
    ]
)

MakeScorer = Callable[..., Scorer]  # called with device=


@dataclass(frozen=True)
class _Unit:
    """What one task decodes: some files, or an archive.

    Attributes:
        entries: The files or the archive.
        earlier: How often this archive came before in the same run.
        counts: What the listing counted since the last unit.
    """

    entries: list[Item] | Archive
    earlier: int = 0
    counts: Totals = field(default_factory=Totals)

    def items(self, finished: Finished, counts: Totals) -> Iterator[Item]:
        """Yield the items that have no row yet. The others, and what is skipped, are counted."""
        if isinstance(self.entries, list):
            yield from self.entries
            return
        earlier: Counter[str] = Counter()
        if self.earlier:  # an archive may hold a name more than once
            for item in self.entries.items(lambda name, reason: None):
                earlier[item.source] += self.earlier
        has_row = finished.matcher(earlier)
        for item in self.entries.items(lambda name, reason: counts.skipped.update([reason])):
            if not has_row(item.source):
                yield item
        counts.kept += has_row.kept
        counts.kept_failed += has_row.kept_failed


class RayEngine:
    """Scores on the Ray cluster that this process belongs to, that RAY_ADDRESS names, or that it starts here.

    Args:
        make_scorer: make_scorer(device=...) creates a worker's scorer; it must be picklable.
        device: "auto", "cpu" or "cuda", for the workers.
        actors: Number of workers; 0 for one per GPU, or one per node without GPUs.

    Raises:
        InputError: The cluster cannot be used.
    """

    def __init__(self, make_scorer: MakeScorer, *, device: str = "auto", actors: int = 0) -> None:
        check_device_name(device)
        if ":" in device:
            raise InputError(f"device {device} names one GPU; Ray gives each worker its own: use cuda")
        self._started = not ray.is_initialized()
        if self._started:
            logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # it logs plans, and errors that are raised anyway
            try:
                ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
            except Exception as error:  # connecting can raise anything
                raise InputError(f"Ray cannot be reached or started: {reason(error)}") from error
        gpus = int(ray.cluster_resources().get("GPU", 0))
        if device == "cuda" and not (gpus or actors):
            raise InputError(
                "device cuda was asked for, but the Ray cluster has no GPU; with --actors N the run waits for GPUs"
            )
        self._on_gpu = device == "cuda" or (device == "auto" and gpus > 0)
        self.nodes = [node for node in ray.nodes() if node["Alive"]]
        with_cores = [node for node in self.nodes if node["Resources"].get("CPU")]
        self.actors = actors or (gpus if self._on_gpu else len(with_cores)) or 1
        self._make_scorer = ray.put(make_scorer)

    def score(
        self, sources: Sources, decoder: Decoder, finished: Finished, totals: Totals | None = None
    ) -> Generator[Row, None, None]:
        """Yield a row for each input that has none yet; what is skipped or has a row is counted in ``totals``."""
        totals = Totals() if totals is None else totals
        context = DataContext.get_current()
        before = context.target_max_block_size, context.enable_progress_bars, context.print_on_execution_start
        context.target_max_block_size = BLOCK_BYTES
        context.enable_progress_bars = context.print_on_execution_start = False
        with _list_as_file(sources) as listed:
            try:
                rows = self._rows(listed, decoder, finished)
                for batch in rows.iter_batches(batch_size=None, batch_format="pyarrow"):
                    for values in cast(pa.Table, batch).to_pylist():
                        counts, failure = values.pop("counts"), values.pop("failure")
                        if failure is not None:
                            raise InputError(failure)
                        if counts is None:
                            yield Row(**values)
                        else:
                            totals.include(pickle.loads(counts))
            except ray.exceptions.RayError as error:
                raise _cause(error) from error
            finally:
                context.target_max_block_size, context.enable_progress_bars, context.print_on_execution_start = before

    def close(self) -> None:
        """Leave the cluster, if this object joined it."""
        if self._started:
            ray.shutdown()

    def _rows(self, sources: Sources, decoder: Decoder, finished: Finished) -> ray.data.Dataset:
        rows_there = [ray.put(finished)]  # in a list, or Ray would copy it for every task
        here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
        listing = ray.data.read_datasource(
            _Listing(sources, rows_there), override_num_blocks=1, num_cpus=0, label_selector=here
        )
        # Half a core per task, and none for workers on a CPU, which share the cores with the tasks. So nodes with one
        # core work, too, and tasks that wait for files leave no core idle.
        decoded = listing.repartition(target_num_rows_per_block=1).map_batches(
            _decode,
            batch_size=None,
            batch_format="pyarrow",
            fn_kwargs={"decoder": decoder, "rows_there": rows_there},
            num_cpus=0.5,
        )
        return decoded.map_batches(
            _Actor,
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=ActorPoolStrategy(size=self.actors),
            fn_constructor_args=([self._make_scorer], -(-self.actors // max(1, len(self.nodes)))),
            num_cpus=0,
            num_gpus=1 if self._on_gpu else 0,
        )


class _Listing(Datasource):
    """Yields pickled units, one per row. It lists in the working folder of the process that created it."""

    def __init__(self, sources: Sources, rows_there: list[ray.ObjectRef]) -> None:
        self._read = partial(_list, sources, rows_there, os.getcwd())

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, parallelism: int, *_: object, **__: object) -> list[ReadTask]:
        return [ReadTask(self._read, BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None))]


def _list(sources: Sources, rows_there: list[ray.ObjectRef], folder: str) -> Iterator[pa.Table]:
    os.chdir(folder)
    with _expected_errors():
        for unit in _units(sources, ray.get(rows_there[0])):
            yield pa.table({"unit": pa.array([pickle.dumps(unit)], pa.large_binary())})


def _units(sources: Sources, finished: Finished) -> Iterator[_Unit]:
    has_row, files = finished.matcher(), []
    archives: Counter[str] = Counter()
    reported = Totals()

    def unit(entries: list[Item] | Archive, earlier: int = 0) -> _Unit:
        counts = Totals(
            skipped=sources.skipped - reported.skipped,
            kept=has_row.kept - reported.kept,
            kept_failed=has_row.kept_failed - reported.kept_failed,
        )
        reported.include(counts)
        return _Unit(entries, earlier, counts)

    for entry in sources.entries():
        if isinstance(entry, Archive):
            yield unit(entry, archives[entry.name])
            if finished.count:
                archives[entry.name] += 1
        elif not has_row(entry.source):
            files.append(entry)
            if len(files) == FILES_A_UNIT:
                yield unit(files)
                files = []
    yield unit(files)


def _decode(table: pa.Table, *, decoder: Decoder, rows_there: list[ray.ObjectRef]) -> Iterator[pa.Table]:
    """Yield the rows and pixels of the images, then the counts."""
    finished = ray.get(rows_there[0])
    for pickled in table.column("unit"):
        unit: _Unit = pickle.loads(pickled.as_py())
        counts = unit.counts
        with _expected_errors():
            items = unit.items(finished, counts)
            decoded = decode_ahead(decoder.decode, items, DECODING_THREADS, 2 * DECODING_THREADS)
            for group in _groups(decoded):
                yield _packed(group)
        yield pa.Table.from_pylist([{"counts": pickle.dumps(counts)}], _DECODED)


def _groups(decoded: Iterator[Decoded]) -> Iterator[list[Decoded]]:
    """Group decoded images that travel together: up to BLOCK_BYTES, plus the last image."""
    group, size = [], 0
    for one in decoded:
        group.append(one)
        size += 3 * one.held_pixels
        if len(group) == IMAGES_A_GROUP or size >= BLOCK_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _packed(decoded: list[Decoded]) -> pa.Table:
    rows = pa.Table.from_pylist([one.row.as_dict() for one in decoded], SCHEMA)
    counts = pa.nulls(len(decoded), pa.binary())
    pixels = [*_pixel_columns([one.parts for one in decoded]), *_pixel_columns([one.views for one in decoded])]
    return pa.table([*rows.columns, counts, *pixels], _DECODED)


def _pixel_columns(arrays: Sequence[np.ndarray | None]) -> list[pa.Array]:
    """The columns of (N, H, W, 3) arrays. Copies the pixels once; arrow's own builder would copy them three times."""
    filled = [np.empty(0, np.uint8) if array is None else array for array in arrays]
    ends = np.cumsum([0, *(array.size for array in filled)], dtype=np.int64)
    together = np.concatenate([array.reshape(-1) for array in filled])
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(together)]
    sizes = [(None, None) if array is None else array.shape[1:3] for array in arrays]
    columns = [pa.array(side, pa.int32()) for side in zip(*sizes, strict=True)]
    return [pa.Array.from_buffers(pa.large_binary(), len(filled), buffers), *columns]


def _unpacked(table: pa.Table) -> Iterator[Decoded]:
    rows, counts = table.select(SCHEMA.names).to_pylist(), table.column("counts").to_pylist()
    for values, count, parts, views in zip(rows, counts, _pixels(table, "parts"), _pixels(table, "views"), strict=True):
        if count is None:
            yield Decoded(Row(**values), parts, views)


def _pixels(table: pa.Table, name: str) -> Iterator[np.ndarray | None]:
    """Read the arrays of :func:`_pixel_columns`, without copying them."""
    sides = (table.column(f"{name}_{side}").to_pylist() for side in ("height", "width"))
    for pixels, height, width in zip(table.column(name), *sides, strict=True):
        if height is None:
            yield None
        else:
            yield np.frombuffer(pixels.as_buffer(), np.uint8).reshape(-1, height, width, 3)


class _Actor:
    """A worker: holds the network."""

    def __init__(self, make_scorer: list[ray.ObjectRef], actors_a_node: int) -> None:
        on_gpu = bool(ray.get_gpu_ids())
        if not on_gpu:  # Ray would leave only one thread
            torch.set_num_threads(max(1, _cores_of_node() // actors_a_node))
        self._failure: str | None = None  # kept as a value, as Ray drops the cause of an actor's exception
        self._known = Known()
        try:
            self._scorer: Scorer = ray.get(make_scorer[0])(device="cuda" if on_gpu else "cpu")
        except (InputError, BackendError) as error:
            self._failure = str(error)

    def __call__(self, table: pa.Table) -> pa.Table:
        rows: list[Row] = []
        if self._failure is None:
            try:
                rows.extend(self._scorer.score_decoded(_unpacked(table), self._known))
            except (InputError, BackendError) as error:
                self._failure = str(error)
        counts = [{"counts": counts} for counts in table.column("counts").to_pylist() if counts is not None]
        failure = [] if self._failure is None else [{"failure": self._failure}]
        return pa.Table.from_pylist([*(row.as_dict() for row in rows), *counts, *failure], _RESULTS)


def _cores_of_node() -> int:
    """Number of cores that Ray may use and that exist."""
    here = ray.get_runtime_context().get_node_id()
    promised = next(node["Resources"].get("CPU", 1) for node in ray.nodes() if node["NodeID"] == here)
    return int(min(promised, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1))


@contextlib.contextmanager
def _list_as_file(sources: Sources) -> Iterator[Sources]:
    """Yield ``sources`` with a list that other processes cannot read, such as standard input, copied to a file."""
    name = sources.files_from
    if name is None or os.path.isfile(name):
        yield sources
        return
    is_input = name == STANDARD_INPUT
    with (
        tempfile.NamedTemporaryFile(prefix="npr-files-") as copied,
        contextlib.nullcontext(sys.stdin.buffer) if is_input else open(name, "rb") as listed,
    ):
        shutil.copyfileobj(listed, copied)
        copied.flush()
        yield sources.listed_in(copied.name)


class _Expected(Exception):
    """Carries a user error in a tuple; Ray adds its own advice to plain text."""


@contextlib.contextmanager
def _expected_errors() -> Iterator[None]:
    try:
        yield
    except (InputError, BackendError) as error:
        raise _Expected((str(error),)) from None


def _cause(error: BaseException) -> InputError:
    """Return the user error, without Ray's account of where it happened."""
    while type(error) is not _Expected:  # Ray derives subclasses from it on the way
        inner = getattr(error, "cause", None) or error.__cause__
        if inner is None:
            return InputError(f"the Ray cluster failed: {reason(error)}")
        error = inner
    return InputError(error.args[0][0])
