"""``npr serve``."""

from __future__ import annotations

import socket
from typing import Annotated

import typer

from npr_model.commands.terminal import Backend, Checkpoint, Device, ViewOption, make_scorer, out
from npr_model.errors import InputError, reason


def serve(
    host: Annotated[
        str, typer.Option(help="Address to listen at; 0.0.0.0 is every one of this machine.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8000,
    checkpoint: Checkpoint = "preview",
    view: ViewOption = None,
    backend: Backend = None,
    device: Device = "auto",
    max_bytes: Annotated[int, typer.Option(min=1, help="Larger files are refused.")] = 50_000_000,
    max_pixels: Annotated[int, typer.Option(min=1, help="Larger images are refused.")] = 50_000_000,
) -> None:
    """A page to drop one image on, with its verdict, NPR map and activation map; POST /score for programs.

    It has no accounts and no encryption: behind anything but this machine put a proxy that has.
    """
    try:
        import uvicorn

        from npr_model.screening.serve import make_app
    except ImportError as error:
        raise InputError("npr serve needs FastAPI and uvicorn: pip install 'npr-kernels[serve]'") from error
    from npr_model import checkpoints

    scorer = make_scorer(checkpoint, view, 1, 1, backend, None, device, max_pixels)
    loaded = checkpoints.load(checkpoint, backend=backend)
    loaded.model.to(scorer.device)
    app = make_app(loaded, scorer, max_bytes=max_bytes)
    try:
        listening = socket.create_server((host, port))
    except OSError as error:
        raise InputError(f"cannot listen at {host}, port {port}: {reason(error)}") from error
    out.print(f"http://{host}:{listening.getsockname()[1]} (Ctrl-C ends it)", highlight=False)
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])
