"""The page at `/` as a server gives it; test_page_browser.py has it in a browser."""

from __future__ import annotations

import base64
import hashlib
import logging
import re
from importlib.resources import files

import pytest
from server.helpers import error_of, serve

from llmir.server.page import content_security_policy

HTML = files("llmir.server").joinpath("page.html").read_text(encoding="utf-8")


def basic(password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"me:{password}".encode()).decode()}


def test_the_page_and_what_it_may_do():
    async def main(server):
        response = await server.client.get("/")
        assert response.status_code == 200
        assert response.headers["content-type"] == "text/html; charset=utf-8"
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.text == HTML
        policy = dict(
            part.split(" ", 1) for part in response.headers["content-security-policy"].split("; ")
        )
        assert policy.pop("connect-src") == "'self'"
        assert policy.pop("img-src") == "data:"
        for kind in ("script", "style"):
            (text,) = re.findall(f"<{kind}>(.*?)</{kind}>", HTML, re.DOTALL)
            digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
            assert policy.pop(f"{kind}-src") == f"'sha256-{digest}'"
        assert {"default-src", "base-uri", "form-action", "frame-ancestors"} == set(policy)
        assert set(policy.values()) == {"'none'"}

    serve(main)


def test_the_policy_names_each_script_and_style():
    policy = content_security_policy(b"<style>a</style><script>b</script><script>c</script>")
    (scripts,) = re.findall("script-src ([^;]*);", policy)
    assert [hashlib.sha256(text).digest() for text in (b"b", b"c")] == [
        base64.b64decode(source.removeprefix("'sha256-").removesuffix("'"))
        for source in scripts.split()
    ]


def test_the_page_needs_nothing_from_elsewhere():
    outside = set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"']*", HTML))
    assert outside == {"http://www.w3.org/2000/svg"}  # which is a name, and nothing is loaded
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", HTML)
    assert not re.search(r"\son\w+=", HTML), "a handler in HTML would not run under the policy"
    assert len(HTML) < 25_000


def test_every_field_has_a_label():
    for field in re.findall(r"<(?:input|textarea)[^>]*>", HTML):
        labelled = "aria-label" in field or re.search(rf"<label>[^<]*{re.escape(field)}", HTML)
        (name,) = re.findall(r"(?:id|name)=\"([\w_]+)\"", field)[:1]
        assert labelled or f'<label for="{name}"' in HTML, field


def test_a_server_without_a_page():
    async def main(server):
        error_of(await server.client.get("/"), 404)

    serve(main, page=False)


def test_a_browser_gives_the_key_as_a_password():
    async def main(server):
        for headers in ({}, basic("wrong"), basic(""), {"Authorization": "Basic =="}):
            response = await server.client.get("/", headers=headers)
            assert error_of(response, 401)["code"] == "invalid_api_key"
            # Else the browser would not ask for one …
            assert response.headers["www-authenticate"].startswith("Basic ")
            # … and here it would, over the page that asks for it itself.
            response = await server.client.get("/metrics", headers=headers)
            error_of(response, 401)
            assert response.headers["www-authenticate"] == "Bearer"
        for headers in (basic("key"), basic("with:colon"), {"Authorization": "Bearer key"}):
            for path in ("/", "/metrics", "/v1/models"):
                response = await server.client.get(path, headers=headers)
                assert response.status_code == 200

    serve(main, api_keys=("key", "with:colon"))


@pytest.mark.parametrize(("level", "expected"), [("INFO", ["/v1/models"]), ("DEBUG", None)])
def test_what_is_asked_every_second_does_not_fill_the_log(caplog, level, expected):
    paths = ["/metrics", "/health", "/v1/models", "/ready"]

    async def main(server):
        for path in paths:
            await server.client.get(path)

    with caplog.at_level(level, logger="llmir.server"):
        serve(main)
    logged = [r.args[1] for r in caplog.records if r.name == "llmir.server"]
    assert logged == (expected or paths)
    assert {r.levelno for r in caplog.records if "metrics" in r.message} <= {logging.DEBUG}
