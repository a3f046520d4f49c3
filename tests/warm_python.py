"""Runs commands in forks of this process, which imports once what each of them would import for seconds.

    python warm_python.py MODULE...      imports these, then answers requests on standard input, each a line of JSON

A request has ``command`` (a Python file and its arguments), ``processes`` (the environment of each of those that run it
side by side), ``output`` (a file for what they print) and ``cwd``. The answer is a line with their exit statuses. Where
one fails the others are ended, as torchrun does.
"""

import importlib
import json
import os
import runpy
import signal
import sys


def main() -> None:
    for name in sys.argv[1:]:
        importlib.import_module(name)
    while line := sys.stdin.readline():
        request = json.loads(line)
        numbers = {}
        for number, environment in enumerate(request["processes"]):
            child = os.fork()
            if not child:
                return run(request, environment)
            numbers[child] = number
        statuses = [0] * len(numbers)
        running = set(numbers)
        while running:
            child, status = os.wait()
            running.remove(child)
            statuses[numbers[child]] = os.waitstatus_to_exitcode(status)
            if status:
                for other in running:
                    os.kill(other, signal.SIGTERM)
        print(json.dumps(statuses), flush=True)


def run(request: dict, environment: dict[str, str]) -> None:
    """The command, in a process of its own; its exit status is the process's."""
    os.environ.clear()
    os.environ.update(environment)
    sys.path[1:1] = filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))
    os.chdir(request["cwd"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    output = os.open(request["output"], os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = request["command"]
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
