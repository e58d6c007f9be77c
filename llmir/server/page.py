"""The page at `/`: a chat and the server's load, in one file that loads nothing else.

Its script and its style are the only ones that a browser may run there, by their hashes; it may
talk to this server and to nobody else.  What a model says is text to it and never HTML.
"""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files

from fastapi import APIRouter
from starlette.responses import Response


def router() -> APIRouter:
    """The page's address.  The file is read once, here."""
    html = files("llmir.server").joinpath("page.html").read_bytes()
    headers = {
        "Content-Security-Policy": content_security_policy(html),
        "Cache-Control": "no-cache",  # after an upgrade nobody talks to it with yesterday's script
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }
    made = APIRouter()

    # Not in the description, which is of the API.
    @made.head("/", include_in_schema=False)
    @made.get("/", include_in_schema=False)
    async def page() -> Response:
        """The page."""
        return Response(html, media_type="text/html", headers=headers)

    return made


def content_security_policy(html: bytes) -> str:
    """What a browser may do with the page: what is written in it, and requests to its server."""
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {_hashes(html, b'script')}",
            f"style-src {_hashes(html, b'style')}",
            "connect-src 'self'",
            "img-src data:",  # its icon
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )


def _hashes(html: bytes, element: bytes) -> str:
    """The sources that CSP calls the contents of these elements by."""
    found = re.findall(rb"<%s>(.*?)</%s>" % (element, element), html, re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(text).digest()).decode() for text in found)
    return " ".join(f"'sha256-{digest}'" for digest in digests)
