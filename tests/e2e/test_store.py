"""The store of images: by what names they are run, who keeps them, and what removes them."""

import fcntl
import json
import os
import shutil
import socket
import time
import unittest

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
        with self.subTest("but one for another machine is"):
            self.import_hang("ours-aarch64")
            self.assert_refused(self.qvm("run", "ours"), "and no image of that name", "there is 'ours-aarch64'")

    def test_what_machine_it_is_for(self):
        self.succeed("image", "import", "--arch", "arm64", self.hang, "arm")
        self.import_hang("any")
        self.assertEqual([self.inspect(name)["architecture"] for name in ("arm", "any")], ["aarch64", None])
        def program(*words):
            done = self.qvm("run", "-q", "--dry-run", "--net", "none", *words)
            return done.stdout.split("qemu:\n")[-1].split()[0] if done.returncode == 0 else done.stderr
        self.assertEqual(program("any"), "qemu-system-x86_64")
        if shutil.which("qemu-system-aarch64"):
            for words in (["arm"], ["--arch", "aarch64", "any"]):
                self.assertEqual(program(*words), "qemu-system-aarch64")
        self.assertEqual(program("--arch", "amd64", "arm"),
                         "qvm: image 'arm': is of aarch64, and there is none of x86_64\n")

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
        with self.subTest("nothing holds the image, and what is of no use without it goes with it"):
            self.assertEqual(self.succeed("image", "rm", "demo:1"), "demo:1\n")
            self.assertEqual(os.listdir(self.host.cache / "warm"), [])
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
        self.assertEqual(self.succeed("image", "prune", "--older-than", "1h"), "")
        self.assertEqual(self.succeed("image", "prune"), "1 MiB of a download\n")
        self.succeed("image", "rm", "one")
        self.assert_sound()

    def test_of_a_name_that_cannot_be_read(self):
        """Of which image it is the name nobody knows: none is lost, and all else goes on."""
        digest = self.import_hang("one", "two")
        other = self.import_hang("gone", "three", mark=b"3")
        (self.store.path / "name/two").write_text("{")
        self.blob(other).unlink()
        broken = "qvm: image 'two': its record is not a JSON object\nhint: qvm image rm two\n"
        gone = "".join(f"qvm: image '{name}': its file is gone\nhint: qvm image rm {name}; or pull or import it again\n"
                       for name in ("gone", "three"))
        for words, said in ((("ls",), "(?m)^one "), (("inspect", "one", "two", "gone", "three"), '"name": "one"')):
            done = self.qvm("image", *words)
            self.assertEqual((done.returncode, done.stderr), (125, broken + gone))
            self.assertRegex(done.stdout, said)
        done = self.qvm("image", "verify")
        self.assertEqual((done.returncode, sorted(done.stdout.splitlines())),
                         (125, ["gone, three: its file is gone", "one: ok"]))
        self.assertRegex(done.stderr, f"^{broken}qvm: image verify: not all")
        for name in ("gone", "one"):
            os.utime(self.store.path / "name" / name, (1, 1))
        with self.subTest("no name goes that would leave an image without one"):
            done = self.qvm("image", "prune", "--older-than", "1h")
            self.assertEqual((done.returncode, done.stdout, done.stderr), (125, "", broken))
            for words in (["one"], ["-f", "one"], [f"sha256:{digest}"]):
                self.assert_refused(self.qvm("image", "rm", *words),
                                    f"image '{words[-1]}': nobody can tell whether it has another name: image 'two': its",
                                    "qvm image rm two")
            self.assertTrue(self.blob(digest).exists())
        with self.subTest("of several, those that can be are removed"):
            done = self.qvm("image", "rm", "nothing", "three")
            self.assertEqual((done.returncode, done.stdout), (125, "three\n"))
            self.assertEqual(done.stderr, "qvm: image 'nothing': there is none\nhint: qvm image ls\n")
        with self.subTest("and with -f the one of a digest, by whatever names"):
            self.assertEqual(self.succeed("image", "rm", "-f", f"sha256:{digest}"), f"sha256:{digest}\n")
            self.assertFalse(self.blob(digest).exists())
        self.assertEqual(self.succeed("image", "rm", "two", "gone"), "two\ngone\n")
        self.assert_sound()

    def test_of_an_image_that_lost_its_name(self):
        """It is known by its digest, and can be given a name again."""
        self.import_hang("one")
        image = self.inspect("one")
        text = image["digest"][:19]
        self.assertEqual(self.inspect(text), image)
        (self.store.path / "name/one").unlink()
        self.assertEqual(self.succeed("image", "verify", text), f"{text}: ok\n")
        lost = self.inspect(text)
        self.assertEqual((lost["digest"], lost["name"], lost["format"]), (image["digest"], None, None))
        file = self.host.files / "exported"
        self.addCleanup(file.unlink)
        self.succeed("image", "export", text, file)
        self.assertEqual(f"sha256:{self.sha256(file)}", image["digest"])
        self.assertEqual(self.succeed("image", "tag", text, "found"), "found\n")
        found = self.inspect("found")
        for key in ("digest", "format", "virtual_size", "size"):
            self.assertEqual(found[key], image[key])
        self.assertEqual(self.succeed("image", "prune"), "")
        self.assert_sound()

    def test_of_one_that_a_machine_may_use_that_cannot_be_read(self):
        digest = self.import_hang("one", "two")
        name = self.create("--net", "none", self.hang)
        definition = self.host.data / "vm" / name / "definition.json"
        definition.write_text('{"version": 99}')
        self.assertRegex(self.succeed("image", "ls"), "(?m)^one .* -$")
        self.assertEqual(self.succeed("image", "rm", "two"), "two\n")
        self.assertEqual(self.succeed("image", "tag", "one", "three"), "three\n")
        self.assertEqual(self.succeed("image", "rm", "three"), "three\n")
        why = f"nobody can tell which images {name} uses: read '{definition}': has version 99; this qvm knows 1$"
        for force in ([], ["-f"]):
            self.assert_refused(self.qvm("image", "rm", *force, "one"), f"image 'one': {why}", f"qvm rm {name}")
        self.assert_refused(self.qvm("image", "prune", "--older-than", "0.001"), f"image prune: {why}")
        self.assertEqual(list(self.store.names()), ["one"])
        self.succeed("rm", name)
        self.succeed("image", "rm", "one")
        self.assertFalse(self.blob(digest).exists())

    def test_by_digest(self):
        digest = self.import_hang("one", "two")
        other = self.import_hang("three", mark=b"3")
        short = f"sha256:{digest[:12]}"
        like_it = self.blob(digest[:-1] + ("1" if digest[-1] == "0" else "0"))
        like_it.touch()
        for text, why in ((short, "there are several"), ("sha256:" + "0" * 12, "there is none")):
            self.assert_refused(self.qvm("image", "rm", "-f", text), f"image '{text}': {why}", "image ls")
        like_it.unlink()
        with self.subTest("as few digits as are shown, and not none of a variable that is not set"):
            for text in ("sha256:", f"sha256:{digest[:11]}"):
                self.assert_refused(self.qvm("image", "rm", "-f", text), f"image '{text}': must have 12 to 64")
        self.assert_refused(self.qvm("image", "rm", short), f"image '{short}': has several names: one, two",
                            f"rm -f {short}")
        created = self.create("--net", "none", "one")
        self.assert_refused(self.qvm("image", "rm", "-f", short), f"'{short}': is in use by {created}$")
        self.succeed("rm", created)
        self.assertEqual(self.succeed("image", "rm", "-f", short), f"{short}\n")
        self.assertEqual(list(self.store.files("blob")), [other])
        self.assertEqual(self.succeed("image", "rm", f"sha256:{other}"), f"sha256:{other}\n")
        self.assertEqual(self.store.names(), {})
        self.assert_sound()

    def test_by_another_name_of_the_catalogue(self):
        catalogue = self.file("catalogue.json", json.dumps({"images": [
            {"name": "ours:1", "aliases": ["ours"], "url": f"file://{self.hang}"}]}).encode())
        before = ["env", f"QVM_CATALOGUE={catalogue}"]
        self.assertEqual(self.succeed("image", "pull", "-q", "ours", before=before), "ours:1\n")
        self.assertEqual(self.succeed("image", "rm", "ours", before=before), "ours:1\n")
        self.assert_sound()


    def test_of_one_while_another_has_the_lock(self):
        self.import_hang("one")
        with open(self.store.path / "lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            process = self.started("image", "rm", "one")
            process.err.expect(f"qvm: another process has '{lock.name}' locked: waiting for it", 10)
        self.assertEqual(process.wait(10), 0)
        self.assert_sound()


class ReadOnly(StoreTest):
    def setUp(self):
        super().setUp()
        self.digest = self.import_hang("one")
        self.tool("mount", "--bind", self.host.data, self.host.data)
        self.addCleanup(self.tool, "umount", self.host.data)

    def check(self, why):
        """What only reads does; the rest is refused in one line."""
        self.assertRegex(self.succeed("image", "ls"), "(?m)^one ")
        self.assertEqual(self.inspect("one")["digest"], f"sha256:{self.digest}")
        self.assertEqual(self.succeed("image", "verify"), "one: ok\n")
        file = self.host.files / "exported"
        self.succeed("image", "export", "one", file)
        self.addCleanup(file.unlink)
        self.succeed("run", "-q", "--dry-run", "--net", "none", "one")
        self.succeed("kill", self.detach("--net", "none", "one"))
        for words in (["rm", "one"], ["prune"], ["tag", "one", "two"], ["import", self.hang, "two"],
                      ["pull", "-q", f"file://{self.hang}", "two"]):
            self.assert_refused(self.qvm("image", *words), why)

    def test_on_a_file_system_that_is_read_only(self):
        self.tool("mount", "-o", "remount,bind,ro", self.host.data)
        self.check("Read-only file system")
        with self.subTest("nobody is told to remove what nobody can"):
            self.tool("mount", "-o", "remount,bind,rw", self.host.data)
            (self.store.path / "name/two").write_text("{")
            self.tool("mount", "-o", "remount,bind,ro", self.host.data)
            self.assertEqual(self.qvm("image", "ls").stderr, "qvm: image 'two': its record is not a JSON object\n")

    @unittest.skipUnless(harness.ROOTLESS, "root may write to what is anybody's")
    def test_of_another_user(self):
        self.tool("chown", "-R", "0:0", self.store.path)
        self.tool("chmod", "-R", "a+rX", self.store.path)
        self.tool("chmod", "600", self.store.path / "lock")
        self.check("Permission denied|belongs to somebody else")

    def test_without_a_lock_file(self):
        (self.store.path / "lock").unlink()
        self.tool("mount", "-o", "remount,bind,ro", self.host.data)
        self.check("Read-only file system")


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
                         ["one, other: ok", "two: its file has become another"])
        self.assertRegex(done.stderr, "^qvm: image verify: .*\nhint: .*\n$")
        self.assertEqual(self.succeed("image", "verify", "one"), "one: ok\n")
        with self.subTest("it is whole again when it is added again"):
            self.import_hang("two", mark=b"2")
            self.assertIn("two: ok", self.succeed("image", "verify"))
            blob.chmod(0o644)
            with open(blob, "r+b") as file:
                file.write(b"x")
            self.assert_refused(self.qvm("image", "export", "two", self.host.files / "x"),
                                "image 'two': its file has become another", "again")
            self.assertFalse((self.host.files / "x").exists())
        self.blob(digest).unlink()
        self.assertEqual(self.qvm("image", "verify", "one").stdout, "one: its file is gone\n")
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
        blob = self.inspect("demo:1")["path"]
        link = self.host.files / "link"
        link.symlink_to(blob)
        self.addCleanup(link.unlink)
        for target in (blob, link):
            self.assert_refused(self.qvm("image", "export", "demo:1", target),
                                f"export '{target}': is an image of qvm's store")
        with self.subTest("a machine's own disk is not replaced; else it is as private as it was"):
            file.chmod(0o600)
            inode = file.stat().st_ino
            name = self.detach("--net", "none", "--persist", file)
            self.assert_refused(self.qvm("image", "export", "demo:1", file), f"export '{file}': is in use")
            self.assertEqual(file.stat().st_ino, inode)
            self.succeed("kill", name)
            self.succeed("image", "export", "demo:1", file)
            self.assertEqual(file.stat().st_mode & 0o777, 0o600)
        self.assertEqual([name for name in os.listdir(self.host.files) if name.startswith(".")], [])


if __name__ == "__main__":
    harness.main()
