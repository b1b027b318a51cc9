"""qvm with something happening to its supervisor at one of its system calls: see at_call.cpp."""

import os
import pathlib
import re

import harness
import picture

EVERY_POINT = bool(os.environ.get("QVM_EVERY_POINT"))
GONE = 2  # seconds
NEVER = 10**6
# All but what the next qvm command puts back: the run directory, and the uplink's forwarding.
AT_ONCE = ("links", "addresses", "routes", "policy rules", "nft ruleset", "network namespaces",
           "processes", "cache directory", "data directory", "working directory", "mounts",
           "deleted files", "disk space", "abstract sockets", "sockets", "cgroups")
NUMBERS = {name: int(number) for name, number in re.findall(
    r"#define __NR_(\w+) (\d+)",
    pathlib.Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h").read_text())}
NAMES = {number: name for name, number in NUMBERS.items()}


class Test(harness.Test):
    @property
    def report(self):
        return self.host.files / "report"

    def at_call(self, number, action, *words, forked=False):
        """The command that does it."""
        options = ["--forked"] if forked else []
        return [*harness.CALLER, harness.AT_CALL, str(number), action, self.report, *options, "--",
                harness.PROGRAM, *map(str, words)]

    def what_was_hit(self):
        """The call's name, or nothing when there were fewer; its number, or how many there were."""
        count, call = self.report.read_text().split()
        return (NAMES[int(call)] if call != "-" else None), int(count)

    def assert_nothing_left(self, before, what):
        """What the kernel takes back goes at once, and the rest with the next qvm command."""
        self.assertEqual(picture.difference_to(before, self.host, GONE, AT_ONCE), "", what)
        if before.diff(picture.Picture(self.host)):
            self.sweep()
            self.assertEqual(picture.difference_to(before, self.host, GONE), "", what)
