"""qvm run IMAGE -- COMMAND: a corpus of commands, each in a machine of its own, and much at once.
Every third of them; all with QVM_EVERY_COMMAND."""

import concurrent.futures
import hashlib
import os
import random
import subprocess

from corpus import CORPUS, INPUT, assert_same, on_host
import harness

MIB = 1024 * 1024


class Corpus(harness.Test):
    def setUp(self):
        super().setUp()
        self.files = [str(word) for word in self.boot_files()]

    def run_command(self, *words, data=INPUT):
        command = [harness.QVM, "run", "-q", "-i", "-w", "/", "-e", "A=1 2", "-e", "B=$x", "--net", "none",
                   *self.files, "--", *words]
        return subprocess.run(command, input=data, capture_output=True, timeout=120)

    def test_as_on_the_host(self):
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            runs = [(command, pool.submit(self.run_command, "sh", "-c", command)) for command in CORPUS[::1 if os.environ.get("QVM_EVERY_COMMAND") else 3]]
            for command, run in runs:
                with self.subTest(command):
                    assert_same(self, run.result(), on_host(["sh", "-c", command]))

    def test_much_both_ways(self):
        data = random.Random(3).randbytes(64 * MIB)
        digest = hashlib.sha256(data).hexdigest()
        done = self.run_command("sh", "-c", "cat >/tmp/x && sha256sum </tmp/x >&2 && cat /tmp/x", data=data)
        self.assertEqual((done.returncode, done.stderr.decode()), (0, f"{digest}  -\n"))
        self.assertEqual(hashlib.sha256(done.stdout).hexdigest(), digest)


if __name__ == "__main__":
    harness.main()
