"""``npr serve``."""

from __future__ import annotations

import socket
from typing import Annotated

import typer

from npr_model.commands.shared.options import scoring_options
from npr_model.commands.shared.terminal import out, work_begins
from npr_model.errors import InputError, reason
from npr_model.scoring.options import ScoringOptions


@scoring_options(
    "checkpoint", "view", "device", "backend", "max_pixels", batch_size=1, workers=1, max_pixels=50_000_000
)
def serve(
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 stands for all addresses of this machine.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 chooses a free one.")] = 8000,
    max_bytes: Annotated[
        int, typer.Option(min=1, help="Largest number of bytes of a file; a larger file is refused.")
    ] = 50_000_000,
    *,
    options: ScoringOptions,
) -> None:
    """Serve a web page that scores one image at a time, and POST /score for programs.

    The page shows the verdict, the NPR map and the activation map. There are no accounts and no encryption: let other
    machines connect only through a proxy that has both.
    """
    try:
        import uvicorn

        from npr_model.serving.serve import make_app
    except ImportError as error:
        raise InputError("npr serve needs FastAPI and uvicorn: pip install 'npr-kernels[serve]'") from error

    app = make_app(options.scorer(), max_bytes=max_bytes)
    try:
        listening = _listen(host.strip("[]"), port)
    except (OSError, UnicodeError) as error:  # the latter for a name that cannot be one
        raise InputError(f"cannot listen at {host}, port {port}: {reason(error)}") from error
    work_begins()
    address = f"[{host.strip('[]')}]" if ":" in host else host
    out.print(f"http://{address}:{listening.getsockname()[1]} (Ctrl-C to stop)", highlight=False)
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    """Listen at an IPv4 address if the name has one, else at an IPv6 address. "::" stands for all of both."""
    addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family = min((address[0] for address in addresses), key=lambda family: family != socket.AF_INET)
    both = family == socket.AF_INET6 and host == "::" and socket.has_dualstack_ipv6()
    return socket.create_server((host, port), family=family, dualstack_ipv6=both)
