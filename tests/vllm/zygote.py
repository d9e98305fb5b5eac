"""A stand-in for the zygote: preloads, then forks workers on request. Standard output speaks JSON.

Requests are JSON lines on standard input: `{"env", "blob", "log"}` forks a worker and answers its
pid; `{"wait": pid}` answers its wait status. It ends when its input does.
"""

import base64
import gc
import importlib
import json
import os
import sys
import time


def main() -> None:
    began = time.monotonic()
    # What the imports print isn't for the reader of our answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    importlib.import_module("workers.vllm.preload").preload()
    gc.collect()
    gc.freeze()
    answers.write(json.dumps({"import_s": time.monotonic() - began}) + "\n")
    for line in iter(sys.stdin.readline, ""):
        request = json.loads(line)
        if "wait" in request:
            answer = os.waitpid(request["wait"], 0)[1]
        else:
            answer = os.fork() or become_worker(request)
        answers.write(json.dumps(answer) + "\n")


def become_worker(request: dict) -> int:
    os.setsid()
    null, log = os.open("/dev/null", os.O_RDONLY), os.open(request["log"], os.O_WRONLY | os.O_CREAT)
    for source, target in (null, 0), (log, 1), (log, 2):
        os.dup2(source, target)
    os.closerange(3, 256)
    os.environ.clear()
    os.environ.update(request["env"])
    status = 70
    try:
        worker_main = importlib.import_module("workers.vllm.main").main
        status = worker_main(base64.b64decode(request["blob"]))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
