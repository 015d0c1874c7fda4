"""The ``npr`` command. Torch is loaded inside the subcommands, so that help and usage errors come at once."""

from __future__ import annotations

import sys
import warnings

import typer

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
from npr_model.commands.simulate import simulate
from npr_model.commands.terminal import EXIT_INTERRUPTED, EXIT_USAGE, err
from npr_model.commands.train import train
from npr_model.errors import InputError, reason

app = typer.Typer(
    name="npr",
    help="Tell photographs from AI-generated images by neighbouring pixel relationships (NPR).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    screen,
    report,
    serve,
    evaluate,
    compare,
    explain,
    robustness,
    ablate,
    audit,
    train,
    simulate,
    calibrate,
    export,
    info,
):
    app.command()(command)


def main(arguments: list[str] | None = None) -> int:
    """Run ``npr`` and return its exit code; what is the user's to mend is one line on stderr, never a traceback."""
    warnings.filterwarnings("ignore", module="PIL")  # of odd metadata; pixels that are wrong are errors
    warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores: they take turns
    usage_error = typer.BadParameter.__base__  # click's, wherever this version of typer keeps it
    try:
        return app(arguments, standalone_mode=False) or 0
    except typer.Exit as exit:
        return exit.exit_code
    except usage_error as error:
        return _fail(f"{error.format_message() or 'no command given'} (npr --help shows the usage)")
    except (KeyboardInterrupt, typer.Abort):
        err.print("npr: interrupted")
        return EXIT_INTERRUPTED
    except InputError as error:
        return _fail(str(error))
    except OSError as error:
        return _fail(f"{error.filename}: {reason(error)}" if error.filename else reason(error))
    except Exception as error:
        if not _is_backend_error(error):
            raise
        return _fail(reason(error))


def _fail(message: str) -> int:
    print(f"npr: error: {' '.join(message.split())}", file=sys.stderr)
    return EXIT_USAGE


def _is_backend_error(error: Exception) -> bool:
    """Whether it is npr_kernels.BackendError, asked without importing torch."""
    kernels = sys.modules.get("npr_kernels")
    return kernels is not None and isinstance(error, kernels.BackendError)


if __name__ == "__main__":
    sys.exit(main())
