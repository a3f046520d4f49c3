"""What all tests need: a machine whose bf16 works."""

from vision_reference.machine import avoid_broken_amx

avoid_broken_amx()  # tests and the commands that they start inherit the choice
