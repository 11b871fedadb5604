"""The page at `/`: plain files of this package, served as they are. They need no key; what they call does."""

from pathlib import Path

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

FILES = Path(__file__).parent / "page"
HEADERS = {
    # All comes from this server, and nothing is written inline: text of a model cannot become a script.
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; object-src 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    # Names carry no version: ask each time (304 by ETag), or an upgraded server would meet old scripts.
    "cache-control": "no-cache",
}


class PageFiles(StaticFiles):
    """Static files with the page's headers."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        return response


def add_page(app: FastAPI) -> None:
    """Serve the page at `/` and its files under `/page/`."""

    async def index(request: Request) -> FileResponse:
        return FileResponse(FILES / "index.html", headers=HEADERS)

    app.add_route("/", index, include_in_schema=False)
    app.mount("/page", PageFiles(directory=FILES))
