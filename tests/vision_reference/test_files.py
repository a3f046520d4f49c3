"""Locks on files."""

import os
import signal

from vision_reference.files import try_lock


def test_a_lock_ends_with_the_process_that_took_it_though_its_workers_live_on(tmp_path):
    read, write = os.pipe()
    owner = os.fork()
    if owner == 0:
        file = (tmp_path / "lock").open("a")
        assert try_lock(file)
        worker = os.fork()
        if worker == 0:
            file.write("not here")
            file.flush()
            signal.pause()
        os.write(write, str(worker).encode())
        signal.pause()
    worker = int(os.read(read, 20))
    with (tmp_path / "lock").open("a") as file:
        assert not try_lock(file)
    os.kill(owner, signal.SIGKILL)
    os.waitpid(owner, 0)
    try:
        with (tmp_path / "lock").open("a") as file:
            assert try_lock(file)
    finally:
        os.kill(worker, signal.SIGKILL)
    assert (tmp_path / "lock").read_text() == ""
