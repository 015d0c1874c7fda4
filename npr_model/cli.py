"""The ``npr`` command. Torch is loaded inside the subcommands, so that help and usage errors come at once."""

from __future__ import annotations

import importlib.metadata
import sys
import warnings
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from npr_model.commands.ablate import ablate
from npr_model.commands.audit import audit
from npr_model.commands.calibrate import calibrate
from npr_model.commands.compare import compare
from npr_model.commands.evaluate import evaluate
from npr_model.commands.explain import explain
from npr_model.commands.export import export
from npr_model.commands.info import info
from npr_model.commands.report import report
from npr_model.commands.robustness import robustness
from npr_model.commands.screen import screen
from npr_model.commands.serve import serve
from npr_model.commands.shared import streams, terminal
from npr_model.commands.simulate import simulate
from npr_model.commands.train import train
from npr_model.errors import InputError, reason


class _Flags:
    """Leaves out the type of flags in the help of a command: they take no value."""

    def get_params(self, context: Any) -> list:
        parameters = super().get_params(context)  # type: ignore[misc]  # of the command beside it
        for parameter in parameters:
            if getattr(parameter, "is_flag", False):
                parameter.metavar = ""
        return parameters


class _Command(_Flags, TyperCommand):
    pass


class _Group(_Flags, TyperGroup):
    pass


app = typer.Typer(
    name="npr",
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _reflowed(text: str) -> str:
    """A docstring with one line per paragraph, for the terminal to break."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


PANELS = {
    "Score images": (screen, report, serve),
    "Measure a detector": (evaluate, compare, robustness, explain, audit, ablate),
    "Make a detector": (simulate, train, calibrate, export),
    "About this installation": (info,),
}
for panel, commands in PANELS.items():
    for command in commands:
        app.command(cls=_Command, rich_help_panel=panel, help=_reflowed(command.__doc__ or ""))(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"npr {importlib.metadata.version('npr-kernels')}")
        raise typer.Exit


@app.callback(epilog=terminal.EXIT_CODES)
def npr(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Detect AI-generated images by neighbouring pixel relationships (NPR)."""


def main(arguments: list[str] | None = None) -> int:
    """Run ``npr`` and return its exit code. User errors print one line to stderr, never a traceback."""
    streams.open_streams()
    code = _run(arguments)
    try:
        sys.stdout.flush()
    except OSError as error:
        return _fail(f"{streams.OUTPUT}: {reason(error)}", error)
    return code


def _run(arguments: list[str] | None) -> int:
    warnings.filterwarnings("ignore", module="PIL")  # odd metadata; wrong pixels are errors
    warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores: they take turns
    usage_error: Any = typer.BadParameter.__base__  # click's, wherever this version of typer keeps it
    terminal.start_command()
    try:
        return app(arguments, standalone_mode=False) or 0
    except typer.Exit as exit:
        return exit.exit_code
    except usage_error as error:
        return _fail(f"{error.format_message() or 'no command given'} (npr --help shows the usage)")
    except (KeyboardInterrupt, typer.Abort):
        terminal.err.print("npr: interrupted")
        return terminal.EXIT_INTERRUPTED
    except InputError as error:
        return _fail(str(error), error)
    except OSError as error:
        return _fail(f"{error.filename}: {reason(error)}" if error.filename else reason(error), error)
    except Exception as error:
        if _is_out_of_memory(error):
            return _fail(f"out of memory ({reason(error).partition('. ')[0]}); lower the batch size", MemoryError())
        if not _is_backend_error(error):
            raise
        return _fail(reason(error), error)


def _fail(message: str, error: Exception | None = None) -> int:
    streams.print_error(f"npr: error: {' '.join(message.split())}")
    return terminal.error_code(error)


def _is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out on this machine or on a GPU, asked without importing torch."""
    torch = sys.modules.get("torch")
    on_gpu = torch is not None and isinstance(error, torch.OutOfMemoryError)
    return on_gpu or isinstance(error, MemoryError) or "can't allocate memory" in str(error)


def _is_backend_error(error: Exception) -> bool:
    """Whether it is npr_kernels.BackendError, asked without importing torch."""
    kernels = sys.modules.get("npr_kernels")
    return kernels is not None and isinstance(error, kernels.BackendError)


if __name__ == "__main__":
    sys.exit(main())
