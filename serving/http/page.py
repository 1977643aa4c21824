"""The page at `/`: type a prompt, see who drafted every token.

It loads nothing from elsewhere, runs no inline script and no inline style, and asks this server
alone. Of `/v1/models` it reads `data[0]`: its `id`, and `draftgym` with `policies` and
`default_policy`. It writes with `POST /v1/chat/completions`, where `"draftgym": {"policy": ...,
"details": true}` makes every chunk tell its round: `"draftgym": {"arm": ..., "pieces": [{"text":
..., "drafted": ...}]}`, and the usage chunk all of them: `"draftgym": {"arms": {name: rounds}}`.
"""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles

PAGE = Path(__file__).parent / "page"

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",  # asked for again each time, sent again only where it changed
}


def add_page(app: FastAPI) -> None:
    """Serves the page at `/`, what it loads at `/page/`; neither asks for an API key.

    Args:
        app: The server.
    """

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    def page() -> FileResponse:
        return FileResponse(PAGE / "index.html", headers=HEADERS)

    app.mount("/page", StaticFiles(directory=PAGE))
