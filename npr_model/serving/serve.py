"""One image at a time over HTTP: a page to drop images on, and an endpoint for programs.

``POST /score`` takes an image file, as the body or in a form (``curl -F file=@photo.jpg``), and returns JSON: the
columns of ``npr screen``, ``note`` (what the verdict means), and data URLs of the "npr" map and the "activation" map of
the central part. A bad request or image returns {"error": ..., "error_code": ...} with status 413 (too many bytes), 400
(a bad form) or 422. Nothing is stored.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, JSONResponse

from npr_model.detectors.npr import NPRDetector
from npr_model.explanation import pictures
from npr_model.explanation.explain import explain, npr_network
from npr_model.imaging.decode import decode
from npr_model.imaging.views import View
from npr_model.scoring.items import in_memory
from npr_model.scoring.scorer import Scorer
from npr_model.serving.uploads import UploadError, receive_file
from npr_model.verdicts import DECLARED

SHOWN = 512  # side in pixels of the central part whose maps are shown
_PAGE = Path(__file__).with_name("serve.html")
# The page loads nothing from other hosts, and may not be framed.
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}


def make_app(scorer: Scorer, *, max_bytes: int) -> FastAPI:
    """Return the application.

    Images are scored one at a time; ``max_bytes`` limits their files, the scorer their pixels.
    """
    app = FastAPI(title="npr", docs_url=None, redoc_url=None, openapi_url=None)
    one_at_a_time = threading.Lock()

    @app.get("/", response_class=HTMLResponse)
    def page() -> HTMLResponse:
        return HTMLResponse(_PAGE.read_text(encoding="utf-8"), headers=_HEADERS)

    @app.post("/score")
    async def score(request: Request) -> JSONResponse:
        try:
            data = await receive_file(request.receive, request.headers.get("content-type", ""), max_bytes)
        except UploadError as error:
            status = 413 if error.code == "too_large" else 400
            return JSONResponse({"error": str(error), "error_code": error.code}, status)
        answer = await run_in_threadpool(_answer, data)
        return JSONResponse(answer, 422 if answer["error"] else 200)

    def _answer(data: bytes) -> dict[str, Any]:
        with one_at_a_time:
            (row,) = scorer.score([in_memory("", data)])
            note = scorer.verdict_caveat or scorer.calibration.note
            answer = row.as_dict() | {"note": "" if row.verdict == DECLARED else note}
            network = npr_network(scorer.checkpoint.model, row)
            if row.error is None and network is not None:
                answer |= _maps(network, decode(data, max_pixels=scorer.decoder.max_pixels).pixels)
            return answer

    return app


def _maps(model: NPRDetector, pixels: np.ndarray) -> dict[str, str]:
    """Maps of the central part at full resolution; scaled down, they would not show what the network reads."""
    part = View("crop", SHOWN).apply(pixels, model.grid_size)
    maps = explain(model, part)
    rows, columns = maps.npr.shape[1:]
    return {
        "part": f"{columns}x{rows}",
        "npr": pictures.data_url(pictures.npr_picture(maps.npr)),
        "activation": pictures.data_url(pictures.activation_picture(part[:rows, :columns], maps.activation)),
    }
