"""A SLURM cluster of one node: the real daemons, run by root on free ports, with all that they keep in one folder."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

DAEMONS = ("munged", "slurmctld", "slurmd")
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
SchedulerParameters=batch_sched_delay=0,sched_interval=1
SlurmdParameters=config_overrides
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
NodeName=localhost NodeHostname={host} NodeAddr=127.0.0.1 CPUs=2
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE
"""


class Slurm:
    """The cluster's commands, for processes whose environment has ``SLURM_CONF``."""

    def __init__(self, config: Path) -> None:
        self.environment = {"SLURM_CONF": str(config), "GLOO_SOCKET_IFNAME": "lo", "MASTER_PORT": str(free_port())}

    def __call__(self, *command: object, cwd: Path | None = None) -> str:
        environment = os.environ | self.environment
        done = subprocess.run(list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command[0]}: {done.stderr}"
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """What ``scontrol show job`` says, e.g. ``JobState`` and ``Restarts``."""
        fields = self("scontrol", "show", "job", number, "--oneliner").split()
        return dict(field.split("=", 1) for field in fields if "=" in field)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(what: str, holds: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"not within {seconds} s: {what}"
        time.sleep(0.1)


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    programs = {name: shutil.which(name, path=path) for name in DAEMONS}
    if missing := [name for name, program in programs.items() if program is None]:
        pytest.skip(f"not installed: {', '.join(missing)} (apt-get install slurm-wlm munge)")
    if os.geteuid() != 0:
        pytest.skip("only root can start SLURM's daemons")
    folder = tmp_path_factory.mktemp("slurm")
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    (folder / "state").mkdir()
    (folder / "spool").mkdir()
    host = platform.node().partition(".")[0]
    config = folder / "slurm.conf"
    config.write_text(CONFIG.format(folder=folder, host=host, controller_port=free_port(), node_port=free_port()))
    munge = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munge.pid", "seed-file": "munge.seed"}
    options = {
        # The folder is pytest's, which munged calls insecure for not being readable to all.
        "munged": ["--foreground", "--force", *(f"--{option}={folder / file}" for option, file in munge.items())],
        "slurmctld": ["-D", "-f", str(config)],
        "slurmd": ["-D", "-f", str(config)],
    }
    cluster = Slurm(config)
    started: list[subprocess.Popen[bytes]] = []
    try:
        for name in DAEMONS:
            with (folder / f"{name}.log").open("wb") as log:
                program = programs[name]
                assert program
                started.append(subprocess.Popen([program, *options[name]], stdout=log, stderr=log))
            if name == "munged":
                wait_until("munged listens", (folder / "munge.socket").exists, 10)

        def ready() -> bool:
            command = ["sinfo", "--noheader", "--format=%T"]
            shown = subprocess.run(command, env=os.environ | cluster.environment, capture_output=True, text=True)
            return shown.stdout.strip() == "idle"

        try:
            wait_until("the node is idle", ready, 30)
        except AssertionError:
            for name in DAEMONS:
                print(f"--- {name}\n{(folder / f'{name}.log').read_text()[-2000:]}")
            raise
        yield cluster
        cluster("scancel", "--full", "--signal=KILL", "--user=root")
        wait_until("no job is left", lambda: not cluster("squeue", "--noheader"), 30)
    finally:
        for process in reversed(started):
            process.terminate()
        for process in reversed(started):
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
