"""What is written to the image, and the other ways to boot."""

import json

import harness
import vm

LAST_SECTOR = 64 * 2048 - 1  # of the demo disk, 64 MiB; no file reaches there


def write_last_sector(vm, text):
    said, status = vm.sh(f"echo {text} | dd of=/dev/vda bs=512 seek={LAST_SECTOR} conv=fsync 2>&1")
    assert status == 0, said


def read_last_sector(vm):
    return vm.sh(f"dd if=/dev/vda bs=512 skip={LAST_SECTOR} 2>/dev/null | tr -d '\\000'")[0].strip()


class Images(harness.Test):
    def boot_fast(self, *options):
        vm = self.start("-q", "--net", "none", *self.boot_files(), *options)
        vm.wait_for_prompt()
        return vm

    def test_persist_writes_a_raw_image(self):
        image = self.copy_of_demo("raw", "persist.raw")
        self.addCleanup(image.unlink)
        vm = self.boot_fast("--persist", image)
        write_last_sector(vm, "marker-of-raw")
        self.power_off(vm)
        with open(image, "rb") as file:
            file.seek(LAST_SECTOR * 512)
            self.assertEqual(file.read(512).rstrip(b"\0"), b"marker-of-raw\n")

    def test_persist_writes_a_qcow2_image_and_a_plain_run_does_not(self):
        image = self.copy_of_demo("qcow2", "persist.qcow2")
        self.addCleanup(image.unlink)
        vm = self.boot_fast("--persist", image)
        write_last_sector(vm, "marker-of-qcow2")
        self.power_off(vm)
        before = self.sha256(image)
        vm = self.boot_fast(image)
        self.assertEqual(read_last_sector(vm), "marker-of-qcow2")
        write_last_sector(vm, "written-to-the-overlay")
        self.assertEqual(read_last_sector(vm), "written-to-the-overlay")
        self.assertIn("disk space", self.diff())
        self.power_off(vm)
        self.assertEqual(self.sha256(image), before)

    def test_a_larger_disk(self):
        """Its new end is the overlay's alone."""
        image = self.copy_of_demo("raw", "small.raw")
        self.addCleanup(image.unlink)
        look = ("cat /sys/block/vda/size; echo kept | dd of=/dev/vda bs=512 seek=262143 conv=fsync "
                "2>/dev/null; dd if=/dev/vda bs=512 skip=262143 2>/dev/null | head -n 1")
        files = ["--net", "none", *self.boot_files(), "--disk-size", "128M", image]
        done = self.qvm("run", "-q", *files, "--", "sh", "-c", look, seconds=60)
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, "262144\nkept\n", ""))
        self.assertEqual(image.stat().st_size, 64 * 1024 * 1024)
        with self.subTest("created"):
            self.succeed("create", "--name", "large", *files)
            self.addCleanup(self.qvm, "rm", "-f", "large")
            self.succeed("start", "-q", "large")
            done = self.qvm("exec", "large", "sh", "-c", look, seconds=60)
            self.assertEqual((done.stdout, done.stderr), ("262144\nkept\n", ""))
            self.assertEqual(json.loads(self.succeed("inspect", "large"))[0]["disk"]["virtual_size"], 128 * 1024 * 1024)
        with self.subTest("a smaller one"):
            for command in (("run", "-q"), ("create",)):
                done = self.qvm(*command, "--disk-size", "10M", image)
                self.assert_refused(done, "--disk-size 10M: the image has 64 MiB already")
        self.assert_refused(self.qvm("run", "--persist", "--disk-size", "1G", image), "--disk-size")

    def test_drives(self):
        raw, qcow2 = self.host.files / "data.raw", self.host.files / "more.qcow2"
        raw.write_bytes(b"from the host\n".ljust(1024 * 1024, b"\0"))
        self.tool("qemu-img", "create", "-q", "-f", "qcow2", qcow2, "8M")
        for file in (raw, qcow2):
            self.host.give(file)
            self.addCleanup(file.unlink)
        files = ["-q", "--net", "none", *self.boot_files()]

        def look(command, *drives):
            words = [word for drive in drives for word in ("--drive", drive)]
            return self.qvm("run", *files, *words, "--", "sh", "-c", command, seconds=60)

        done = look("head -n 1 /dev/vda; echo x >/dev/vda; cat /sys/block/vdb/size /sys/block/vdb/serial; "
                    "echo kept >/dev/vdb && sync", f"{raw}:ro", qcow2)
        self.assertEqual(done.stdout, "from the host\n16384\nmore")
        self.assertIn("not permitted", done.stderr)
        with self.subTest("it is the file that was written"):
            done = look("head -c 5 /dev/vda; head -c 3 /dev/vdb", f"{qcow2}:ro", f"{qcow2}:ro:format=raw")
            self.assertEqual((done.stdout, done.stderr), ("kept\nQFI", ""))
        with self.subTest("the same file twice"):
            self.assert_refused(look("true", qcow2, f"{qcow2}:ro"), "--drive.*another disk")
        with self.subTest("what a guest wrote into a raw disk names no file of the host"):
            self.tool("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", raw, qcow2)
            self.assert_refused(look("true", qcow2), "--drive")
            self.assertEqual(look("head -c 3 /dev/vda", f"{qcow2}:format=raw").stdout, "QFI")
        with self.subTest("refused"):
            for drive, why in ((self.host.files / "none", "No such file"), (f"{raw}:format=qcow2", "is no qcow2"),
                               (":ro", "must be FILE")):
                self.assert_refused(self.qvm("run", "--drive", drive, self.demo), f"--drive.*{why}")

    def test_persist_locks_the_image(self):
        image = self.host.files / "locked.raw"
        image.write_bytes(harness.HANG)
        self.addCleanup(image.unlink)
        vm = self.start("-q", "--net", "none", "--persist", image)
        vm.out.expect(harness.STARTED, 60)
        for more in (["--persist"], []):
            with self.subTest(more):
                done = self.qvm("run", "-q", "--net", "none", *more, image)
                self.assert_refused(done, f"'{image}'.*(lock|in use|another process)")
        self.interrupt(vm)
        self.assertEqual(image.read_bytes(), harness.HANG)

    def test_two_plain_runs_share_an_image(self):
        vms = [self.start("-q", "--net", "none", self.hang) for _ in range(2)]
        for vm in vms:
            vm.out.expect(harness.STARTED, 60)
        for vm in vms:
            self.interrupt(vm)

    def test_what_is_beneath_a_trusted_image(self):
        """A raw disk below an image below the image; its owner alone may read each."""
        lowest = self.copy_of_demo("raw", "lowest.raw")
        middle, top = self.host.files / "middle.qcow2", self.host.files / "top.qcow2"
        self.tool("qemu-img", "create", "-q", "-f", "qcow2", "-b", lowest.name, "-F", "raw", middle)
        self.tool("qemu-img", "create", "-q", "-f", "qcow2", "-b", middle.name, "-F", "qcow2", top)
        for path in (lowest, middle, top):
            path.chmod(0o600)
            self.host.give(path)
            self.addCleanup(path.unlink)
        self.assert_refused(self.qvm("run", "--net", "none", top), "top.qcow2': it names a backing")
        before = [self.sha256(path) for path in (lowest, middle, top)]
        done = self.qvm("run", "-q", "--net", "none", "--trust-backing", top, "--", "true",
                        seconds=vm.BOOT)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertEqual([self.sha256(path) for path in (lowest, middle, top)], before)

    def test_kernel_initrd_append(self):
        words = self.boot_files()
        vm = self.start("-q", "--net", "none", *words[:-1], "console=ttyS0 quiet word=a,b 'two words'",
                        "--qemu-arg=-smbios", "--qemu-arg=type=1,serial=from-qemu-arg")
        vm.wait_for_prompt()
        self.assertIn("console=ttyS0 quiet word=a,b 'two words'", vm.sh("cat /proc/cmdline")[0])
        self.assertEqual(vm.sh("cat /sys/class/dmi/id/product_serial")[0].strip(), "from-qemu-arg")
        self.assertNotEqual(vm.sh("ls /dev/vda")[1], 0)
        self.power_off(vm)


if __name__ == "__main__":
    harness.main()
