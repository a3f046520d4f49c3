"""What all tests need: a machine whose bf16 works, and commands that start without compiling this project anew."""

import os
import signal
import sys

from vision_reference.machine import avoid_broken_amx

avoid_broken_amx()  # tests and the commands that they start inherit the choice
# What is started in the background of a script ignores Ctrl-C, and so would all that it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Many containers forbid to write bytecode: there each command would compile what it imports of this project.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
