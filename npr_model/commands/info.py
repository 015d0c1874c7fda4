"""``npr info``."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def info(json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show versions, decoders, detectors and checkpoints of this installation, and why some backends cannot run."""
    import PIL
    import simplejpeg

    from npr_kernels.info import collect
    from npr_model import checkpoints, detectors, weights

    facts = collect()
    facts["decoders"] = {"simplejpeg": simplejpeg.__version__, "pillow": PIL.__version__}
    facts["detectors"] = ", ".join(detectors.NAMES)
    facts["checkpoints"] = {}
    for name in weights.available():
        loaded = checkpoints.load(name)
        facts["checkpoints"][name] = {
            "id": loaded.model_id,
            "view": str(loaded.metadata.view),
            "training data": loaded.metadata.training_data,
            "licence": loaded.metadata.licence,
        }
    if json_output:
        print(json.dumps(facts, indent=2))
    else:
        _print_facts(facts)


def _print_facts(facts: dict, indent: str = "") -> None:
    for name, value in facts.items():
        if isinstance(value, dict):
            print(f"{indent}{name}:" + ("" if value else " none"))
            _print_facts(value, indent + "  ")
        else:
            print(f"{indent}{name}: {value}")
