"""SLURM with one node, on this machine.

Run as ``python -m tests.slurm.node FOLDER``, it starts the daemons that the folder configures. As soon as its standard
input ends, in whatever way the tests do, it ends the daemons and all that they have started.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
PACKAGES = ["munge", "slurm-wlm"]
PROGRAMS = ["munged", "slurmctld", "slurmd", "sbatch"]
LOGS = ["munged.log", "slurmctld.log", "slurmd.log"]
# asked by Debian's packages before they start a service
POLICY = Path("/usr/sbin/policy-rc.d")
PR_SET_CHILD_SUBREAPER = 36

# more CPUs than the machine may have, so that no job waits for another
CONFIGURATION = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=16000 State=UNKNOWN
PartitionName=tests Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def is_installed() -> bool:
    return all(shutil.which(program) for program in PROGRAMS)


def find_obstacle() -> str | None:
    """Say why there can be no node here; None if there can."""
    if os.geteuid() != 0:
        return "the daemons of SLURM can be started by root only"
    if not is_installed() and not shutil.which("apt-get"):
        return "SLURM is not installed, and can be installed here on Debian only"
    return None


def install_if_missing() -> None:
    """Install SLURM from Debian's packages, without a service of theirs being started."""
    if is_installed():
        return
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with _no_services():
        for arguments in (["update"], ["install", "--yes", "--no-install-recommends", *PACKAGES]):
            subprocess.run(["apt-get", "--quiet", *arguments], env=environment, check=True)


@contextlib.contextmanager
def _no_services() -> Iterator[None]:
    if POLICY.exists():  # a container's, which forbids services, or the administrator's
        yield
        return
    POLICY.write_text("#!/bin/sh\nexit 101\n")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink()


@contextlib.contextmanager
def start_node(folder: Path) -> Iterator[dict[str, str]]:
    """Start SLURM, with all its files in an empty folder, and end it and its jobs.

    Yields:
        The environment variables by which ``sbatch``, ``squeue`` and ``scancel`` find it.
    """
    configure(folder)
    environment = {"SLURM_CONF": str(folder / "slurm.conf")}
    # in a session of its own, so that Ctrl-C leaves it to end the others
    command = [sys.executable, "-m", "tests.slurm.node", folder]
    daemons = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, start_new_session=True)
    try:
        _wait_until_idle(folder, environment)
        yield environment
    finally:
        daemons.communicate()


def configure(folder: Path) -> None:
    """Write the files that the daemons read."""
    host = socket.gethostname().partition(".")[0]
    with socket.create_server(("", 0)) as one, socket.create_server(("", 0)) as other:
        ports = {"controller_port": one.getsockname()[1], "node_port": other.getsockname()[1]}
    (folder / "slurm.conf").write_text(CONFIGURATION.format(folder=folder, host=host, **ports))
    # SLURM 22 cannot disable it; the plugin for version 1 does nothing here, also where the system has version 2
    plugin = "cgroup/v1" if find_version() < (23, 11) else "disabled"
    (folder / "cgroup.conf").write_text(f"CgroupPlugin={plugin}\n")
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))


def find_version() -> tuple[int, int]:
    """Ask the daemon, which says ``slurm-wlm 22.05.8``."""
    text = subprocess.run(["slurmd", "-V"], check=True, capture_output=True, text=True).stdout
    major, minor = text.split()[-1].split(".")[:2]
    return int(major), int(minor)


def _wait_until_idle(folder: Path, environment: dict[str, str], seconds: float = 30) -> None:
    command, end = ["sinfo", "--noheader", "--format=%T"], time.monotonic() + seconds
    while True:
        done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
        if done.stdout.strip() == "idle":
            return
        if time.monotonic() > end:
            logs = "\n".join((folder / name).read_text(errors="replace") for name in LOGS if (folder / name).exists())
            raise TimeoutError(f"SLURM has not started: {done.stdout}{done.stderr}\n{logs}")
        time.sleep(0.1)


def run_daemons(folder: Path) -> None:
    """Run the daemons until the standard input ends."""
    # orphans become children of this process, in which they are found at the end
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    munge_files = [f"--{kind}-file={folder}/munge.{kind}" for kind in ("key", "pid", "seed")]
    commands = [
        ["munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *munge_files],
        ["slurmctld", "-D", "-c"],
        ["slurmd", "-D"],
    ]
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
    for command, name in zip(commands, LOGS, strict=True):
        with (folder / name).open("w") as log:
            subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no zombies
    sys.stdin.read()
    while children := psutil.Process().children(recursive=True):
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        time.sleep(0.01)


if __name__ == "__main__":
    run_daemons(Path(sys.argv[1]))
