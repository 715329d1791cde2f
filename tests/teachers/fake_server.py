"""A small server that answers as vLLM does, or misbehaves as it is told; on 127.0.0.1 alone."""

import json
import ssl
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Behaviour:
    """What the server does; `failures` answers with `status` before it behaves."""

    def __init__(
        self, teacher, *, failures=0, status=503, mode="good", max_logprobs=20, encode=None
    ):
        self.teacher, self.failures, self.status = teacher, failures, status
        self.encode = encode or (lambda text: [ord(c) for c in text])
        self.mode, self.max_logprobs = mode, max_logprobs
        self.lock, self.now, self.most, self.asked, self.keys = threading.Lock(), 0, 0, 0, []


def prompt_logprobs(teacher, prompt, k):
    import torch

    table = teacher.log_probs({"input_ids": torch.tensor([prompt])})[0]
    entries = [None]
    for place, token in enumerate(prompt[1:]):
        ids = {*table[place].topk(k).indices.tolist(), token}
        entries.append({str(i): {"logprob": table[place, i].item(), "rank": 0} for i in ids})
    return entries


class Handler(BaseHTTPRequestHandler):
    counted = False

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.answer(200, {"data": [{"id": "toy"}]})

    def do_POST(self):
        told = self.server.behaviour
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/tokenize":
            return self.answer(200, {"tokens": told.encode(body["prompt"])})
        with told.lock:
            told.asked += 1
            told.keys.append(self.headers.get("Authorization"))
            told.failures -= 1
            fails = told.failures >= 0
            told.now += 1
            told.most = max(told.most, told.now)
        self.counted = True
        try:
            return self.answer(told.status, {"error": "busy"}) if fails else self.act(told, body)
        finally:
            self.leave(told)

    def act(self, told, body):
        if told.mode == "drip":
            self.send_response(200)
            self.end_headers()
            try:
                for _ in range(2000):
                    self.wfile.write(b" ")
                    time.sleep(0.05)
            except OSError:
                return None
        if told.mode == "flood":
            return self.answer(200, {"filler": "x" * (4 << 20)})
        if told.mode == "html":
            return self.answer(200, None, raw=b"<html>")
        if told.mode == "chat only":
            return self.answer(200, {"choices": [{"text": "hello"}]})
        if told.mode == "cut":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            return self.wfile.write(b"{")
        time.sleep(0.02)  # long enough for requests to overlap
        k = min(body["prompt_logprobs"], told.max_logprobs)
        entries = prompt_logprobs(told.teacher, body["prompt"], k)
        return self.answer(200, {"choices": [{"prompt_logprobs": entries}]})

    def leave(self, told):
        with told.lock:
            told.now -= self.counted
        self.counted = False

    def answer(self, status, body, raw=None):
        # before the answer is out: whoever has it may ask again before this thread goes on
        self.leave(self.server.behaviour)
        content = json.dumps(body).encode() if raw is None else raw
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def serving(behaviour, *, certificate=None):
    """Its address, while it runs; over TLS with a file of certificate and key."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    server.behaviour, server.daemon_threads = behaviour, True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http{'s' * bool(certificate)}://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
