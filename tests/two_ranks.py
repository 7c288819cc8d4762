"""Two real ranks: a function, called in each of two processes that form one gloo group.

The processes are forks of one server, which has imported everything already and lasts as long as the tests do. Each
call has fresh ones, so that nothing of it is left to the next, and costs a fork instead of two interpreters' start.
"""

from __future__ import annotations

import atexit
import faulthandler
import gc
import importlib
import os
import pickle
import pkgutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

RANKS = 2
REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("experiments", "experiments.callbacks", "datamodules", "lit_models")
"""what the server imports beforehand"""


@dataclass
class Job:
    call: bytes  # pickled: the server need not be able to read it
    folder: Path  # where each rank leaves what it printed and what it returned
    workplace: str
    environment: dict[str, str]
    seconds: float

    def log(self, rank: int) -> Path:
        return self.folder / f"{rank}.log"

    def answer(self, rank: int) -> Path:
        return self.folder / f"{rank}.pickle"


def on_two_ranks(function: Callable[..., Any], *args: object, seconds: float = 120) -> list[Any]:
    """What ``function(*args)`` returns on each rank; all of it is pickled, the function by its name.

    The ranks have the caller's environment, in which Lightning finds that they were started already, and its working
    directory, and a thread each.

    Raises:
        AssertionError: a rank raised, ended otherwise or took longer than so many seconds, with its traceback and the
            end of what it printed.
    """
    global _server
    if _server is None or _server.poll() is not None:
        _server = _start()
    with tempfile.TemporaryDirectory() as folder:
        call = pickle.dumps((function, args))
        job = Job(call, Path(folder), os.getcwd(), dict(os.environ), seconds)
        try:
            assert _server.stdin
            assert _server.stdout
            pickle.dump(job, _server.stdin)
            _server.stdin.flush()
            failed: int | None = pickle.load(_server.stdout)
        except BaseException:  # also a timeout of the test: what is answered after it is not for the next
            _server.kill()
            raise
        if failed is not None:
            raise AssertionError(f"rank {failed} of {RANKS} failed:\n{job.log(failed).read_text()[-6000:]}")
        return [pickle.loads(job.answer(rank).read_bytes()) for rank in range(RANKS)]


_server: subprocess.Popen[bytes] | None = None


def _start() -> subprocess.Popen[bytes]:
    server = subprocess.Popen(
        [sys.executable, "-m", __name__],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    atexit.register(server.communicate)  # closes its input, at which it ends
    return server


def serve(jobs: IO[bytes], answers: IO[bytes]) -> None:
    """Answers each job by the rank that failed, or None."""
    for package in PACKAGES:
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}."):
            importlib.import_module(module.name)
    gc.collect()
    gc.freeze()  # pages that no collection touches stay shared with the forks
    while True:
        try:
            job: Job = pickle.load(jobs)
        except EOFError:
            return
        ranks = {_fork(job, rank): rank for rank in range(RANKS)}
        failed = None
        while ranks:
            process, status = os.wait()
            rank = ranks.pop(process)
            if status and failed is None:
                failed = rank
                for other in ranks:  # it may wait for the one that is gone
                    os.kill(other, signal.SIGKILL)
        pickle.dump(failed, answers)
        answers.flush()


def _fork(job: Job, rank: int) -> int:
    process = os.fork()
    if process == 0:
        _be_rank(job, rank)
    return process


def _be_rank(job: Job, rank: int) -> NoReturn:
    status = 1
    try:
        with job.log(rank).open("wb") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        faulthandler.enable()
        faulthandler.dump_traceback_later(120, exit=True)  # if the other never comes
        os.chdir(job.workplace)
        os.environ.clear()
        os.environ.update(job.environment)
        # By the first, Lightning knows that it need not start the others.
        os.environ.update({"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": str(RANKS)})

        import torch
        import torch.distributed as dist

        torch.set_num_threads(1)
        function, args = pickle.loads(job.call)
        dist.init_process_group("gloo", init_method=f"file://{job.folder}/meeting", rank=rank, world_size=RANKS)
        faulthandler.dump_traceback_later(job.seconds, exit=True)
        result = function(*args)
        job.answer(rank).write_bytes(pickle.dumps(result))
        dist.barrier()
        dist.destroy_process_group()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    serve(sys.stdin.buffer, output)
