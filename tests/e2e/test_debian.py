"""A Debian guest, with systemd, cloud-init and a shell that is not busybox: one boot for all tests."""

import subprocess

import harness
import picture
import vm

SETTLED = 240  # seconds: cloud-init is four programs in Python, at a tenth of their speed


class Debian(harness.Test):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.before = picture.Picture(harness.host)
        subprocess.run([harness.QVM, "run", "-q", "-d", "--net", "none", "--name", "debian",
                        harness.DEBIAN], check=True, timeout=vm.SOON, stdout=subprocess.DEVNULL)

    @classmethod
    def tearDownClass(cls):
        done = subprocess.run([harness.QVM, "stop", "-t", "60", "debian"], capture_output=True,
                              text=True, timeout=90)
        assert (done.returncode, done.stdout, done.stderr) == (
            0, "debian\n", "qvm: debian: the guest powered down\n"), done
        difference = picture.difference_to(cls.before, harness.host, harness.GONE)
        assert not difference, difference
        super().tearDownClass()

    def setUp(self):
        """The host is compared at the end of the class: its guest lives on, and writes."""

    def exec(self, *words, seconds=vm.BOOT):
        """A command in the guest: its exit status and output."""
        done = self.qvm("exec", "debian", *words, seconds=seconds)
        self.assertEqual(done.stderr, "")
        return done.returncode, done.stdout

    def test_release(self):
        status, release = self.exec("cat", "/etc/os-release")
        self.assertEqual(status, 0)
        self.assertIn("\nID=debian\n", release)
        self.assertIn('\nVERSION_ID="12"\n', release)

    def test_exit_status(self):
        self.assertEqual(self.exec("sh", "-c", "echo out; exit 42"), (42, "out\n"))

    def test_cloud_init(self):
        status, told = self.exec("cloud-init", "status", "--wait", "--long", seconds=SETTLED)
        self.assertEqual(status, 0, told)
        self.assertIn("status: done", told)
        self.assertIn("DataSourceNoCloud [seed=/dev/vd", told)
        self.assertNotIn("error", told)

    def test_units(self):
        """All that were to start have, sshd among them, with keys of this guest's own."""
        self.assertEqual(self.exec("systemctl", "is-system-running", "--wait", seconds=SETTLED),
                         (0, "running\n"))
        self.assertEqual(self.exec("systemctl", "is-active", "ssh"), (0, "active\n"))
        made = "find /etc/ssh -name 'ssh_host_*_key' -newer /etc/machine-id"
        self.assertNotEqual(self.exec("sh", "-c", made), (0, ""))

    def test_root_is_the_last_partition(self):
        status, root = self.exec("findmnt", "-n", "-o", "SOURCE", "/")
        self.assertEqual(status, 0)
        status, partitions = self.exec("lsblk", "-n", "-r", "-p", "-b", "-x", "START", "-o",
                                       "NAME,TYPE", "/dev/vda")
        self.assertEqual(status, 0)
        self.assertEqual(partitions.splitlines()[-1].split(), [root.strip(), "part"])


if __name__ == "__main__":
    harness.main()
