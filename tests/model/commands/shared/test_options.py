"""Options mean the same in every command, and their values are those of the library."""

from __future__ import annotations

import inspect
import itertools
import re
from typing import get_args, get_origin

from typer.models import OptionInfo

from npr_kernels.backends import registry
from npr_model import cli
from npr_model.commands import evaluate, simulate
from npr_model.commands.shared import options
from npr_model.evaluation import protocols, published
from npr_model.scoring.options import DTYPES, ScoringOptions
from npr_model.simulation import autoencoders
from npr_model.training import config


def options_of_commands() -> list[tuple[str, inspect.Parameter, object]]:
    """Every option of every command, as (command, parameter, typer's description)."""
    described = []
    for command in itertools.chain.from_iterable(cli.PANELS.values()):
        for parameter in inspect.signature(command, eval_str=True).parameters.values():
            described.append((command.__name__, parameter, get_args(parameter.annotation)[-1]))
    return described


def test_options_that_can_be_given_more_than_once_say_so():
    for command, parameter, option in options_of_commands():
        kinds = [
            get_origin(kind)
            for kind in (get_args(parameter.annotation)[0], *get_args(get_args(parameter.annotation)[0]))
        ]
        repeatable = list in kinds and isinstance(option, OptionInfo)
        assert repeatable == (option.help or "").endswith("Repeatable."), (command, parameter.name)


def test_an_option_means_the_same_in_every_command():
    """-o is the output, a file or a folder; -c a checkpoint. No other option has a short form, but --null."""
    short = {}
    for command, parameter, option in options_of_commands():
        for name in option.param_decls or ():
            if re.fullmatch("-[a-z0-9]", name):
                short.setdefault(name, set()).add(parameter.name)
            if parameter.name == "output":
                assert option.metavar in ("FILE", "FOLDER", "FILE|FOLDER/"), command
    assert short.pop("-0", {"null"}) == {"null"} and short == {"-o": {"output"}, "-c": {"checkpoint"}}
    for name in ("workers", "device", "preset", "view", "seed", "config"):
        helps = {option.help for command, parameter, option in options_of_commands() if parameter.name == name}
        assert len(helps) == 1 or (name, len(helps)) == ("device", 2), name  # npr train's default is its config's


def test_closed_sets_are_those_of_the_library():
    assert get_args(options.BackendName) == tuple(registry.BACKENDS)
    assert get_args(options.Benchmark) == (*protocols.PROTOCOLS, protocols.PAPER)
    assert {kind.value for kind in simulate.Kind} == {*autoencoders.KINDS, "none"}
    assert get_args(get_args(get_args(options.Dtype)[0])[0]) == DTYPES
    assert set(get_args(get_args(get_args(options.Preset)[0])[0])) == set(config.PRESETS)
    assert [method.value for method in evaluate.Method] == published.methods()


def test_every_field_of_the_options_reaches_the_scorer():
    seen = {}

    @options.scoring_options("checkpoint", "view", "device", "max_pixels", batch_size=3, max_pixels=7)
    def command(first: int, options: ScoringOptions) -> None:
        seen.update(vars(options), first=first)

    command(first=1, checkpoint="a", view=None, device="cuda:1", max_pixels=9)
    expected = {"first": 1, "checkpoint": "a", "device": "cuda:1", "max_pixels": 9, "batch_size": 3, "workers": 0}
    assert {name: seen[name] for name in expected} == expected
    parameters = inspect.signature(command).parameters
    assert list(parameters) == ["first", "checkpoint", "view", "device", "max_pixels"]
    assert parameters["max_pixels"].default == 7
