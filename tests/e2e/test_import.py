"""`qvm image import` of whatever holds a disk: compressed, of another format, over other files; and of
what was made to do harm."""

import gzip
import json
import lzma
import os
import random
import signal
import subprocess

import harness
import image_store
from test_hostile_images import FLAT, SEED, Opens

TRIES = 40  # images of each format, with bytes changed at random
FORMATS = ("vmdk", "vmdk -o subformat=streamOptimized", "vdi", "vhdx", "vpc -o force_size")


class Import(harness.Test):
    def setUp(self):
        super().setUp()
        self.store = image_store.Store(self.host)
        self.addCleanup(self.store.remove)
        self.image = self.host.files / "disk"
        self.addCleanup(self.image.unlink, missing_ok=True)

    def convert(self, format):
        """An image of that format, which boots and hangs."""
        self.tool("qemu-img", "convert", "-f", "raw", "-O", *format.split(), self.hang, self.image)
        self.host.give(self.image)
        return self.image.read_bytes()

    def take(self, *options):
        """It becomes an image of the store that holds the same disk."""
        self.assertEqual(self.succeed("image", "import", *options, self.image, "taken"), "taken\n")
        (told,) = json.loads(self.succeed("image", "inspect", "taken"))
        out = self.host.files / "exported"
        self.succeed("image", "export", "taken", out)
        self.tool("qemu-img", "compare", "-q", "-f", told["format"], "-F", "raw", out, self.hang)
        out.unlink()
        self.succeed("image", "rm", "taken")
        return told["format"]

    def refused(self, content, why):
        self.image.write_bytes(content)
        self.host.give(self.image)
        self.assert_refused(self.qvm("image", "import", self.image, "bad"), why)
        self.assertEqual(json.loads(self.succeed("image", "ls", "--json")), [])

    def test_formats(self):
        for format in FORMATS:
            with self.subTest(format):
                self.convert(format)
                self.assertEqual(self.take(), "qcow2")

    def test_compressed(self):
        for format, becomes in (("raw", "raw"), ("qcow2", "qcow2"), ("vdi", "qcow2")):
            whole = self.convert(format)
            for name, packed in (("gzip", gzip.compress(whole)), ("xz", lzma.compress(whole)),
                                 ("zstd", subprocess.run(["zstd", "-qc"], input=whole, stdout=subprocess.PIPE,
                                                         check=True).stdout)):
                with self.subTest(format=format, packed=name):
                    self.image.write_bytes(packed)
                    self.assertEqual(self.take(), becomes)

    def test_what_is_beneath(self):
        self.tool("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", self.hang, self.image)
        self.host.give(self.image)
        self.assert_refused(self.qvm("image", "import", self.image, "bad"), "it names a backing file")
        self.assertEqual(self.take("--trust-backing"), "qcow2")

    def test_names_of_other_files(self):
        canary = self.host.files / "canary"
        canary.write_bytes(harness.HANG)
        self.addCleanup(canary.unlink)
        opens = Opens(canary)
        self.addCleanup(opens.close)
        sparse = self.convert("vmdk")
        parent = sparse.replace(b"ddb.geometry.cylinders", f'parentFileNameHint="{canary}"\n#'.encode())
        without_size = sparse[:12] + bytes(8) + sparse[20:512] + FLAT.format(canary).encode().ljust(10240, b"\0")
        for content in (FLAT.format(canary).encode(), parent, without_size):
            self.refused(content, "VMDK")
            self.refused(gzip.compress(content), "VMDK")
        self.assertFalse(opens.seen(), "the canary was opened")

    def test_bombs(self):
        """Neither the disk is filled, nor does it take long."""
        zeros = lzma.compress(bytes(2 ** 24)) * 512
        self.refused(gzip.compress(zeros), "it unpacks to more than any disk would")
        self.refused(gzip.compress(zeros)[:1000], "it cannot be unpacked")

    def test_no_space(self):
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=700", "small", self.host.data], check=True)
        self.addCleanup(subprocess.run, ["umount", self.host.data], check=True)
        self.host.give(self.host.data)
        self.refused(gzip.compress(os.urandom(8 * 2 ** 20)), "No space left on device")

    def test_an_export_is_interrupted(self):
        """It ends at once, and nothing of it is left."""
        with open(self.image, "wb") as image:
            image.write(harness.HANG)
            image.truncate(2 ** 31)
        self.succeed("image", "import", self.image, "large", seconds=60)
        target = self.host.files / "exports" / "large"
        target.parent.mkdir()
        self.host.give(target.parent)
        self.addCleanup(target.parent.rmdir)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            export = self.started("image", "export", "large", target)
            fds = f"/proc/{export.pid}/fd"
            self.wait_until(lambda: any(os.path.realpath(f"{fds}/{fd}").startswith(str(target.parent))
                                        for fd in os.listdir(fds)))
            export.signal(number)
            if number == signal.SIGKILL:
                self.assertEqual(export.wait(), -number)
            else:
                self.assertEqual(export.wait(), 128 + number)
                self.assertRegex(export.err.text, f"^qvm: export '{target}': ended by signal {int(number)}")
            self.assertEqual(list(target.parent.iterdir()), [])
        self.succeed("image", "rm", "large")

    def test_random_bytes(self):
        chance = random.Random(SEED)
        for format in FORMATS:
            whole = self.convert(format)
            used = [place for place, byte in enumerate(whole) if byte][:300]
            for number in range(TRIES):
                changed = bytearray(whole)
                for _ in range(chance.choice((1, 2, 4))):
                    changed[chance.choice(used)] = chance.choice((0, 1, 0x7f, 0x80, 0xff, chance.randrange(256)))
                self.image.write_bytes(changed)
                with self.subTest(format=format, number=number):
                    done = self.qvm("image", "import", self.image, "changed", seconds=20)
                    if done.returncode == 0:
                        self.assertEqual(done.stderr, "")
                        self.succeed("image", "rm", "changed")
                    else:
                        self.assert_refused(done, "")


if __name__ == "__main__":
    harness.main()
