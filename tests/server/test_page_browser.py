"""The page at `/` in headless Chromium: what somebody does there, and what it sends."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from engine.helpers import TOKENIZER
from server.chromium import Browser, Page, chromium
from server.helpers import NAME, LiveServer, SlowRunner, live_server, make_llm

pytestmark = pytest.mark.serving

EOS = TOKENIZER.backend.token_to_id("<|im_end|>")
LONG = "the cat sat on the mat. " * 30


class ScriptedRunner(SlowRunner):
    """Says what it is told to, and then the end."""

    seconds = 0.02

    def say(self, text: str) -> None:
        self._left = [*TOKENIZER.encode(text, add_special_tokens=False), EOS]

    def _logits(self, batch: Any, call: str) -> Any:
        rows = super()._logits(batch, call)
        for row in rows:
            row[:] = np.float32(-1e9)
            row[self._left.pop(0) if self._left else EOS] = 0
        return rows


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@contextmanager
def scripted_server(**changes: Any) -> Iterator[tuple[LiveServer, ScriptedRunner]]:
    runner = ScriptedRunner()
    llm = make_llm(runner, generation={"eos_token_id": EOS})
    with live_server(llm, **changes) as server:
        yield server, runner
        server.wait_until_idle()


@contextmanager
def opened(browser: Browser, server: LiveServer, **size: int) -> Iterator[Page]:
    """The page, which at the end must have asked for nothing from elsewhere and failed nowhere."""
    page = browser.open(**size)
    page.go(server.url)
    page.wait(f"document.getElementById('model').textContent === '{NAME}'")
    yield page
    urls = [request["url"] for request in page.requests()]
    assert all(url.startswith((f"{server.url}/", "data:image/svg+xml,")) for url in urls), urls
    assert page.complaints() == []
    page.go("about:blank")


def send(page: Page, text: str) -> None:
    page.eval("document.getElementById('words').focus()")
    page.type(text)
    page.press("Enter", 13)


def answers(page: Page) -> list[str]:
    return page.eval("[...document.querySelectorAll('.assistant .text')].map(e => e.textContent)")


def wait_for_end(page: Page) -> None:
    page.wait("document.getElementById('send').textContent === 'Send'")


def chats(page: Page) -> list[Any]:
    """The bodies of the chat requests that the page has sent."""
    return [
        json.loads(request["postData"])
        for request in page.requests()
        if request["url"].endswith("/v1/chat/completions")
    ]


def text_of(page: Page, id: str) -> str:
    return page.eval(f"document.getElementById('{id}').textContent")


def test_a_conversation(browser: Browser) -> None:
    with scripted_server() as (server, runner), opened(browser, server) as page:
        assert page.eval("document.activeElement.id") == "words"
        page.wait("document.getElementById('running').textContent === '0'")
        runner.say(LONG)
        send(page, "hello")
        # The answer can be read while it comes, and the load shows it.
        page.wait("document.querySelector('.coming .text')?.textContent.length > 10")
        (before,) = answers(page)
        assert LONG.startswith(before)
        assert len(before) < len(LONG)
        page.wait("document.getElementById('running').textContent === '1'")
        page.wait("parseFloat(document.getElementById('speed').textContent) > 5")
        page.wait("document.getElementById('cache').textContent !== '0 %'")
        wait_for_end(page)
        assert answers(page) == [LONG]
        meta = page.eval("document.querySelector('.assistant .meta').textContent")
        num_tokens = len(TOKENIZER.encode(LONG, add_special_tokens=False)) + 1
        assert meta.startswith(f"{num_tokens} tokens · ")
        page.wait("document.getElementById('speed').textContent === '0'")
        assert text_of(page, "running") == "0"
        # What was said before is told again, and found in the prefix cache.
        runner.say("yes")
        send(page, "again")
        wait_for_end(page)
        first, second = chats(page)
        hello = {"role": "user", "content": "hello"}
        assert first["messages"] == [hello]
        assert second["messages"] == [
            hello,
            {"role": "assistant", "content": LONG},
            {"role": "user", "content": "again"},
        ]
        page.wait("parseFloat(document.getElementById('hits').textContent) > 10")
        # A reload loses nothing, and a new chat begins without.
        page.go(server.url)
        assert answers(page) == [LONG, "yes"]
        page.eval("document.getElementById('new').click()")
        assert answers(page) == []
        runner.say("no")
        send(page, "third")
        wait_for_end(page)
        assert chats(page)[-1]["messages"] == [{"role": "user", "content": "third"}]


def test_stop_aborts(browser: Browser) -> None:
    with scripted_server() as (server, runner), opened(browser, server) as page:
        for stop in (
            lambda: page.eval("document.getElementById('send').click()"),
            lambda: page.press("Escape", 27),
        ):
            runner.say(LONG * 3)
            send(page, "talk")
            page.wait("document.querySelector('.coming .text')?.textContent.length > 10")
            assert text_of(page, "send") == "Stop"
            stop()
            wait_for_end(page)
            server.wait_until_idle()
            assert 0 < len(answers(page)[-1]) < len(LONG)
        metas = page.eval(
            "[...document.querySelectorAll('.assistant .meta')].map(e => e.textContent)"
        )
        assert all(meta.endswith(" · stopped") for meta in metas)
        # What had come stays part of the conversation.
        assert chats(page)[1]["messages"][1] == {"role": "assistant", "content": answers(page)[0]}
        # A new chat in the middle of an answer ends that too, and takes nothing of it.
        runner.say(LONG)
        send(page, "talk")
        page.wait("document.querySelector('.coming .text')?.textContent.length > 10")
        page.eval("document.getElementById('new').click()")
        server.wait_until_idle()
        assert (answers(page), text_of(page, "send")) == ([], "Send")


def test_an_answer_is_text(browser: Browser) -> None:
    hostile = (
        "<img src=x onerror=\"document.title='bad'\"><script>document.title='bad'</script>"
        "</div><a href='javascript:alert(1)'>a</a> &lt;b&gt; <!--"
    )
    with scripted_server() as (server, runner), opened(browser, server) as page:
        runner.say(hostile)
        send(page, hostile)
        wait_for_end(page)
        for _ in range(2):  # as it came, and as it is found in the storage
            assert answers(page) == [hostile]
            assert page.eval("document.querySelectorAll('img, main script, main a').length") == 0
            page.wait(f"document.title === '{NAME} – llmir'")
            page.go(server.url)


def test_the_policy_holds(browser: Browser) -> None:
    with scripted_server() as (server, _):
        page = browser.open()
        page.go(server.url)
        page.eval(
            "{ const s = document.createElement('script'); s.textContent = 'window.ran = 1';"
            " document.body.append(s); const i = new Image(); i.src = 'http://127.0.0.1:1/x'; }"
        )
        sent = page.eval("fetch('http://127.0.0.1:1/').then(() => 'sent', () => 'refused')")
        assert sent == "refused"
        assert page.eval("window.ran") is None
        refused = [entry["text"] for entry in page.complaints()]
        assert all("Content Security Policy" in text for text in refused)
        for directive in ("script-src", "img-src", "connect-src"):
            assert any(directive in text for text in refused)
        page.go("about:blank")


def test_the_settings_are_sent(browser: Browser) -> None:
    given = {"temperature": "0.5", "top_p": "0.9", "top_k": "7", "max_tokens": "3", "seed": "-4"}
    with scripted_server() as (server, runner), opened(browser, server) as page:
        for name, value in {**given, "stop": "END", "system": "Be short."}.items():
            page.eval(f"document.querySelector('[name={name}]').focus()")
            page.type(value)
        page.press("Enter", 13)
        page.type("one\\ntwo")
        page.eval("document.querySelector('[name=stop]').focus()")
        page.press("Enter", 13)
        page.type("a\\nb")
        runner.say(LONG)
        send(page, "hello")
        wait_for_end(page)
        (body,) = chats(page)
        assert {name: body[name] for name in given} == {k: json.loads(v) for k, v in given.items()}
        assert body["stop"] == ["END", "a\nb"]
        assert body["messages"][0]["role"] == "system"
        meta = page.eval("document.querySelector('.assistant .meta').textContent")
        assert meta.startswith("3 tokens · ")
        assert meta.endswith(" · cut at the most tokens")
        # What is no number is not sent, nor left out: it is pointed at.
        page.eval("document.querySelector('[name=top_p]').select()")
        page.type("9")
        send(page, "hello")
        assert page.eval("document.activeElement.name") == "top_p"
        assert len(chats(page)) == 1
        page.eval("document.querySelector('[type=reset]').click()")
        send(page, "")
        wait_for_end(page)
        assert not set(chats(page)[1]) & {*given, "stop"}


def test_errors_are_said(browser: Browser) -> None:
    with scripted_server() as (server, runner), opened(browser, server) as page:
        send(page, LONG * 4)
        page.wait("!document.getElementById('error').hidden")
        said = page.eval("document.querySelector('#error p').textContent")
        assert "context (max_model_len) is 512 tokens" in said
        # The question is where it was written, to be made shorter.
        assert page.eval("document.getElementById('words').value") == LONG * 4
        assert page.eval("document.querySelectorAll('#turns li').length") == 0
        page.eval("document.getElementById('words').value = ''")
        runner.say(LONG)
        runner.fail_at = len(runner.batches) + 8
        send(page, "hello")
        page.wait("!document.getElementById('error').hidden")
        assert "The device failed" in page.eval("document.querySelector('#error p').textContent")
        meta = page.eval("document.querySelector('.assistant .meta').textContent")
        assert meta.endswith(" · broken off")
        runner.say("well")
        send(page, "again")
        wait_for_end(page)
        assert page.eval("document.getElementById('error').hidden")
        assert answers(page)[-1] == "well"
        page.events[:] = [e for e in page.events if "400" not in json.dumps(e)]


def test_a_server_that_is_gone(browser: Browser) -> None:
    with scripted_server() as (server, _):
        page = browser.open()
        page.go(server.url)
        page.wait("document.getElementById('running').textContent === '0'")
    page.wait("!document.getElementById('silence').hidden")
    assert text_of(page, "silence") == "The server does not answer."
    send(page, "hello")
    page.wait("document.querySelector('#error p').textContent === 'The server does not answer.'")
    page.go("about:blank")


def test_a_key(browser: Browser) -> None:
    with scripted_server(api_keys=("the-key",)) as (server, runner):
        page = browser.open()
        # As the browser sends what somebody wrote into its own dialog.
        page.go(server.url.replace("//", "//me:the-key@"))
        page.wait(f"document.getElementById('model').textContent === '{NAME}'")
        assert page.eval("document.getElementById('keys').hidden")
        runner.say("yes")
        send(page, "hello")
        wait_for_end(page)
        assert answers(page) == ["yes"]
        # As where something before the server lets the page through without a key.
        page.eval("store.set('key', 'wrong'); poll()")
        page.wait("!document.getElementById('keys').hidden")
        assert page.eval("document.activeElement.id") == "key"
        page.type("the-key")
        num_requests = len(page.requests())
        page.press("Enter", 13)
        page.wait("document.getElementById('keys').hidden")
        runner.say("still")
        send(page, "again")
        wait_for_end(page)
        assert answers(page) == ["yes", "still"]
        for request in page.requests()[num_requests:]:
            assert request["headers"]["Authorization"] == "Bearer the-key"
        assert page.eval("sessionStorage.getItem('llmir.key')") == "the-key"
        assert page.eval("localStorage.length") == 0
        page.go("about:blank")


def polls(page: Page) -> int:
    return sum(request["url"].endswith("/metrics") for request in page.requests())


def check_polls_once_a_second(page: Page) -> None:
    before, start = polls(page), time.monotonic()
    page.wait_until(lambda: polls(page) >= before + 3, "the page asks for the load")
    assert time.monotonic() - start > 1.9


def test_nobody_is_asked_while_nobody_looks(browser: Browser) -> None:
    with scripted_server() as (server, _), opened(browser, server) as page:
        check_polls_once_a_second(page)
        hide = "Object.defineProperty(document, 'hidden', {{value: {}, configurable: true}});"
        tell = "document.dispatchEvent(new Event('visibilitychange'))"
        page.eval(hide.format("true") + tell)
        time.sleep(0.3)  # what was under way
        before = polls(page)
        time.sleep(2)
        assert polls(page) == before
        page.eval(hide.format("false") + tell)
        check_polls_once_a_second(page)


def test_a_narrow_screen(browser: Browser) -> None:
    with scripted_server() as (server, runner), opened(browser, server, width=390, height=844) as p:
        visible = "document.getElementById('{}').checkVisibility({{visibilityProperty: true}})"
        runner.say("word" * 60)
        send(p, "hello")
        wait_for_end(p)
        assert p.eval("document.documentElement.scrollWidth") == 390
        assert not p.eval(visible.format("side"))
        p.eval("document.getElementById('opener').focus()")
        p.press("Enter", 13)
        assert p.eval(visible.format("side"))
        assert not p.eval(visible.format("words"))
        assert p.eval("document.getElementById('opener').getAttribute('aria-expanded')") == "true"
        assert p.eval("document.documentElement.scrollWidth") == 390
        p.press("Escape", 27)
        assert p.eval(visible.format("words"))
