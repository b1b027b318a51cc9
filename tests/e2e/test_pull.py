"""`qvm image pull`, from servers that behave and from such that do not."""

import gzip
import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import time
import unittest

import harness
import image_store
import vm
import web
from test_bad_input import hiding_program

SIZE = 8 * 1024 * 1024


def setUpModule():
    if not all(map(shutil.which, ("nginx", "openssl", "gpg", "gpgv"))):
        raise unittest.SkipTest("nginx, openssl, gpg or gpgv is missing")
    for variable in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "CURL_CA_BUNDLE", "SSL_CERT_FILE"):
        os.environ.pop(variable, None)
        os.environ.pop(variable.upper(), None)


class Pulls(harness.Test):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.files = harness.host.base / "served"
        cls.files.mkdir(exist_ok=True)
        # It boots, and no part of it is like another.
        cls.disk = (harness.HANG[:512] + random.Random(1).randbytes(SIZE))[:SIZE]
        (cls.files / "disk.raw").write_bytes(cls.disk)
        cls.digest = hashlib.sha256(cls.disk).hexdigest()
        cls.nginx = web.Nginx(cls.files)
        cls.addClassCleanup(cls.nginx.end)
        cls.strange = web.Strange(cls.files)
        cls.addClassCleanup(cls.strange.end)

    def setUp(self):
        super().setUp()
        self.store = image_store.Store(self.host)
        self.addCleanup(self.store.remove)
        self.strange.requests.clear()
        self.strange.etag = '"first"'

    def pull(self, *words, **more):
        return self.qvm("image", "pull", *words, seconds=60, **more)

    def assert_pulled(self, done, name="disk"):
        """It is there, whole, and nothing else is."""
        self.assertEqual((done.returncode, done.stdout), (0, f"{name}\n"), done.stderr)
        self.assertEqual(self.store.names()[name]["digest"], self.digest)
        self.assert_sound()

    def assert_sound(self):
        self.assertEqual(self.store.problems(), [])
        self.assertEqual(self.store.orphans(), [])
        self.assertEqual(self.qvm("image", "verify").returncode, 0)

    def assert_failed(self, done, why, hint=None):
        """In one line, after whatever notes; and the store is as it was."""
        self.assertEqual((done.returncode, done.stdout), (125, ""), done.stderr)
        lines = [line for line in done.stderr.splitlines() if not line.startswith("hint: ")]
        self.assertRegex(lines[-1], f"^qvm: pull '.*': .*{why}")
        self.assertEqual(sum(line.startswith("qvm: pull") for line in lines), 1)
        if hint:
            self.assertRegex(done.stderr.splitlines()[-1], f"^hint: .*{hint}")
        self.assertEqual(self.store.names(), {})
        self.assertEqual(self.store.problems(), [])

    def catalogue(self, *images):
        """Words before a command, which knows these then."""
        file = self.host.files / "catalogue.json"
        file.write_text(json.dumps({"images": images}))
        self.host.give(file)
        return ["env", f"QVM_CATALOGUE={file}"]

    def write(self, name, text):
        (self.files / name).write_text(text)
        self.addCleanup((self.files / name).unlink, missing_ok=True)
        return self.nginx.url(f"files/{name}")


class Servers(Pulls):
    def test_good_ones(self):
        for path in ("files", "no-ranges", "moved", "slow"):
            with self.subTest(path):
                done = self.pull(self.nginx.url(f"{path}/disk.raw"))
                self.assert_pulled(done)
                # A line for each tenth.
                shown = [line for line in done.stderr.splitlines() if " % of 8 MiB" in line]
                self.assertLessEqual(len(shown), 10)
                self.assertRegex(shown[-1], "^qvm: disk: 100 % of 8 MiB")
                self.store.remove()

    def test_quiet(self):
        done = self.pull("-q", self.nginx.url("files/disk.raw"), "other:1")
        self.assert_pulled(done, "other:1")
        self.assertEqual(done.stderr, "")

    def test_a_file_of_this_host(self):
        self.assert_pulled(self.pull(f"file://{self.files}/disk.raw"))

    def test_no_file_of_this_host(self):
        """What would be read for ever, or waited for."""
        pipe = self.files / "a pipe"
        os.mkfifo(pipe)
        self.addCleanup(pipe.unlink)
        for url, why in (("file:///dev/zero", "is no regular file"), (f"file://{self.files}/a%20pipe", "is no regular file"),
                         (f"FILE://{self.files}", "is a directory"), ("file:///none", "Couldn't open file")):
            with self.subTest(url):
                self.assert_failed(self.pull(url), why)
                self.assertEqual(self.store.orphans(), [])

    def test_a_password(self):
        """Is for its own server, and neither shown nor kept."""
        url = self.strange.url("elsewhere/disk.raw?token=secret").replace("//", "//me:secret@")
        done = self.pull(url)
        self.assert_pulled(done)
        self.assertIn("qvm: disk: from http://127.0.0.1", done.stderr)
        self.assertNotIn("secret", done.stderr)
        self.assertEqual(self.store.names()["disk"]["source"], self.strange.url("elsewhere/disk.raw?..."))
        asked = [(headers["Host"].split(":")[0], "Authorization" in headers) for _, headers in self.strange.requests]
        self.assertEqual(asked, [("127.0.0.1", True), ("localhost", False)])
        self.store.remove()
        done = self.pull(self.nginx.url("files/none.raw?token=secret").replace("//", "//me:secret@"))
        self.assert_failed(done, "404")
        self.assertNotIn("secret", done.stderr)

    def test_a_bar_on_a_terminal(self):
        shown = self.on_terminal("image", "pull", self.nginx.url("slow/disk.raw"))
        shown.out.expect(r"disk \[=+> +\] \d+ % of 8 MiB, \d+\.\d MiB/s, \d s left", vm.SOON)
        self.assertEqual(shown.wait(), 0)
        shown.out.skip()
        self.assert_sound()

    def test_one_that_breaks_off_again_and_again(self):
        done = self.pull("--checksum", f"sha256:{self.digest}", self.strange.url("cut/disk.raw"))
        self.assert_pulled(done)
        asked = [headers.get("Range") for _, headers in self.strange.requests]
        self.assertEqual(asked, [None] + [f"bytes={SIZE // 4 * i}-" for i in (1, 2, 3)])
        self.assertRegex(done.stderr, "again in 1 s")

    def test_one_whose_file_is_another_when_it_goes_on(self):
        self.strange.etag = '"second"'
        done = self.started("image", "pull", self.strange.url("cut/disk.raw"))
        done.err.expect("again in", vm.SOON)
        self.strange.etag = '"third"'
        self.assertEqual(done.wait(60), 0, done.err.text)
        self.assertEqual([headers.get("Range") for _, headers in self.strange.requests][:3],
                         [None, f"bytes={SIZE // 4}-", f"bytes={SIZE // 4}-"])
        self.assert_sound()

    def test_one_that_never_gets_further(self):
        done = self.pull(self.strange.url("cut-at-once/disk.raw"))
        self.assert_failed(done, "transfer closed|bytes remaining")
        self.assertEqual(len(self.strange.requests), 4)

    def test_wrong_lengths(self):
        with self.subTest("more than there is"):
            self.assert_pulled(self.pull(self.strange.url("too-long/disk.raw")))
        self.store.remove()
        with self.subTest("less"):
            done = self.pull("--checksum", f"sha256:{self.digest}", self.strange.url("too-short/disk.raw"))
            self.assert_failed(done, "its checksum is not what --checksum says")
        with self.subTest("none"):
            self.assert_pulled(self.pull(self.strange.url("no-length/disk.raw")))

    def test_one_that_is_busy_at_first(self):
        done = self.pull(self.strange.url("busy/disk.raw"))
        self.assert_pulled(done)
        self.assertIn("HTTP status 503 (Service Unavailable): again in 1 s", done.stderr)

    def test_bad_ones(self):
        closed = web.free_port()
        for url, why in ((self.nginx.url("files/none.raw"), r"HTTP status 404 \(Not Found\)"),
                         (self.nginx.url("for-ever/x"), "redirects"),
                         (self.nginx.url("to-file/x"), "is redirected to 'file:///.*/disk.raw': only http and https"),
                         (f"http://127.0.0.1:{closed}/x", "Failed to connect|refused"),
                         ("http://no.such.host.example/x", "resolve")):
            with self.subTest(url):
                done = self.pull(url)
                self.assert_failed(done, why)
                self.assertNotIn("again in", done.stderr)
                self.assertEqual(self.store.orphans(), [])
        done = self.pull("ftp://me:secret@host/\x1b[2J")
        self.assert_refused(done, r"image 'ftp://host/\?\[2J': is no URL of http, https or file")

    def test_what_is_no_image(self):
        for name, text, why in (("page.html", b"<html>" * 100, "not a disk image"),
                                ("cut.qcow2", pathlib.Path(self.demo).read_bytes()[:70000], "truncated|too short")):
            with self.subTest(name):
                (self.files / name).write_bytes(text)
                self.addCleanup((self.files / name).unlink)
                done = self.pull(self.nginx.url(f"files/{name}"))
                self.assert_failed(done, why)
                self.assertNotIn(str(self.store.path), done.stderr)
                self.assertEqual(self.store.orphans(), [])

    def test_a_tool_that_cannot(self):
        """Which is no fault of the file: what came stays."""
        url = self.nginx.url("files/disk.raw")
        self.assert_failed(self.pull(url, before=self.instead_of("qemu-img", "kill -9 $$")), "qemu-img was ended by signal 9")
        self.assertEqual(len(self.store.files("download")), 2)
        self.assert_pulled(self.pull(url))
        self.assertIn(" 416 ", self.nginx.log()[-1])

    @harness.needs_root("what is installed cannot be hidden without it")
    def test_a_tool_that_is_missing(self):
        """Is told before anything comes."""
        done = self.pull(self.strange.url("files/disk.raw"), before=hiding_program("qemu-img"))
        self.assert_failed(done, "find 'qemu-img': it is not installed", "apt-get install qemu-utils")
        self.assertEqual(self.strange.requests, [])
        self.assertEqual(self.store.orphans(), [])

    def test_a_proxy(self):
        before = ["env", f"http_proxy={self.strange.url('')}"]
        self.assert_pulled(self.pull("http://images.example/files/disk.raw", before=before))
        self.assertEqual(self.strange.requests[0][0], "http://images.example/files/disk.raw")

    def test_certificates(self):
        url = self.nginx.url("files/disk.raw", secure=True)
        self.assert_failed(self.pull(url), "certificate")
        trusted = self.host.files / "certificate"
        shutil.copy(self.nginx.certificate, trusted)
        before = ["env", f"SSL_CERT_FILE={trusted}"]
        self.assert_pulled(self.pull(url, before=before))
        self.store.remove()
        with self.subTest("from https to http: for a checksum alone"):
            url = self.nginx.url("to-http/disk.raw", secure=True)
            why = "is redirected to 'http://.*/disk.raw': from https to http only with a checksum"
            self.assert_failed(self.pull(url.replace("https", "HTTPS"), before=before), why)
            self.assert_failed(self.pull(url, before=before), why)
            self.assert_pulled(self.pull("--checksum", f"sha256:{self.digest}", url, before=before))
            self.store.remove()
            (self.files / "SUMS").write_text(f"{self.digest}  disk.raw\n")
            self.addCleanup((self.files / "SUMS").unlink)
            for secure in (True, False):
                entry = {"name": "mine:1", "url": url, "checksums": self.nginx.url("files/SUMS", secure=secure),
                         "architecture": os.uname().machine}
                done = self.pull("mine:1", before=[*before, *self.catalogue(entry)])
                if secure:
                    self.assert_pulled(done, "mine:1")
                    self.store.remove()
                else:
                    self.assert_failed(done, why)


class FullDisk(Pulls):
    def setUp(self):
        super().setUp()
        self.small = self.host.base / "small"
        self.small.mkdir()
        self.addCleanup(self.small.rmdir)
        self.tool("mount", "-t", "tmpfs", "-o", "size=4M,mode=700", "small", self.small)
        self.addCleanup(self.tool, "umount", self.small)
        self.host.give(self.small)
        self.on_small = ["env", f"QVM_DATA_DIR={self.small}"]

    def downloads(self):
        return [path for path in (self.small / "image/download").iterdir() if path.suffix != ".json"]

    def test_it_is_known_before(self):
        done = self.pull(self.nginx.url("files/disk.raw"), before=self.on_small)
        self.assert_failed(done, "takes 8 MiB, and '.*' has 4 MiB left", "prune")
        self.assertEqual(self.downloads(), [])

    def test_what_cannot_go_on_does_not_stay(self):
        for path in ("no-length", "endless"):
            done = self.pull(self.strange.url(f"{path}/disk.raw"), before=self.on_small)
            self.assert_failed(done, "No space left on device", "prune")
            self.assertEqual(self.downloads(), [])

    def test_no_room_at_all(self):
        (self.small / "image").mkdir(mode=0o700)
        self.host.give(self.small / "image")
        self.tool("dd", "if=/dev/zero", f"of={self.small}/all", "bs=1M", "count=4", "status=none")
        self.assert_failed(self.pull(self.strange.url("unmeasured/disk.raw"), before=self.on_small),
                           r"write '.*\.json': No space left on device", "prune")

    def test_what_came_stays(self):
        url = self.strange.url("unmeasured/disk.raw")
        done = self.pull(url, before=self.on_small)
        self.assert_failed(done, "No space left on device", "prune")
        size = self.downloads()[0].stat().st_size
        self.assertGreater(size, SIZE // 4)
        with self.subTest("until there has to be room for something else, as the hint says"):
            self.assertEqual(self.succeed("image", "prune", before=self.on_small).count(" of a download\n"), 1)
            self.assertEqual(self.downloads(), [])
        self.pull(url, before=self.on_small)
        size = self.downloads()[0].stat().st_size
        self.tool("mount", "-o", "remount,size=64M", self.small)
        done = self.pull("--checksum", f"sha256:{self.digest}", url, before=self.on_small)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(self.strange.requests[-1][1]["Range"], f"bytes={size}-")

    def try_without_room(self, name):
        """To make an image of that file: which is no fault of the file, and it is not pulled again."""
        self.addCleanup((self.files / name).unlink)
        why = f"write to '{self.small}/image/draft': No space left on device"
        url = self.nginx.url(f"files/{name}")
        self.assert_failed(self.pull(url, before=self.on_small), why, "prune")
        self.assertEqual(len(self.downloads()), 1)
        done = self.qvm("image", "import", self.files / name, "some", before=self.on_small)
        self.assert_refused(done, f"import '{self.files / name}': {why}", "prune")
        self.tool("mount", "-o", "remount,size=64M", self.small)
        self.assertEqual(self.pull(url, before=self.on_small).returncode, 0)
        self.assertIn(" 416 ", self.nginx.log()[-1])
        self.assertEqual(self.downloads(), [])

    def test_no_room_to_unpack(self):
        (self.files / "packed.gz").write_bytes(gzip.compress(harness.HANG[:512] + b"x" * SIZE))
        self.try_without_room("packed.gz")

    def test_no_room_to_convert(self):
        raw = self.host.files / "disk.raw"
        raw.write_bytes(harness.HANG[:512] + b"x" * SIZE)
        self.addCleanup(raw.unlink)
        self.tool("qemu-img", "convert", "-O", "vmdk", "-o", "subformat=streamOptimized", raw, self.files / "disk.vmdk")
        self.try_without_room("disk.vmdk")

    def test_an_export(self):
        """For want of room elsewhere nothing is to be removed from the store."""
        self.assert_pulled(self.pull(self.nginx.url("files/disk.raw")))
        done = self.qvm("image", "export", "disk", self.small / "out")
        self.assert_refused(done, "export '.*/out': it takes 8 MiB, and '.*/small' has 4 MiB left")
        self.assertNotIn("hint: ", done.stderr)
        self.assertEqual(os.listdir(self.small), [])


class Breaks(Pulls):
    def test_an_interrupted_one_goes_on(self):
        url = self.nginx.url("slow/disk.raw")
        first = self.started("image", "pull", url)
        first.err.expect("20 %", vm.SOON)
        first.signal(signal.SIGINT)
        self.assertIn(first.wait(), (-signal.SIGINT, 130))
        self.assertEqual(self.store.names(), {})
        self.assertEqual(self.store.problems(), [])
        partial = [path for path in self.store.files("download").values() if path.suffix != ".json"]
        self.assertGreater(partial[0].stat().st_size, SIZE // 10)
        done = self.pull(url)
        self.assert_pulled(done)
        self.assertNotIn(" 10 % of", done.stderr)
        self.assertIn(" 206 ", self.nginx.log()[-1])

    def test_what_was_there_is_read_first(self):
        """Which is shown, and ends as it does anywhere."""
        url = self.nginx.url("slow/disk.raw")
        first = self.started("image", "pull", url)
        first.err.expect("10 %", vm.SOON)
        first.signal(signal.SIGKILL)
        first.wait()
        partial = next(path for path in self.store.files("download").values() if path.suffix != ".json")
        os.truncate(partial, 2 ** 34)
        shown = self.on_terminal("image", "pull", url)
        shown.out.expect(r"reading disk \[.*% of 16.0 GiB", vm.SOON)
        begun = time.monotonic()
        os.kill(shown.pid, signal.SIGINT)
        self.assertEqual(shown.wait(), 128 + signal.SIGINT)
        self.assertLess(time.monotonic() - begun, 5)

    def test_what_was_there_is_of_another_file(self):
        url = self.nginx.url("slow/changing.raw")
        changing = self.files / "changing.raw"
        changing.write_bytes(bytes(SIZE))
        self.addCleanup(changing.unlink)
        first = self.started("image", "pull", url)
        first.err.expect("20 %", vm.SOON)
        first.signal(signal.SIGKILL)
        first.wait()
        changing.write_bytes(self.disk)
        os.utime(changing, (1, 1))
        self.assert_pulled(self.pull(url), "changing")

    def test_what_was_there_is_damaged(self):
        url = self.nginx.url("slow/disk.raw")
        first = self.started("image", "pull", url)
        first.err.expect("20 %", vm.SOON)
        first.signal(signal.SIGKILL)
        first.wait()
        partial = next(path for path in self.store.files("download").values() if path.suffix != ".json")
        with open(partial, "r+b") as file:
            file.write(b"xxxx")
        done = self.pull("--checksum", f"sha256:{self.digest}", url)
        self.assert_pulled(done)
        self.assertIn("once more from the beginning", done.stderr)

    def test_two_at_once(self):
        url = self.nginx.url("slow/disk.raw")
        words = ("image", "pull", "--checksum", f"sha256:{self.digest}", url)
        first = self.started(*words)
        first.err.expect("10 %", vm.SOON)
        second = self.started(*words, "second")
        second.err.expect("another qvm pulls it", vm.SOON)
        self.assertEqual((first.wait(), second.wait()), (0, 0), second.err.text)
        self.assertIn("is here already", second.err.text)
        self.assertEqual(set(self.store.names()), {"disk", "second"})
        self.assert_sound()


class Checksums(Pulls):
    def entry(self, name, **more):
        return {"name": name, "url": self.nginx.url("files/disk.raw"), "architecture": os.uname().machine, **more}

    def test_by_hand(self):
        url = self.nginx.url("files/disk.raw")
        sha512 = hashlib.sha512(self.disk).hexdigest()
        for checksum in (f"sha256:{self.digest}", f"sha512:{sha512}", f"sha256:{self.digest.upper()}"):
            with self.subTest(checksum[:8]):
                self.assert_pulled(self.pull("--checksum", checksum, url))
                self.store.remove()
        for checksum in ("sha256:" + "0" * 64, "sha512:" + "0" * 128):
            with self.subTest(checksum[:8]):
                self.assert_failed(self.pull("--checksum", checksum, url), "its checksum is not")
                self.assertEqual(self.store.orphans(), [])
        for bad in ("md5:00", "sha256:12", "x"):
            self.assert_refused(self.pull("--checksum", bad, url), f"--checksum '{bad}': ")

    def test_lists(self):
        sha512 = hashlib.sha512(self.disk).hexdigest()
        for text in (f"{'0' * 64}  other.raw\n{self.digest}  disk.raw\n", f"{sha512} *disk.raw\n",
                     f"# a comment\nSHA256 (disk.raw) = {self.digest}\n", f"{self.digest}\n"):
            with self.subTest(text[:20]):
                before = self.catalogue(self.entry("mine:1", checksums=self.write("SUMS", text)))
                self.assert_pulled(self.pull("mine:1", before=before), "mine:1")
                self.store.remove()
        with self.subTest("of one image, by its other name"):
            sums = self.write("disk.raw.sha256", f"{self.digest}  disk-1.2.raw\n")
            self.assert_pulled(self.pull("mine:1", before=self.catalogue(self.entry("mine:1", checksums=sums))), "mine:1")
            self.store.remove()
        with self.subTest("another's"):
            before = self.catalogue(self.entry("mine:1", checksums=self.write("SUMS", f"{'0' * 64}  disk.raw\n")))
            self.assert_failed(self.pull("mine:1", before=before), "its checksum is not what .*/SUMS says", "later")
        with self.subTest("none of it"):
            before = self.catalogue(self.entry("mine:1", checksums=self.write("SUMS", f"{'0' * 64}  other.raw\n")))
            self.assert_failed(self.pull("mine:1", before=before), "/SUMS: has no checksum of 'disk.raw'")
        with self.subTest("no list"):
            before = self.catalogue(self.entry("mine:1", checksums=self.nginx.url("files/none")))
            self.assert_failed(self.pull("mine:1", before=before), "/none: HTTP status 404")

    def test_a_list_that_is_not_there_at_first(self):
        (self.files / "SUMS").write_text(f"{self.digest}  disk.raw\n")
        self.addCleanup((self.files / "SUMS").unlink)
        before = self.catalogue(self.entry("mine:1", checksums=self.strange.url("busy/SUMS")))
        done = self.pull("mine:1", before=before)
        self.assert_pulled(done, "mine:1")
        self.assertIn("HTTP status 503 (Service Unavailable): again in 1 s", done.stderr)

    def test_it_is_not_pulled_twice(self):
        sums = self.write("SUMS", f"{self.digest}  disk.raw\n")
        before = self.catalogue(self.entry("mine:1", aliases=["mine"], checksums=sums))
        self.assert_pulled(self.pull("mine", before=before), "mine:1")
        asked = len(self.nginx.log())
        done = self.pull("mine:1", "other", before=before)
        self.assert_pulled(done, "other")
        self.assertIn("is here already", done.stderr)
        self.assertEqual(len(self.nginx.log()), asked + 1)
        record = json.loads(self.succeed("image", "inspect", "mine:1"))[0]
        self.assertEqual(record["checked"], {"checksum": f"sha256:{self.digest}", "source": sums, "signature": "none"})
        self.assertEqual(record["source"], self.nginx.url("files/disk.raw"))
        # One that is damaged is.
        blob = self.store.path / "blob" / self.digest
        blob.chmod(0o644)
        blob.write_bytes(b"x" + blob.read_bytes()[1:])
        self.assertEqual(self.qvm("image", "verify").returncode, 125)
        self.assert_pulled(self.pull("mine:1", before=before), "mine:1")

    def test_signatures(self):
        home = self.host.base / "gnupg"
        home.mkdir(mode=0o700)
        self.addCleanup(shutil.rmtree, home, ignore_errors=True)
        gpg = ["gpg", "--homedir", home, "--batch", "--quiet"]
        self.addCleanup(subprocess.run, ["gpgconf", "--homedir", home, "--kill", "all"])
        self.tool(*gpg, "--passphrase", "", "--quick-generate-key", "signer@example.com")
        keyring = self.host.files / "keyring.gpg"
        self.tool(*gpg, "--output", keyring, "--export", "signer@example.com")
        sums = self.write("SUMS", f"{self.digest}  disk.raw\n")
        for how, name in (("--detach-sign", "SUMS.gpg"), ("--clearsign", "SUMS.asc")):
            self.tool(*gpg, how, "--output", self.files / name, self.files / "SUMS")
            self.addCleanup((self.files / name).unlink)
        apart = self.entry("apart", checksums=sums, signature=self.nginx.url("files/SUMS.gpg"), keyring=str(keyring))
        # Which is beside the catalogue.
        inside = self.entry("inside", checksums=self.nginx.url("files/SUMS.asc"), keyring=keyring.name)
        for entry in (apart, inside):
            with self.subTest(entry["name"]):
                before = self.catalogue(entry)
                self.assert_pulled(self.pull(entry["name"], before=before), entry["name"])
                checked = json.loads(self.succeed("image", "inspect", entry["name"]))[0]["checked"]
                self.assertEqual(checked["signature"], "good")
                self.store.remove()
        with self.subTest("what stands outside of the signed part"):
            signed = (self.files / "SUMS.asc").read_text()
            (self.files / "SUMS.asc").write_text(signed.replace(self.digest, "0" * 64, 0) + f"{'0' * 64}  disk.raw\n")
            self.assert_pulled(self.pull("inside", before=self.catalogue(inside)), "inside")
            self.store.remove()
        with self.subTest("another list"):
            self.write("SUMS", f"{self.digest}  disk.raw\n# more\n")
            done = self.pull("apart", before=self.catalogue(apart))
            self.assert_failed(done, "SUMS.gpg: its signature is not good: it is not of this text")
        with self.subTest("keys for which gpgv does not fail"):
            self.write("SUMS", f"{self.digest}  disk.raw\n")
            past = ["--faked-system-time", "20200101T000000"]
            self.tool(*gpg, *past, "--passphrase", "", "--quick-generate-key", "old@example.com", "rsa2048", "sign", "1d")
            self.tool(*gpg, "--passphrase", "", "--quick-generate-key", "lost@example.com", "rsa2048", "sign")
            for who, when, why in (("old", past, "its key has expired"), ("lost", [], "its key was revoked")):
                (self.files / "SUMS.gpg").unlink()
                self.tool(*gpg, *when, "-u", f"{who}@example.com", "--detach-sign", "--output", self.files / "SUMS.gpg",
                          self.files / "SUMS")
                if who == "lost":
                    revocation = max((home / "openpgp-revocs.d").iterdir(), key=lambda file: file.stat().st_mtime_ns)
                    revocation.write_text(revocation.read_text().replace(":-----BEGIN", "-----BEGIN"))
                    self.tool(*gpg, "--import", revocation)
                self.tool(*gpg, "--yes", "--output", keyring, "--export", f"{who}@example.com")
                done = self.pull("apart", before=self.catalogue(apart))
                self.assert_failed(done, f"SUMS.gpg: its signature is not good: {why}")
        with self.subTest("no keyring"):
            lost = {**apart, "keyring": "/none.gpg", "keyring_package": "some-keyring"}
            done = self.pull("apart", before=self.catalogue(lost))
            self.assert_pulled(done, "apart")
            self.assertIn("was not checked: there is no '/none.gpg', of some-keyring", done.stderr)
            self.store.remove()
        with self.subTest("no gpgv"):
            # PATH alone does not hide it: qvm looks where distributions have it, too.
            hide = ["unshare", "--mount", "sh", "-c", "mount --bind /dev/null $(command -v gpgv) && exec \"$@\"", "sh"]
            if not harness.ROOTLESS:
                done = self.pull("apart", before=[*hide, *self.catalogue(apart)])
                self.assert_pulled(done, "apart")
                self.assertIn("was not checked: gpgv is not installed", done.stderr)


class Runs(Pulls):
    """A name that is not there is pulled by who runs it."""

    def setUp(self):
        super().setUp()
        demo = self.files / "demo.qcow2"
        shutil.copy(self.demo, demo)
        self.addCleanup(demo.unlink)
        self.known = self.catalogue({"name": "demo:1", "aliases": ["demo"], "architecture": os.uname().machine,
                                     "url": f"http://localhost:{self.nginx.port}/files/demo.qcow2"})

    def test_run(self):
        with self.subTest("not where nothing is to be made"):
            done = self.qvm("run", "--dry-run", "--net", "none", "demo", before=self.known)
            self.assert_refused(done, "image 'demo': is not here yet", "qvm image pull demo")
        done = self.qvm("run", "--net", "none", "demo", "--", "uname", before=self.known, seconds=vm.BOOT)
        self.assertEqual((done.returncode, done.stdout), (0, "Linux\n"), done.stderr)
        self.assertRegex(done.stderr, "^qvm: no image 'demo' here: pulling it\nqvm: demo:1: from http")
        self.assertEqual(set(self.store.names()), {"demo:1"})
        with self.subTest("it is there the next time"):
            done = self.qvm("run", "-q", "--net", "none", "demo", "--", "uname", before=self.known, seconds=vm.BOOT)
            self.assertEqual((done.stdout, done.stderr), ("Linux\n", ""))
        self.assert_sound()

    def test_in_the_background_with_a_network(self):
        """Whatever libcurl has started is over when namespaces are made."""
        done = self.qvm("run", "-q", "-d", "--net", "isolated", "demo", before=self.known, seconds=60)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        name = self.killed_with_test(done.stdout.strip())
        self.assertRegex(name, "^demo-....$")
        self.assertRegex(self.succeed("ps"), f"(?m)^{name} .* demo  ")
        self.qvm("kill", name)

    def test_create(self):
        done = self.qvm("create", "--net", "none", "demo", before=self.known, seconds=60)
        self.assertEqual(done.returncode, 0, done.stderr)
        name = done.stdout.strip()
        self.addCleanup(self.qvm, "rm", "-f", name)
        self.assertRegex(self.succeed("ps", "-a"), f"(?m)^{name} .* demo  ")
        self.succeed("start", "-q", name)
        self.qvm("rm", "-f", name)


if __name__ == "__main__":
    harness.main()
