"""A process beside a worker of an engine, from which the worker's runs are forked.

Workers may be threads, or processes that must not have children. This one imports what runs share once, starts a run
for each connection, sends what the run reports, and ends it when the worker says so or closes the connection. It ends
with the worker.
"""

import os
import pickle
import sys
import threading
from multiprocessing import AuthenticationError, connection
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any

from lightning_znorm.compare.executors.run_process import RunProcess

_POLL_SECONDS = 1.0  # between two checks of a process whose fork server is gone
_starting = threading.Lock()  # a start sets environment variables


def serve() -> None:
    """Serve the process that has started this one; the first line that it sends is the key of connections."""
    key = bytes.fromhex(sys.stdin.readline().strip())
    with Listener(authkey=key) as listener:
        print(listener.address, flush=True)
        threading.Thread(target=_end_with_worker, daemon=True).start()
        while True:
            try:
                client = listener.accept()
            except (OSError, EOFError, AuthenticationError):
                continue
            threading.Thread(target=_perform, args=(client,), daemon=True).start()


def _end_with_worker() -> None:
    while sys.stdin.readline():
        pass
    os._exit(0)  # runs end when their fork server does


def _perform(client: Connection) -> None:
    """Perform the run that a connection asks for."""
    request: dict[str, Any] = pickle.loads(client.recv_bytes())
    folder = Path(request["folder"])
    with _starting:
        process = RunProcess(
            request["task"],
            folder,
            os.environ,
            request["threads"],
            request["processes"],
            request["name"],
            request["preload"],
        )
    try:
        while True:
            has_ended = process.has_ended()  # before the last messages are received
            for share, metrics in process.receive():
                client.send(("progress", share, metrics))
            if has_ended:
                process.end()
                result = process.result
                client.send(("done", result, "" if result else process.explain_end()))
                return
            if client in connection.wait([*process.find_waitables(), client], _POLL_SECONDS):
                return  # the worker says that nobody waits, or has ended
    except (OSError, EOFError):
        return
    finally:
        process.end()
        client.close()


if __name__ == "__main__":
    serve()
