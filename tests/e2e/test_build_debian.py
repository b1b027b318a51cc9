"""`qvm image build-debian`, with somebody else in mmdebstrap's place: the real one takes minutes, and its disk
is what test_debian.py boots."""

import signal
import unittest

import harness
from test_bad_input import hiding, hiding_program

BUILD = ("image", "build-debian")


class BuildDebian(harness.Test):
    def setUp(self):
        super().setUp()
        self.disk = self.host.cwd / "debian.qcow2"
        self.addCleanup(self._remove_cache)

    def _remove_cache(self):
        if (self.host.cache / "debian").exists():
            (self.host.cache / "debian" / "lock").unlink(missing_ok=True)
            (self.host.cache / "debian").rmdir()

    def test_what_it_is_asked_for(self):
        before = self.instead_of("mmdebstrap", 'echo "E: $*" >&2; exit 1')
        done = self.qvm(*BUILD, "--packages", "gcc,make", "--packages", "rsync", before=before)
        self.assert_refused(done, r"build 'debian.qcow2': mmdebstrap: .*--mode=root .*"
                            r"--include=linux-image-\S*,qemu-guest-agent,\S*,gcc,make,rsync ")
        self.assertFalse(self.disk.exists())

    def test_progress_and_an_error(self):
        before = self.instead_of("mmdebstrap", """
            echo 'I: running apt-get update...' >&2
            echo '0 upgraded, 1 newly installed, 0 to remove and 0 not upgraded.' >&2
            echo 'Get:1 x' >&2
            echo 'E: Unable to locate package no-such' >&2
            echo 'E: mmdebstrap failed to run' >&2
            exit 25""")
        done = self.qvm(*BUILD, "--packages", "no-such", self.disk, before=before)
        self.assertEqual(done.returncode, 125)
        self.assertEqual(done.stderr.splitlines(), [
            "qvm: reading the package lists", "qvm: downloading the essential packages: 100 %",
            f"qvm: build '{self.disk}': mmdebstrap: Unable to locate package no-such"])
        done = self.qvm(*BUILD, "-q", self.disk, before=before)
        self.assert_refused(done, "mmdebstrap: Unable to locate package no-such")

    def test_it_is_interrupted(self):
        """Nothing is left: no process, no file."""
        for number in (signal.SIGINT, signal.SIGTERM):
            before = self.instead_of(
                "mmdebstrap", 'mkdir -p "$PWD/tree/usr"; echo "I: running apt-get update..." >&2; sleep 60 & sleep 60')
            build = self.started(*BUILD, self.disk, before=before)
            self.wait_until(lambda: "reading the package lists" in build.err.text)
            build.signal(number)
            self.assertEqual(build.wait(), 128 + number)
            self.assertRegex(build.err.text, f"ended by signal {int(number)}")
            self.assertEqual([path.name for path in (self.host.cache / "debian").iterdir()], ["lock"])
            self.assertEqual(list(self.host.cwd.iterdir()), [])

    def test_what_a_killed_build_left_goes_with_the_next(self):
        before = self.instead_of("mmdebstrap", 'echo "I: running apt-get update..." >&2; sleep 60')
        build = self.started(*BUILD, self.disk, before=before)
        self.wait_until(lambda: "reading the package lists" in build.err.text)
        self.assert_refused(self.qvm(*BUILD, before=before), "another build is at work")
        build.signal(signal.SIGKILL)
        build.wait()
        self.assertEqual(len(list((self.host.cache / "debian").iterdir())), 2)
        before = self.instead_of("mmdebstrap", "exit 1")
        self.assert_refused(self.qvm(*BUILD, self.disk, before=before), "mmdebstrap: status 1")
        for left in self.host.cwd.iterdir():  # beside PATH, of the one that was killed
            left.unlink()

    def test_missing_programs(self):
        boot_code = "/usr/lib/syslinux/mbr"
        before = [*hiding(f"mount -t tmpfs none {boot_code}"), *hiding_program("mke2fs")]
        done = self.qvm(*BUILD, before=before)
        self.assert_refused(done, f"build 'debian.qcow2': not installed: mke2fs, {boot_code}/mbr.bin",
                            "apt-get install e2fsprogs syslinux-common")

    def test_missing_programs_of_a_demo_disk(self):
        before = [*hiding_program("mformat"), *hiding_program("syslinux")]
        self.assert_refused(self.qvm("image", "demo", before=before),
                            "build 'demo.qcow2': not installed: mformat, syslinux", "apt-get install mtools syslinux")
        self.addCleanup((self.host.cache / "packages").rmdir)
        self.assert_refused(self.qvm("image", "demo", "/none/demo"), "build '/none/demo': No such file or directory")

    # In the tree's directory: what packages might have put there.
    KERNELS = """
        mkdir -p etc/apt/apt.conf.d boot
        for version in 6.1.0-9 6.1.0-10; do
            echo kernel $version >boot/vmlinuz-$version
            echo initramfs $version >boot/initrd.img-$version
        done
        echo kernel >boot/vmlinuz-6.9"""

    def test_links_and_several_kernels(self):
        """No link leads to the host's files, and the newest kernel boots."""
        before = self.instead_of("mmdebstrap", f"""
            mkdir tree && cd tree {self.KERNELS}
            mkdir etc/ssh && ln -s loop loop && ln -s {self.host.files} away""")
        self.assertEqual(self.qvm(*BUILD, self.disk, before=before, seconds=60).stdout, f"{self.disk}\n")
        self.addCleanup(self.disk.unlink)
        raw = self.host.files / "raw"
        self.addCleanup(raw.unlink, missing_ok=True)
        self.tool("qemu-img", "convert", "-O", "raw", self.disk, raw)
        for file, text in (("vmlinuz", "kernel 6.1.0-10\n"), ("initrd", "initramfs 6.1.0-10\n")):
            self.tool("mcopy", "-n", "-i", f"{raw}@@1048576", f"::{file}", self.host.files / file)
            self.assertEqual((self.host.files / file).read_text(), text)
            (self.host.files / file).unlink()

    def test_a_link_in_place_of_a_directory(self):
        key = self.host.files / "ssh_host_key"
        key.touch()
        self.addCleanup(key.unlink)
        before = self.instead_of("mmdebstrap", f"""
            mkdir tree && cd tree {self.KERNELS}
            ln -s {self.host.files} etc/ssh""")
        self.assert_refused(self.qvm(*BUILD, "-q", self.disk, before=before), "a package has made /etc/ssh a link")
        self.assertTrue(key.exists())
        self.assertEqual(list(self.host.cwd.iterdir()), [])

    @unittest.skipUnless(harness.ROOTLESS, "root has all ids")
    def test_without_ranges_of_ids(self):
        done = self.qvm(*BUILD, before=hiding_program("newuidmap"))
        self.assert_refused(done, "build 'debian.qcow2': its files belong to many users", "uidmap")


if __name__ == "__main__":
    harness.main()
