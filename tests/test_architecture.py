"""The packages are built in layers: an import leads to a lower room, and no modules import each other in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGES = ("npr_kernels", "npr_model")
Layers = tuple[tuple[str, ...], ...]
SHARED_BY_COMMANDS = "npr_model.commands.shared"

# Rooms of npr_model from the top down. A module may import from its own room and from rooms on lower lines. A room is a
# folder of npr_model, or a file beside them. "npr_model" is the package itself, which offers the public names.
LAYERS = (
    ("cli",),
    ("commands",),
    ("npr_model",),
    ("api",),
    ("studies",),
    ("training",),
    ("evaluation",),
    ("simulation",),
    ("screening", "serving"),
    ("explanation",),
    ("scoring",),
    ("inference",),
    ("checkpoints", "datasets"),
    ("provenance",),
    ("imaging",),
    ("detectors",),
    ("verdicts", "reporting", "devices"),
    ("files",),
    ("errors", "weights"),
)

# The same for the parts of a room with folders of its own: what lies on one line must not import each other.
SUB_LAYERS = {
    "screening": (
        ("run",),
        ("engines", "page"),
        ("summary",),
        ("inputs", "outputs"),
        ("urls",),
    ),
}

# The same for npr_kernels.
KERNEL_LAYERS = (
    ("testing", "info"),
    ("npr_kernels",),
    ("modules",),
    ("functional",),
    ("autograd",),
    ("trunk",),
    ("backends",),
    ("arguments", "batch_norm"),
    ("reference", "tolerance", "cells", "jpeg", "capabilities"),
    ("distributed", "extension", "tracing", "triton_runtime"),
)

# What npr_model may import of npr_kernels: the public names, and these modules.
OPEN_TO_NPR_MODEL = {
    "npr_kernels",
    "npr_kernels.arguments",  # scale factors of raw pixels, for the frozen network
    "npr_kernels.backends.registry",  # to check `--backend`
    "npr_kernels.capabilities",
    "npr_kernels.cells",
    "npr_kernels.distributed",  # SyncBatchNorm, for training on CPUs
    "npr_kernels.info",  # for `npr info`
    "npr_kernels.jpeg",
    "npr_kernels.reference",  # NPR in plain PyTorch, for exported networks
    "npr_kernels.trunk.average_pool",
    "npr_kernels.trunk.cpu_bottleneck",
    "npr_kernels.trunk.gpu_bottleneck",
    "npr_kernels.trunk.blocks",
    "npr_kernels.trunk.selection",
}


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, name: str, modules: Mapping[str, Path]) -> Iterator[str]:
    """Modules of these packages that a file imports: at its top, inside functions, and for type checkers alone.

    The latter count: a name that a signature needs is knowledge of the module that has it.
    """
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = name if path.name == "__init__.py" else name.rpartition(".")[0]
                package = package.rsplit(".", node.level - 1)[0]
                base = f"{package}.{base}".rstrip(".")
            targets = [f"{base}.{alias.name}" if f"{base}.{alias.name}" in modules else base for alias in node.names]
        else:
            continue
        for target in targets:
            if target.partition(".")[0] in PACKAGES:
                yield target


def graph(root: Path) -> dict[str, set[str]]:
    """Each module of PACKAGES below ``root`` with the modules that it imports."""
    paths = [path for package in PACKAGES for path in sorted((root / package).rglob("*.py"))]
    modules = {module_name(path, root): path for path in paths}
    return {name: set(imports(path, name, modules)) - {name} for name, path in modules.items()}


def room(module: str) -> str:
    """The folder or file of a package that holds a module."""
    return module.split(".")[1] if "." in module else module


def part(module: str) -> str:
    """The folder or file of a room that holds a module; empty for the room itself."""
    return module.split(".")[2] if module.count(".") > 1 else ""


def is_downwards(here: str, there: str, layers: Layers) -> bool:
    """Whether an import stays in one room, or leads to a room on a lower line."""
    level = {name: number for number, names in enumerate(layers) for name in names}
    return here == there or level[here] < level[there]


def is_allowed(importer: str, target: str) -> bool:
    """Whether an import leads to a lower room or a lower part of its room, or from npr_model to what is open to it."""
    package, here, there = importer.partition(".")[0], room(importer), room(target)
    if target.partition(".")[0] != package:
        return package == "npr_model" and target in OPEN_TO_NPR_MODEL
    if here == there and package == "npr_model" and here in SUB_LAYERS and part(importer) and part(target):
        return is_downwards(part(importer), part(target), SUB_LAYERS[here])
    return is_downwards(here, there, LAYERS if package == "npr_model" else KERNEL_LAYERS)


def wrong_arrows(edges: Mapping[str, set[str]]) -> list[str]:
    """Imports that are not allowed."""
    return [
        f"{importer} imports {target}"
        for importer, targets in edges.items()
        for target in targets
        if not is_allowed(importer, target)
    ]


def circle(edges: Mapping[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle; empty where there is none."""
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        return error.args[1]
    return []


@pytest.fixture(scope="module")
def edges() -> dict[str, set[str]]:
    return graph(ROOT)


@pytest.mark.parametrize(("package", "layers"), [("npr_kernels", KERNEL_LAYERS), ("npr_model", LAYERS)])
def test_every_room_has_a_place(edges, package, layers):
    rooms = {room(name) for name in edges if name.partition(".")[0] == package}
    assert rooms == {name for names in layers for name in names}


@pytest.mark.parametrize(("name", "layers"), SUB_LAYERS.items())
def test_every_part_of_a_room_has_a_place(edges, name, layers):
    parts = {part(module) for module in edges if module.startswith(f"npr_model.{name}.")}
    assert parts == {name for names in layers for name in names}


def test_imports_lead_downwards(edges):
    assert wrong_arrows(edges) == []


def test_no_command_imports_a_command(edges):
    assert SHARED_BY_COMMANDS in edges
    wrong = [
        f"{importer} imports {target}"
        for importer, targets in edges.items()
        for target in targets
        if importer.startswith("npr_model.commands.") and target.startswith("npr_model.commands.")
        if not target.startswith(SHARED_BY_COMMANDS)
    ]
    assert wrong == []


def test_npr_model_uses_what_is_open_to_it(edges):
    targets = set().union(*(targets for name, targets in edges.items() if name.startswith("npr_model")))
    assert {target for target in targets if target.startswith("npr_kernels")} == OPEN_TO_NPR_MODEL


def test_nothing_imports_what_is_for_tests(edges):
    """The table of cases takes time to build."""
    assert not [name for name, targets in edges.items() if "npr_kernels.testing" in targets]


def test_no_circle(edges):
    assert circle(edges) == []


def test_every_room_says_what_it_holds():
    for path in sorted((ROOT / "npr_model").rglob("__init__.py")):
        if path.parent == ROOT / "npr_model" or path.parent.name == "published":  # the public names; a table with code
            continue
        lines = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))).splitlines()
        assert len([line for line in lines if line]) >= 2, f"{path} does not say in two lines what lives there"


def test_a_circle_and_an_upward_import_are_found(tmp_path):
    files = {
        "npr_model/errors.py": "def late():\n    from npr_model.scoring import scorer",
        "npr_model/scoring/__init__.py": "",
        "npr_model/scoring/scorer.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from . import rows",
        "npr_model/scoring/rows.py": "import npr_model.scoring.scorer",
        "npr_model/screening/inputs/names.py": "",
        "npr_model/screening/outputs/parts.py": "from npr_model.screening.inputs import names",
        "npr_kernels/info.py": "from npr_model import errors",
        "npr_kernels/reference.py": "from npr_kernels import info",
        "npr_model/files.py": "import npr_kernels.testing",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    edges = graph(tmp_path)
    assert wrong_arrows(edges) == [
        "npr_kernels.info imports npr_model.errors",
        "npr_kernels.reference imports npr_kernels.info",
        "npr_model.errors imports npr_model.scoring.scorer",
        "npr_model.files imports npr_kernels.testing",
        "npr_model.screening.outputs.parts imports npr_model.screening.inputs.names",
    ]
    assert {"npr_model.scoring.scorer", "npr_model.scoring.rows"} <= set(circle(edges))
