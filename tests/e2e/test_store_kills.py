"""SIGKILL before some system call of a pull, an import or a prune: the store is valid at once, goes
on from there, and what is left of it goes with the next prune.

8 random points of each, or QVM_POINTS=300: so many of all together."""

import os
import random
import subprocess

import calls
import harness
import image_store
import web

EACH = -(-int(os.environ.get("QVM_POINTS") or 24) // 3)


class Kills(calls.Test):
    def setUp(self):
        super().setUp()
        self.store = image_store.Store(self.host)
        self.addCleanup(self.store.remove)
        self.image = self.host.files / "image.raw"
        self.image.write_bytes(harness.HANG)
        self.host.give(self.image)
        self.addCleanup(self.image.unlink)

    def kill(self, point, words):
        """Whether it was; else it has come to its end."""
        done = subprocess.run(self.at_call(point, "kill", *words), cwd=self.host.cwd, stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, timeout=60)
        call, self.count = self.what_was_hit()
        if not call:
            self.assertEqual(done.returncode, 0, done.stderr)
        return call

    def assert_valid(self, where):
        self.assertEqual(self.store.problems(), [], where)
        self.assertEqual(self.qvm("image", "verify").returncode, 0, where)
        self.assertEqual(self.qvm("image", "ls").returncode, 0, where)

    def assert_no_orphans(self, where, but=()):
        self.assertEqual([path for path in self.store.orphans() if not path.startswith(but)], [], where)

    def try_points(self, prepare, *words, but=(), kept=()):
        """`prepare` before each; what begins with `but` may stay for the next, and the names that are
        `kept` have to."""
        prepare()
        self.assertIsNone(self.kill(calls.NEVER, words))
        total, hits = self.count, 0
        for _ in range(3 * EACH):
            prepare()
            point = random.randint(1, total)
            if call := self.kill(point, words):
                hits += 1
            where = f"killed before call {point}, {call}"
            self.assert_valid(where)
            self.assertLessEqual(set(kept), set(self.store.names()), where)
            self.qvm("image", "prune")
            self.assert_no_orphans(where, but)
            if hits == EACH:
                break
        self.assertEqual(hits, EACH)
        with self.subTest("it comes to its end"):
            prepare()
            self.assertEqual(self.qvm(*words).returncode, 0)
            self.assert_valid("at the end")
            self.qvm("image", "prune", "--older-than", "0.001")
            self.assert_no_orphans("at the end")

    def forget(self):
        """Another time there is nothing yet; but what a pull has begun stays."""
        for name in self.store.names():
            self.succeed("image", "rm", name)

    def test_import(self):
        self.try_points(self.forget, "image", "import", self.image, "one:1")

    def test_pull(self):
        nginx = web.Nginx(self.host.files)
        try:
            self.try_points(self.forget, "image", "pull", "-q", "--checksum", f"sha256:{self.sha256(self.image)}",
                            nginx.url("files/image.raw"), "one:1", but=("download/",))
        finally:
            nginx.end()

    def test_prune(self):
        number = iter(range(10**6))

        def make_old():
            """Two images that are old, one of them without a name, and one that stays."""
            for name in ("old", "old", "new"):
                with open(self.image, "r+b") as file:
                    file.seek(1024)
                    file.write(b"%d" % next(number))
                self.succeed("image", "import", self.image, name)
            os.utime(self.store.path / "name/old", (1, 1))

        self.try_points(make_old, "image", "prune", "--older-than", "1h", kept=["new"])


if __name__ == "__main__":
    harness.main()
