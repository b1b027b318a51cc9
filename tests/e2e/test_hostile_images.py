"""Images that somebody made to do harm: each ends in one line or boots, within seconds, and no file is
opened that it names."""

import ast
import ctypes
import gzip
import lzma
import os
import random
import re
import select
import socket
import stat
import unittest

import harness

QUICK = 10  # seconds
SEED = 20260131
RANDOM = 150  # images of each kind, with bytes changed at random
BOOTED = 6  # of those of each kind that are taken

# Of qcow2's header (docs/interop/qcow2.txt of QEMU's): offset and width.
FIELDS = {"version": (4, 4), "backing_file_offset": (8, 8), "backing_file_size": (16, 4), "cluster_bits": (20, 4),
          "size": (24, 8), "crypt_method": (32, 4), "l1_size": (36, 4), "l1_table_offset": (40, 8),
          "refcount_table_offset": (48, 8), "refcount_table_clusters": (56, 4), "nb_snapshots": (60, 4),
          "snapshots_offset": (64, 8), "incompatible_features": (72, 8), "compatible_features": (80, 8),
          "autoclear_features": (88, 8), "refcount_order": (96, 4), "header_length": (100, 4),
          "compression_type": (104, 1), "extension_type": (112, 4), "extension_length": (116, 4)}

FLAT = """# Disk DescriptorFile
version=1
CID=11111111
parentCID=ffffffff
createType="monolithicFlat"
RW 2048 FLAT "{}" 0
"""


def values(width):
    most = 2 ** (8 * width) - 1
    return [v for v in (0, 1, 2, 7, 22, 512, 65535, 2 ** 31, 2 ** 40, most // 2, most - 511, most) if 0 <= v <= most]


def with_field(image, field, value):
    offset, width = FIELDS[field]
    return image[:offset] + value.to_bytes(width, "big") + image[offset + width:]

# What a program that was taken over would try. Says what was not refused.
WORST = """
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
parent, file = os.getppid(), "{file}".encode()
tries = dict(chmod=(90, file, 0o777), chown=(92, file, 0, 0), utimes=(235, file, None), truncate=(76, file, 0),
             setxattr=(188, file, b"user.x", b"x", 1, 0), fchmodat2=(452, -100, file, 0o777, 0),
             kill=(62, parent, 0), tgkill=(234, parent, parent, 0), pidfd_open=(434, parent, 0),
             ptrace=(101, 16, parent, 0, 0), process_vm_readv=(310, parent, None, 0, None, 0, 0),
             io_uring_setup=(425, 1, None), socket=(41, 1, 1, 0), mount=(165, b"x", b"/", b"tmpfs", 0, None),
             fork=(57,), clone=(56, 17, 0, 0, 0, 0), unshare=(272, 0x10000000), bpf=(321, 0, None, 0), keyctl=(250, 0, 0, 0, 0, 0))
done = []
for name, words in tries.items():
    if libc.syscall(*words) >= 0 or ctypes.get_errno() != errno.EPERM:
        done.append(name)
os.write(2, (" ".join(done) or "all was refused").encode())
os._exit(1)
"""


class Opens:
    """Tells whether anybody opened a file (inotify)."""

    def __init__(self, path):
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.inotify_init1(os.O_CLOEXEC)
        in_open = 0x20
        if self._fd < 0 or self._libc.inotify_add_watch(self._fd, os.fsencode(path), in_open) < 0:
            raise OSError(ctypes.get_errno(), "inotify")

    def seen(self):
        if not select.select([self._fd], [], [], 0)[0]:
            return False
        return bool(os.read(self._fd, 65536))

    def close(self):
        os.close(self._fd)


def has_landlock():
    create_ruleset, version = 444, 1
    return ctypes.CDLL(None).syscall(create_ruleset, None, 0, version) > 0


class HostileImages(harness.Test):
    def setUp(self):
        super().setUp()
        self.image = self.host.files / "hostile"
        self.canary = self.host.files / "canary"
        self.canary.write_bytes(harness.HANG)
        self.addCleanup(self.canary.unlink)
        self.addCleanup(self.image.unlink, missing_ok=True)
        self.opens = Opens(self.canary)
        self.addCleanup(self.opens.close)

    def commands(self):
        """Whatever takes an image, without a guest that boots from it."""
        yield "run", "-q", "--dry-run", "--net", "none", self.image
        yield "run", "-q", "--dry-run", "--net", "none", "--trust-backing", self.image
        yield "run", "-q", "--dry-run", "--net", "none", "--drive", self.image, self.hang
        yield "create", "--name", "hostile", "--net", "none", self.image

    def make(self, *words, size=()):
        """An image of qemu-img's."""
        self.image.unlink(missing_ok=True)
        self.tool("qemu-img", *words, self.image, *size)
        return self.image.read_bytes()

    def valid(self, *options):
        """A qcow2 image that boots."""
        return self.make("convert", "-f", "raw", "-O", "qcow2", *options, self.hang)

    def write(self, content):
        self.image.write_bytes(content)
        self.host.give(self.image)

    def run_command(self, words):
        """It ends in time, and what it says is one line."""
        done = self.qvm(*words, seconds=QUICK)
        if done.returncode == 125:
            self.assert_refused(done, "")
        else:
            self.assertEqual((done.returncode, done.stderr), (0, ""))
        if words[0] == "create" and done.returncode == 0:
            self.succeed("rm", "hostile")
        self.assertFalse(self.opens.seen(), "the canary was opened")
        return done

    def refused(self, content, why):
        self.write(content)
        for words in self.commands():
            with self.subTest(" ".join(map(str, words))):
                self.assert_refused(self.run_command(words), why)

    def boot(self):
        """It ends by itself or is ended, and QEMU does not crash."""
        done = self.qvm("run", "-q", "--net", "none", "-m", "64M", "--timeout", "1s", self.image, seconds=QUICK)
        self.assertIn(done.returncode, (0, 123, 124, 125), done.stderr)
        self.assertNotRegex(done.stderr, "died: signal")
        for line in done.stderr.splitlines():
            self.assertRegex(line, "^(qvm|hint): ")
        self.assertFalse(self.opens.seen(), "the canary was opened")

    # --- what names other files -----------------------------------------------------------------

    def test_a_backing_file(self):
        self.write(self.with_backing(str(self.canary)))
        for words in self.commands():
            if "--trust-backing" not in words:
                self.assert_refused(self.run_command(words), f"it names a backing file, {self.canary}")

    def test_a_backing_file_that_is_none(self):
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            for name in (f'json:{{"driver":"file","filename":"{self.canary}"}}', f"file:{self.canary}",
                         f"nbd://127.0.0.1:{port}/x", f"nbd:127.0.0.1:{port}", f"http://127.0.0.1:{port}/x",
                         f"fat:{self.host.files}", "blkdebug::x"):
                self.refused(self.with_backing(name), "its backing file")
            self.assertEqual(select.select([server], [], [], 0)[0], [], "somebody connected")

    def with_backing(self, name):
        image = self.valid("-o", "cluster_size=65536")
        place = 1024
        image = with_field(with_field(image, "backing_file_offset", place), "backing_file_size", len(name))
        return image[:place] + name.encode() + image[place + len(name):]

    def test_a_name_that_is_elsewhere(self):
        for offset, size in ((2 ** 40, 5), (1024, 2 ** 31), (1024, 1024), (65530, 100), (2 ** 64 - 1, 2)):
            image = with_field(self.valid(), "backing_file_offset", offset)
            self.refused(with_field(image, "backing_file_size", size), "backing file")

    def test_a_data_file(self):
        data = self.host.files / "nobody"  # as long a name as the canary's
        named = self.make("create", "-q", "-f", "qcow2", "-o", f"data_file={data},data_file_raw=on", size=("1M",))
        data.unlink()
        self.assertIn(bytes(data), named)
        self.refused(named.replace(bytes(data), bytes(self.canary)), "data file")

    def test_a_vmdk_with_its_data_elsewhere(self):
        sparse = self.make("convert", "-f", "raw", "-O", "vmdk", self.hang)
        parent = sparse.replace(b"ddb.geometry.cylinders", f'parentFileNameHint="{self.canary}"\n#'.encode())
        flat = sparse.replace(b'createType="monolithicSparse"', b'createType="monolithicFlat"\n#')
        # QEMU takes the descriptor at its word where the header has no size.
        without_size = sparse[:12] + bytes(8) + sparse[20:512] + FLAT.format(self.canary).encode().ljust(10240, b"\0")
        for content in (FLAT.format(self.canary).encode(), FLAT.format(self.canary).encode().ljust(65536, b"\n"),
                        parent, flat, without_size, b"COWD" + sparse[4:]):
            self.refused(content, "VMDK|vmdk|another")

    def test_a_comment_before_the_descriptor(self):
        """QEMU's own guess would be VMDK; it is not asked to guess."""
        self.refused(b"# a comment\n" + FLAT.format(self.canary).encode().replace(b"# Disk DescriptorFile\n", b""),
                     "not a disk image")

    def test_other_formats(self):
        for format in ("vdi", "vhdx", "vpc", "qed", "parallels"):
            self.refused(self.make("convert", "-f", "raw", "-O", format, self.hang), f"its format is {format}")

    # --- numbers --------------------------------------------------------------------------------

    def test_each_field(self):
        image = self.valid("-o", "cluster_size=4096")
        taken = []
        for field, (_, width) in FIELDS.items():
            for value in values(width):
                with self.subTest(field=field, value=hex(value)):
                    self.write(with_field(image, field, value))
                    words = next(self.commands())
                    if self.run_command(words).returncode == 0:
                        taken.append((field, value))
        # Those that are as before, or mean nothing.
        self.assertLessEqual({"compatible_features", "autoclear_features"}, {field for field, _ in taken})
        numbers = {"cluster_bits", "size", "l1_size", "l1_table_offset", "refcount_table_offset",
                   "refcount_table_clusters", "nb_snapshots", "refcount_order", "header_length"}
        self.assertEqual([(field, value) for field, value in taken if field in numbers and value >= 2 ** 31], [])
        for field, value in random.Random(SEED).sample(taken, BOOTED):
            with self.subTest("boot", field=field, value=hex(value)):
                self.write(with_field(image, field, value))
                self.boot()

    def test_absurd_sizes(self):
        image = self.valid()
        for field, value, why in (("cluster_bits", 8, "cluster size"), ("cluster_bits", 22, "cluster size"),
                                  ("size", 2 ** 63, "size"), ("size", 2 ** 60, "L1 table"), ("size", 0, "empty"),
                                  ("l1_size", 2 ** 25, "L1 table"), ("l1_size", 0, "L1 table"),
                                  ("l1_table_offset", 2 ** 50, "truncated"),
                                  ("refcount_table_clusters", 2 ** 20, "refcount table"),
                                  ("refcount_order", 7, "refcount width"), ("nb_snapshots", 2 ** 20, "snapshots"),
                                  ("incompatible_features", 2 ** 40, "features"), ("crypt_method", 1, "encrypted"),
                                  ("header_length", 2 ** 31, "length of its header"), ("version", 1, "version")):
            with self.subTest(field, value=value):
                self.refused(with_field(image, field, value), why)

    def test_random_bytes(self):
        chance = random.Random(SEED)
        for options in (("-o", "cluster_size=512"), ("-o", "cluster_size=512,compat=0.10"), ("-c",)):
            image = self.valid(*options)
            tables = min(len(image), 8192)
            booted = 0
            for number in range(RANDOM):
                changed = bytearray(image)
                for _ in range(chance.choice((1, 2, 8))):
                    place = chance.choice((chance.randrange(112), chance.randrange(tables)))
                    changed[place] = chance.choice((0, 1, 0x7f, 0x80, 0xff, chance.randrange(256)))
                with self.subTest(options=options, number=number):
                    self.write(bytes(changed))
                    if self.run_command(next(self.commands())).returncode == 0 and booted < BOOTED and number % 5 == 0:
                        booted += 1
                        self.boot()

    def test_an_end_that_is_missing(self):
        image = self.valid("-o", "cluster_size=512")
        for size in (0, 3, 4, 71, 103, 511, 512, len(image) // 2, len(image) - 1024):
            self.write(image[:size])
            self.assert_refused(self.run_command(next(self.commands())), "")

    # --- what is packed -------------------------------------------------------------------------

    def test_what_is_compressed(self):
        for content in (gzip.compress(harness.HANG), lzma.compress(harness.HANG)):
            self.refused(content, "compressed")

    # --- qemu-img itself ------------------------------------------------------------------------

    def said_by(self, script, before=()):
        """What a qemu-img that is this script says to an image that is taken."""
        self.write(self.valid())
        done = self.qvm("run", "-q", "--net", "none", self.image,
                        before=[*before, *self.instead_of("qemu-img", script)])
        self.assert_refused(done, "")
        return done.stderr.strip().removeprefix(f"qvm: open image '{self.image}': ")

    @unittest.skipUnless(has_landlock(), "this kernel has no Landlock")
    def test_what_qemu_img_opens(self):
        self.assertEqual(self.said_by(f"exec cat {self.canary} >&2"), f"cat: {self.canary}: Permission denied")

    def test_limits_of_qemu_img(self):
        seconds = "ulimit -t >&2; exit 1"
        self.assertEqual(self.said_by("ulimit -d >&2; exit 1"), "1048576")
        self.assertEqual(self.said_by(seconds), "10")
        self.assertEqual(self.said_by(seconds, ["sh", "-c", 'ulimit -t 5; exec "$@"', "sh"]), "5")

    def test_what_qemu_img_does(self):
        """Whatever an image makes it do."""
        self.assertEqual(self.said_by(f"exec /usr/bin/python3 -IS - <<'END'\n{WORST.format(file=self.canary)}\nEND"), "all was refused")
        self.assertEqual(stat.S_IMODE(self.canary.stat().st_mode), 0o644)

    @harness.needs_root("a user without privilege has no ids to give up")
    def test_who_qemu_img_is(self):
        """Nobody, who may read any file, and write to none of anybody's."""
        script = "exec /usr/bin/python3 -IS -c 'import os; os.write(2, str((os.getresuid(), os.getgroups())).encode()); os._exit(1)'"
        uid, groups = ast.literal_eval(self.said_by(script))
        self.assertGreaterEqual(min(uid), 0x70000000)
        self.assertEqual(groups, [])
        self.image.chmod(0o600)
        os.chown(self.image, 1234, 1234)
        self.succeed("run", "-q", "--dry-run", "--net", "none", self.image)


if __name__ == "__main__":
    harness.main()
