"""An OpenAI-compatible endpoint in a thread: answers as a function of the request, and keeps what it was asked."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple


class Answer(NamedTuple):
    """What the stub does with a request."""

    text: str | None = None
    status: int = 200
    headers: dict[str, str] = {}
    after_s: float = 0.0
    body: str | None = None


class StubJudge:
    """``answer`` gets the request's body and how many came before it, and returns the reply's text or an Answer."""

    def __init__(self, answer: Callable[[dict[str, Any], int], str | Answer]):
        self.answer, self.asked, self.keys, self.at_once, self.most_at_once = answer, [], [], 0, 0
        self.lock = threading.Lock()
        self.url = ""

    def reply(self, body: dict[str, Any], key: str | None) -> Answer:
        with self.lock:
            number = len(self.asked)
            self.asked.append(body)
            self.keys.append(key)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        answer = self.answer(body, number)
        answer = answer if isinstance(answer, Answer) else Answer(answer)
        time.sleep(answer.after_s)
        with self.lock:
            self.at_once -= 1
        return answer


@contextmanager
def serving(answer: Callable[[dict[str, Any], int], str | Answer]) -> Iterator[StubJudge]:
    judge = StubJudge(answer)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            answer = judge.reply(body, self.headers.get("authorization")) if self.path == "/v1/chat/completions" else Answer("", 404)
            text = answer.body or json.dumps({"choices": [{"message": {"role": "assistant", "content": answer.text}}]})
            try:
                self.send_response(answer.status)
                for name, value in {**answer.headers, "content-length": str(len(text.encode()))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text.encode())
            except OSError:
                pass  # who asked did not wait

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    judge.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield judge
    finally:
        server.shutdown()
        server.server_close()


def shown_to(body: dict[str, Any]) -> str:
    """What the judge was shown, without the instruction."""
    return body["messages"][-1]["content"]
