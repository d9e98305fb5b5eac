"""A prefill and a decode engine in one process, and what a frontend would ask of them."""

import asyncio
import contextlib

from orchestrator.wire.config import WorkerConfig
from tests.asgi import Answer, call
from tests.virtual_loop import run
from workers.sim.engine import SimEngine

COMPLETE = "/v1/completions"
ASK_PREFILL = {
    "do_remote_decode": True, "do_remote_prefill": False, "remote_engine_id": None,
    "remote_block_ids": None, "remote_host": None, "remote_port": None,
}  # fmt: skip
PROMPT = "what is to be prefilled"
OTHER = "something else, as long"
POLICIES = ["recompute", "fail"]
LOST = {
    "message": "Internal server error", "type": "InternalServerError", "param": None, "code": 500,
}  # fmt: skip


class Worker:
    """One engine and its application."""

    def __init__(self, engine, app):
        self.engine = engine
        self.app = app

    @property
    def stepper(self):
        return self.engine._stepper

    @property
    def lender(self):
        return self.engine._connector._lender

    @property
    def fetcher(self):
        return self.engine._connector._fetcher

    @property
    def agent(self):
        return self.engine._connector._agent.engine

    async def complete(self, prompt, ticket=None, **fields) -> Answer:
        body = {"prompt": prompt, "max_tokens": 8, **fields}
        leave = body.pop("leave", None)
        if ticket is not None:
            body["kv_transfer_params"] = ticket
        return await call(self.app, COMPLETE, body, leave=leave)

    async def prefill(self, prompt=PROMPT, **fields) -> dict:
        """What stage one is for: a ticket."""
        answer = await self.complete(prompt, ASK_PREFILL, max_tokens=1, **fields)
        assert answer.status == 200
        return answer.json["kv_transfer_params"]

    async def figure(self, name) -> float:
        """A metric's value."""
        text = (await call(self.app, "/metrics")).body.decode()
        [line] = [line for line in text.splitlines() if line.startswith((name + "{", name + " "))]
        return float(line.split()[-1])

    async def kill(self):
        await self.engine.stop(1.0)


class Stage:
    """Starts engines; all are gone when the scene is over."""

    def __init__(self):
        self.workers = []

    async def start(
        self, kind="aggregated", *, port=0, gang=None, lease=30.0, on_failure="recompute", **options
    ):
        given = {"step": 0.0, "max-model-len": 256, **options}
        if kind != "aggregated":
            given["kv-transfer"] = {"lease": lease, "on-failure": on_failure}
        engine = SimEngine(
            WorkerConfig(
                life=f"t/{kind}-0.0#1", kind=kind, control="", events="", state_dir="", model="m",
                options=given, ports={"side-channel": port}, gang=gang,
            )
        )  # fmt: skip
        worker = Worker(engine, await engine.start(lambda _text, _percent: None))
        self.workers.append(worker)
        return worker

    async def pair(self, on_failure="recompute", **options):
        """A prefill and a decode engine that don't know each other yet."""
        return (
            await self.start("prefill", **options),
            await self.start("decode", on_failure=on_failure, **options),
        )

    async def lent(self, on_failure="recompute", **options):
        """That pair, and a ticket for PROMPT."""
        prefill, decode = await self.pair(on_failure, **options)
        return prefill, decode, await prefill.prefill()

    async def truth(self, prompt=PROMPT, **fields) -> str:
        """What an engine alone says."""
        return text(await (await self.start()).complete(prompt, **fields))


def text(answer) -> str:
    assert answer.status == 200, answer.body
    return answer.json["choices"][0]["text"]


def played(scene):
    """Play a scene with a stage; its result and how long it took in virtual seconds."""

    async def play():
        stage = Stage()
        try:
            return await scene(stage)
        finally:
            for worker in stage.workers:
                with contextlib.suppress(OSError):
                    await worker.kill()

    return run(play())


async def unanswered(asking, *, within_s):
    """Begin something that isn't done after so long, and goes on."""
    going = asyncio.ensure_future(asking)
    done, _ = await asyncio.wait([going], timeout=within_s)
    assert not done
    return going


async def outcome(stage, answer, prompt=PROMPT):
    """Judge an answer by what an engine alone says."""
    if answer.status != 200:
        assert (answer.status, answer.json["error"]) == (500, LOST)
        return "error"
    return "right" if text(answer) == await stage.truth(prompt) else "wrong"


def as_configured(policy):
    return "right" if policy == "recompute" else "error"
