"""The store of images: by what names they are run, who keeps them, and what removes them."""

import json
import os
import shutil
import socket
import time

import harness
import image_store
import vm


class StoreTest(harness.Test):
    def setUp(self):
        super().setUp()
        self.store = image_store.Store(self.host)
        self.addCleanup(self.store.remove)
        self.addCleanup(shutil.rmtree, self.host.data / "snapshot", ignore_errors=True)

    def file(self, name, text):
        path = self.host.files / name
        path.write_bytes(text)
        self.host.give(path)
        self.addCleanup(path.unlink, missing_ok=True)
        return path

    def import_hang(self, *names, mark=b""):
        """An image that boots, under these names; another for another mark."""
        file = self.file("mark.raw", harness.HANG[:-len(mark)] + mark if mark else harness.HANG)
        for name in names:
            self.assertEqual(self.succeed("image", "import", file, name), f"{name}\n")
        return self.sha256(file)

    def inspect(self, name):
        return json.loads(self.succeed("image", "inspect", name))[0]

    def blob(self, digest):
        return self.store.path / "blob" / digest

    def assert_sound(self):
        self.assertEqual(self.store.problems(), [])
        self.assertEqual(self.store.orphans(), [])


class Import(StoreTest):
    def test_it_is_the_same_file_and_stays_so(self):
        image = self.copy_of_demo("raw", "some disk.raw")
        self.addCleanup(image.unlink)
        before = self.sha256(image)
        self.assertEqual(self.succeed("image", "import", image), "some-disk\n")
        about = self.inspect("some-disk")
        self.assertEqual(about["digest"], f"sha256:{before}")
        self.assertEqual((about["format"], about["virtual_size"], about["size"]), ("raw", 64 << 20, 64 << 20))
        self.assertEqual((about["source"], about["checked"]), (str(image), None))
        # As much on disk: holes are holes.
        self.assertLess(abs(about["disk_usage"] - image.stat().st_blocks * 512), 1 << 20)
        with open(image, "r+b") as file:
            file.write(b"written to later")
        self.assertEqual(self.sha256(about["path"]), before)
        with self.subTest("the same twice"):
            self.succeed("image", "import", about["path"], "again:1")
            self.assertEqual(len(self.store.files("blob")), 1)
        self.assert_sound()

    def test_what_is_refused(self):
        backed = self.host.files / "backed.qcow2"
        self.tool("qemu-img", "create", "-q", "-f", "qcow2", "-b", self.demo, "-F", "qcow2", backed)
        self.host.give(backed)
        self.addCleanup(backed.unlink)
        for path, why in ((self.host.files / "none", "No such file"), (self.host.files, "is a directory"),
                          (backed, "names a backing file"), (self.file("text", b"x" * 100), "not a disk image"),
                          (self.file("a.gz", b"\x1f\x8b" + bytes(1022)), "cannot be unpacked")):
            self.assert_refused(self.qvm("image", "import", path), f"'{path}': .*{why}")
        self.assert_refused(self.qvm("image", "import", self.demo, "a/b"), "image 'a/b': must be")
        self.assertEqual(self.store.names(), {})
        self.assert_sound()

    def test_a_disk_that_is_too_small(self):
        small = self.host.base / "small"
        small.mkdir()
        self.tool("mount", "-t", "tmpfs", "-o", "size=4M,mode=700", "small", small)
        self.addCleanup(small.rmdir)
        self.addCleanup(self.tool, "umount", small)
        self.host.give(small)
        done = self.qvm("image", "import", self.demo, "demo", before=["env", f"QVM_DATA_DIR={small}"])
        self.assert_refused(done, f"import '{self.demo}': it takes .* MiB, and '.*' has 4 MiB left", "prune")
        self.assertEqual(os.listdir(small / "image/draft"), [])

    def test_several_at_once(self):
        """Of different images and of the same, under different names and under one."""
        files = [self.file(f"{i}.raw", harness.HANG[:-1] + bytes([i])) for i in range(3)]
        started = [self.started("image", "import", files[i % 3], f"image:{i % 4}") for i in range(24)]
        started.append(self.started("image", "prune"))
        for process in started:
            self.assertEqual(process.wait(60), 0, process.err.text)
        self.assertEqual(self.store.problems(), [])
        self.assertEqual(set(self.store.names()), {f"image:{i}" for i in range(4)})
        self.succeed("image", "prune")
        self.assert_sound()

    def test_a_disk_without_shared_blocks(self):
        """The store is on another file system than the image."""
        other = self.host.base / "other"
        other.mkdir()
        self.tool("mount", "-t", "tmpfs", "-o", "mode=700", "other", other)
        self.addCleanup(other.rmdir)
        self.addCleanup(self.tool, "umount", other)
        self.host.give(other)
        before = ["env", f"QVM_DATA_DIR={other}"]
        self.assertEqual(self.succeed("image", "import", self.demo, "demo", before=before), "demo\n")
        self.assertEqual(self.succeed("image", "verify", before=before), "demo: ok\n")


class Names(StoreTest):
    def test_a_machine_runs_by_name(self):
        self.succeed("image", "import", self.demo, "demo:1")
        digest = self.inspect("demo:1")["digest"]
        done = self.qvm("run", "-q", "--net", "none", "demo:1", "--", "uname", seconds=vm.BOOT)
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, "Linux\n", ""))
        self.assertEqual(self.inspect("demo:1")["digest"], digest)
        self.assert_sound()

    def test_what_a_machine_shows_of_it(self):
        digest = self.import_hang("alpine:3.22")
        name = self.detach("--net", "none", "alpine:3.22")
        self.assertRegex(name, "^alpine-3-22-....$")
        self.assertRegex(self.succeed("ps"), f"(?m)^{name} .* alpine:3.22  ")
        about = self.ps()[0]
        self.assertEqual((about["image_name"], about["image"]), ("alpine:3.22", str(self.blob(digest))))
        self.assertEqual(self.inspect("alpine:3.22")["used_by"], [name])
        self.assertRegex(self.succeed("image", "ls"),
                         f"(?m)^alpine:3.22 +{digest[:12]} +raw +1 MiB +1 MiB .* ago +{name}$")
        self.succeed("kill", name)
        self.assertEqual(self.inspect("alpine:3.22")["used_by"], [])

    def test_a_file_goes_first(self):
        self.import_hang("here")
        (self.host.cwd / "here").write_bytes(b"not a disk\n" * 512)
        self.addCleanup((self.host.cwd / "here").unlink)
        self.assert_refused(self.qvm("run", "--net", "none", "here"), "open image 'here': not a disk image")
        with self.subTest("a directory does not"):
            for name in ("there", "nothing"):
                (self.host.cwd / name).mkdir()
                self.addCleanup((self.host.cwd / name).rmdir)
            self.import_hang("there")
            self.succeed("run", "-q", "--dry-run", "--net", "none", "there")
            self.assert_refused(self.qvm("run", "nothing"), "open image 'nothing': is a directory")
        name = self.detach("--net", "none", "--name", "x", self.blob(self.inspect("here")["digest"][7:]))
        self.assertEqual(self.inspect("here")["used_by"], [name])
        self.succeed("kill", name)

    def test_what_is_not_there(self):
        self.assert_refused(self.qvm("run", "nothing:1"),
                            "open image 'nothing:1': No such file or directory, and no image of that name",
                            "qvm image ls")
        self.assert_refused(self.qvm("run", "http://x/y.img"), "open image 'http://x/y.img': is a URL", "qvm image pull http")
        self.assert_refused(self.qvm("run", "./nothing"), r"open image './nothing': No such file or directory$")
        for words in (("inspect",), ("rm",), ("verify",)):
            self.assert_refused(self.qvm("image", *words, "nothing"), "image 'nothing': there is none", "qvm image ls")
        self.assert_refused(self.qvm("image", "tag", "nothing", "x"), "image 'nothing': there is none")
        self.assert_refused(self.qvm("image", "export", "nothing", "x"), "image 'nothing': there is none")
        self.assert_refused(self.qvm("image", "pull", "nothing"), "pull 'nothing': the catalogue has no image",
                            "qvm image ls --catalogue")
        self.assertFalse(self.store.path.exists() and self.store.names())

    def test_all_else_is_looked_at_before_a_download(self):
        """What would be refused when the image is there is refused before it is."""
        catalogue = self.file("catalogue.json", json.dumps({"images": [
            {"name": "ours:1", "url": f"file://{self.hang}", "architecture": "x86_64"},
            {"name": "theirs", "url": f"file://{self.hang}", "architecture": "aarch64"}]}).encode())
        before = ["env", f"QVM_CATALOGUE={catalogue}"]
        taken = self.create("--net", "none", "--name", "taken", self.hang)
        with socket.socket() as busy:
            busy.bind(("127.0.0.1", 0))
            busy.listen()
            port = busy.getsockname()[1]
            for options, why in ((["--name", taken], "--name 'taken': is in use"),
                                 (["--net", "user", "-p", f"{port}:22"], "--publish.*in use"),
                                 (["-p", f"{port}:22"], "--publish.*in use"),
                                 (["--net", "nat,subnet=10.0.0.0/30,address=10.0.1.1"], "--net nat"),
                                 (["--net", "bridge=none0"], "--net"),
                                 (["--group", "g", "--net", "nat,pool=10.0.0.0/31,subnet=10.0.0.0/31"], "group 'g'"),
                                 (["--ssh-key", "/none"], "/none"), (["--drive", "/none"], "--drive '/none'"),
                                 (["--user-data", "/none"], "/none"), (["--warm", "--tpm"], "--warm: --tpm"),
                                 (["--warm", "--net", "user", "-p", f"{port}:22"], "--publish.*in use")):
                with self.subTest(options):
                    self.assert_refused(self.qvm("run", *options, "ours:1", before=before), why)
        self.assert_refused(self.qvm("create", "--name", taken, "ours:1", before=before), "'taken': a VM of that name")
        self.assert_refused(self.qvm("create", "--drive", "/none", "ours:1", before=before), "--drive '/none'")
        self.assert_refused(self.qvm("run", "theirs", before=before), "no image of that name", "--arch aarch64")
        self.assert_refused(self.qvm("run", "--dry-run", "ours:1", before=before), "is not here yet",
                            "qvm image pull ours:1")
        self.assertEqual((self.store.names(), self.store.files("download")), ({}, {}))
        with self.subTest("and when nothing is wrong it is pulled, once"):
            done = self.qvm("run", "-d", "--net", "none", "ours:1", before=before)
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertEqual(done.stderr.count("pulling it"), 1, done.stderr)
            self.succeed("kill", done.stdout.strip())
        self.assert_sound()

    def test_a_dry_run_is_no_use(self):
        self.import_hang("one")
        os.utime(self.store.path / "name/one", (1, 1))
        self.succeed("run", "-q", "--dry-run", "--net", "none", "one")
        self.assertEqual((self.store.path / "name/one").stat().st_mtime, 1)

    def test_it_is_not_written_to(self):
        digest = self.import_hang("one")
        for image in ("one", self.blob(digest)):
            self.assert_refused(self.qvm("run", "--persist", "--net", "none", image),
                                f"--persist: '{image}' is an image of qvm's store", "qvm image export")
        self.assert_sound()

    def test_a_name_moves_and_machines_keep_their_image(self):
        first = self.import_hang("one")
        name = self.create("--net", "none", "one")
        second = self.import_hang("one", mark=b"2")
        self.assertNotEqual(first, second)
        self.assertEqual(self.store.names()["one"]["digest"], second)
        with self.subTest("nothing takes it away"):
            self.assertEqual(self.succeed("image", "prune", "--older-than", "0.001"), "image 'one'\n1 MiB of sha256:"
                             f"{second}\n")
            self.assertTrue(self.blob(first).exists())
            self.assertRegex(self.succeed("image", "ls"), f"(?m)^- +{first[:12]} +- +- +1 MiB +- +{name}$")
            listed, = json.loads(self.succeed("image", "ls", "--json"))
            self.assertEqual((listed["name"], listed["size"], listed["used_by"]), (None, 1 << 20, [name]))
        self.succeed("start", "-q", name)
        self.assertRegex(self.succeed("ps"), f"(?m)^{name} .* one  ")
        self.qvm("rm", "-f", name)
        self.assertEqual(self.succeed("image", "prune"), f"1 MiB of sha256:{first}\n")
        self.assert_sound()

    def test_tags(self):
        digest = self.import_hang("one")
        self.assertEqual(self.succeed("image", "tag", "one", "two:2"), "two:2\n")
        self.assertEqual(self.store.names()["two:2"], self.store.names()["one"])
        self.assertEqual(self.succeed("image", "ls", "-q"), "one\ntwo:2\n")
        self.assertEqual(self.succeed("image", "rm", "one"), "one\n")
        self.assertTrue(self.blob(digest).exists())
        self.succeed("image", "rm", "two:2")
        self.assertFalse(self.blob(digest).exists())
        self.assert_sound()

    def test_the_catalogue(self):
        listed = self.succeed("image", "ls", "--catalogue")
        self.assertRegex(listed, r"(?m)^debian:13 +debian, debian:trixie +https://cloud.debian.org/")
        known = json.loads(self.succeed("image", "ls", "--catalogue", "--json"))
        self.assertEqual({entry["architecture"] for entry in known}, {"x86_64", "aarch64"})
        config = self.host.files / "config"
        (config / "qvm").mkdir(parents=True)
        mine = config / "qvm/images.json"
        before = ["env", f"XDG_CONFIG_HOME={config}"]
        mine.write_text('{"images": [{"name": "mine", "aliases": ["debian"], "url": "http://localhost/x"}]}')
        self.assertRegex(self.succeed("image", "ls", "--catalogue", before=before),
                         "(?m)^mine +debian +http://localhost/x$")
        mine.write_text('{"images": [{"name": "mine"}]}')
        self.assert_refused(self.qvm("image", "ls", "--catalogue", before=before),
                            f"read catalogue '{mine}': 'mine': there is no url")
        with self.subTest("which is nobody's business who runs a file"):
            self.succeed("run", "-q", "--dry-run", "--net", "none", self.hang, before=before)
        self.assert_refused(self.qvm("image", "pull", "x", before=["env", "QVM_CATALOGUE=/none"]),
                            "read catalogue '/none': No such file or directory")


class Removal(StoreTest):
    def test_of_one_that_is_in_use(self):
        digest = self.import_hang("one")
        created = self.create("--net", "none", "one")
        with self.subTest("by a machine that was created"):
            for force in ([], ["-f"]):
                self.assert_refused(self.qvm("image", "rm", *force, "one"), f"'one': is in use by {created}$",
                                    "remove them first")
        self.qvm("rm", created)
        running = self.detach("--net", "none", "one")
        with self.subTest("by one that runs"):
            self.assert_refused(self.qvm("image", "rm", "one"), f"'one': is in use by {running}$", "rm -f one")
            self.assertEqual(self.succeed("image", "rm", "-f", "one"), "one\n")
            self.assertFalse(self.blob(digest).exists())
            self.assertEqual(self.succeed("qmp", running, "query-status").count("running"), 2)
            self.assert_refused(self.qvm("snapshot", "create", running, "ready"), "is another than when")
        self.succeed("kill", running)
        self.assert_sound()

    def test_of_one_that_a_snapshot_is_built_on(self):
        self.succeed("image", "import", self.demo, "demo:1")
        name = self.detach("--net", "none", "--wait-for", "agent", "demo:1")
        self.succeed("snapshot", "create", "-q", name, "ready", seconds=60)
        self.addCleanup(self.qvm, "snapshot", "rm", "-f", "ready")
        self.succeed("kill", name)
        self.assertRegex(self.succeed("snapshot", "ls"), "(?m)^ready .* demo:1  ")
        self.assertEqual(self.inspect("demo:1")["used_by"], ["snapshot:ready"])
        self.assert_refused(self.qvm("image", "rm", "-f", "demo:1"), "in use by snapshot:ready", "remove them first")
        self.assertEqual(self.succeed("image", "prune", "--older-than", "0.001"), "")
        done = self.qvm("run", "-q", "snapshot:ready", "--", "uname", seconds=60)
        self.assertEqual((done.stdout, done.stderr), ("Linux\n", ""))
        self.succeed("snapshot", "rm", "ready")
        self.succeed("image", "rm", "demo:1")
        self.assert_sound()

    def test_of_one_that_a_warm_start_is_built_on(self):
        self.succeed("image", "import", self.demo, "demo:1")
        self.addCleanup(shutil.rmtree, self.host.cache / "warm", ignore_errors=True)
        for name in ("demo:1", "other"):  # by any of its names it is the same machine
            done = self.qvm("run", "--warm", "--net", "none", name, "--", "uname", seconds=vm.BOOT)
            self.assertEqual((done.returncode, done.stdout), (0, "Linux\n"), done.stderr)
            self.assertEqual("booting 'demo:1' once" in done.stderr, name == "demo:1")
            self.succeed("image", "tag", "demo:1", "other")
        self.succeed("image", "rm", "other")
        self.assertEqual(self.inspect("demo:1")["used_by"], ["--warm"])
        self.assert_refused(self.qvm("image", "rm", "demo:1"), "in use by --warm$", "rm -f demo:1")
        self.assertEqual(self.succeed("image", "rm", "-f", "demo:1"), "demo:1\n")
        self.assert_sound()

    def test_of_what_was_not_used_for_long(self):
        digest = self.import_hang("old", "new")
        os.utime(self.store.path / "name/old", (1, 1))
        self.assertEqual(self.succeed("image", "prune"), "")
        self.assertEqual(self.succeed("image", "prune", "--older-than", "30d"), "image 'old'\n")
        self.assertTrue(self.blob(digest).exists())
        os.utime(self.store.path / "name/new", (1, 1))
        with self.subTest("it is used"):
            name = self.detach("--net", "none", "new")
            self.assertLess(time.time() - (self.store.path / "name/new").stat().st_mtime, 60)
            os.utime(self.store.path / "name/new", (1, 1))
            self.assertEqual(self.succeed("image", "prune", "--older-than", "30d"), "")
            self.succeed("kill", name)
        self.assertRegex(self.succeed("image", "prune", "--older-than", "30d"), f"^image 'new'\n.* of sha256:{digest}\n$")
        self.assert_sound()

    def test_of_downloads_and_drafts(self):
        self.import_hang("one")
        download, note = (self.store.path / "download" / ("0" * 64 + end) for end in ("", ".json"))
        download.parent.mkdir(mode=0o700)
        draft = self.store.path / "draft/abcdef"
        for path in (download, note, draft):
            path.write_text("x")
            self.host.give(path)
        self.host.give(download.parent)
        self.succeed("ps")
        self.assertFalse(draft.exists())
        self.assertEqual(self.succeed("image", "prune"), "")
        self.assertEqual(self.succeed("image", "prune", "--older-than", "0.001"),
                         f"image 'one'\n1 MiB of sha256:{self.sha256(self.hang)}\n1 downloads\n")
        self.assert_sound()

    def test_of_a_name_that_cannot_be_read(self):
        self.import_hang("one", "two")
        (self.store.path / "name/two").write_text("{")
        done = self.qvm("image", "ls")
        self.assertRegex(done.stdout, "(?m)^one ")
        self.assertRegex(done.stderr, "^qvm: image 'two': '.*' is not a JSON object\n$")
        self.assert_refused(self.qvm("image", "prune"), "image 'two': '.*' is not a JSON object", "qvm image rm two")
        self.assertEqual(self.succeed("image", "rm", "two"), "two\n")
        self.assert_sound()


class Contents(StoreTest):
    def test_verify(self):
        digest = self.import_hang("one", "other")
        second = self.import_hang("two", mark=b"2")
        self.assertEqual(sorted(self.succeed("image", "verify").splitlines()), ["one, other: ok", "two: ok"])
        blob = self.blob(second)
        blob.chmod(0o644)
        with open(blob, "r+b") as file:
            file.seek(1000)
            file.write(b"x")
        done = self.qvm("image", "verify")
        self.assertEqual(done.returncode, 125)
        self.assertEqual(sorted(done.stdout.splitlines()),
                         ["one, other: ok", f"two: '{blob}' has become another file"])
        self.assertRegex(done.stderr, "^qvm: image verify: .*\nhint: .*\n$")
        self.assertEqual(self.succeed("image", "verify", "one"), "one: ok\n")
        with self.subTest("it is whole again when it is added again"):
            self.import_hang("two", mark=b"2")
            self.assertIn("two: ok", self.succeed("image", "verify"))
            blob.chmod(0o644)
            with open(blob, "r+b") as file:
                file.write(b"x")
            self.assert_refused(self.qvm("image", "export", "two", self.host.files / "x"), "has become another file")
            self.assertFalse((self.host.files / "x").exists())
        self.blob(digest).unlink()
        self.assertEqual(self.qvm("image", "verify", "one").stdout, f"one: '{self.blob(digest)}' is gone\n")
        self.assert_refused(self.qvm("run", "--net", "none", "one"), "image 'one': its file is gone", "again")

    def test_export(self):
        self.succeed("image", "import", self.demo, "demo:1")
        file = self.host.files / "exported.qcow2"
        self.addCleanup(file.unlink)
        for _ in range(2):  # it replaces what is there
            self.assertEqual(self.succeed("image", "export", "demo:1", file), "")
            self.assertEqual(self.sha256(file), self.sha256(self.demo))
        self.assertEqual(file.stat().st_mode & 0o777, 0o644)
        self.tool("qemu-img", "check", "-q", file)
        for target, why in (("/none/x", "No such file or directory"), (self.store.path, "no regular file"),
                            ("/dev/null", "no regular file")):
            self.assert_refused(self.qvm("image", "export", "demo:1", target), f"export '{target}': .*{why}")
        self.assertEqual([name for name in os.listdir(self.host.files) if name.startswith(".")], [])


if __name__ == "__main__":
    harness.main()
