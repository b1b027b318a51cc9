"""--wait-for: how far a guest has to have come; and the seed that cloud-init finds."""

import json
import subprocess

import detached
import harness


class Ready(detached.Test):
    def wait_for(self, *stages, options=(), seconds=60):
        words = [word for stage in stages for word in ("--wait-for", stage)]
        return self.qvm("run", "-q", "-d", "--net", "isolated", *words, *options, *self.boot_files(),
                        seconds=seconds)

    def test_stages(self):
        """Detaching leaves when the last is reached; the times of all are there."""
        timings = self.host.files / "timings.json"
        done = self.wait_for("agent", "log:^demo: busybox", options=("--name", "ready", f"--timings={timings}"))
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, "ready\n", ""))
        phases = {phase["name"]: phase["ms"] for phase in json.loads(timings.read_text())["phases"]}
        self.assertGreaterEqual(phases["guest-ready"], max(phases["agent"], phases["log:^demo: busybox"]))
        self.assertTrue(self.inspect("ready")["agent"])

    def test_a_port_opens(self):
        started = subprocess.Popen([harness.QVM, "run", "-q", "-d", "--net", "isolated", "--name", "port",
                                    "--wait-for", "tcp:80", *map(str, self.boot_files())],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.addCleanup(started.wait, 60)
        detached.wait_for(lambda: self.qvm("exec", "port", "true").returncode == 0, 60)
        self.assertIsNone(started.poll())
        self.succeed("exec", "port", "sh", "-c", "setsid nc -l -p 80 >/dev/null 2>&1 &")
        self.assertEqual(started.communicate(timeout=60), ("port\n", ""))

    def test_the_error_names_the_stage(self):
        for stage, why in (("ssh", r"phase 'ssh': 192\.168\.26\.10 port 22: (Connection refused|no answer)"),
                           ("log:never", "phase 'log:never': no line of the console fitted")):
            with self.subTest(stage):
                done = self.wait_for(stage, options=("--boot-timeout", "3s"))
                self.assertEqual((done.returncode, done.stdout), (124, ""))
                self.assertRegex(done.stderr, f"^qvm: --boot-timeout: {why} after 3 s")

    def test_a_terminal_is_told(self):
        shown = self.on_terminal("run", "-d", "--net", "none", "--name", "told", "--wait-for", "log:never",
                                 "--boot-timeout", "5s", *self.boot_files())
        shown.out.expect("qvm: waiting for the guest; phase 'log:never': no line of the console fitted", 60)
        self.assertEqual(shown.wait(60), 124)

    def test_the_guest_ends_before_it_is_ready(self):
        for how in (("exec", "ends", "poweroff", "-f"), ("stop", "ends")):
            with self.subTest(how[0]):
                started = self.started("run", "-q", "-d", "--net", "none", "--name", "ends", "--wait-for", "log:never",
                                       *self.boot_files())
                detached.wait_for(lambda: self.qvm("exec", "ends", "true").returncode == 0, 60)
                self.qvm(*how, seconds=60)
                self.assertEqual(started.wait(60), 123)
                self.assertEqual(started.out.text, "")
                self.assertRegex(started.err.text, "qvm: the guest powered off before it was ready: phase 'log:never'")

    def test_no_key(self):
        """Nobody has asked for one yet."""
        before = ["env", "QVM_DATA_DIR=/proc/qvm"]
        done = self.qvm("run", "--net", "none", *self.boot_files(), self.demo, "--", "true", before=before, seconds=60)
        self.assertEqual(done.returncode, 0)
        self.assertIn("qvm: no key for qvm ssh: create directory '/proc/qvm", done.stderr)

    def test_no_cloud_init(self):
        done = self.wait_for("cloud-init")
        self.assertEqual((done.returncode, done.stdout), (125, ""))
        self.assertEqual(done.stderr, "qvm: wait for cloud-init: the guest has no cloud-init\n")

    def test_a_command_waits(self):
        done = self.qvm("run", "-q", "--net", "isolated", *self.boot_files(), "--wait-for", "log:busybox", "--",
                        "echo", "there", seconds=60)
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, "there\n", ""))

    def test_a_created_vm_that_cannot_be_seen(self):
        name = self.create("--net", "none", *self.boot_files())
        self.assert_refused(self.qvm("start", "--wait-for", "ssh", name), "--wait-for ssh: .*no network")
        self.assert_refused(self.qvm("ssh", "@" + name), f"ssh '@{name}': '' is no user's name")

    def test_a_detached_vms_files_are_named_in_full(self):
        directory = self.host.cwd
        (directory / "key.pub").write_text("ssh-ed25519 AAAA me\n")
        self.addCleanup((directory / "key.pub").unlink)
        name = self.detach("--net", "none", "--ssh-key", "key.pub", *self.boot_files())
        self.assertEqual(self.inspect(name)["spec"]["ssh_keys"], [str(directory / "key.pub")])

    def test_refused(self):
        for options, why in ((("--net", "none", "--wait-for", "ssh"), "--wait-for ssh: .*no network"),
                             (("--net", "user", "--wait-for", "tcp:80"), "--wait-for tcp:80: .*does not tell"),
                             (("--net", "user", "--wait-for", "ssh"), "--wait-for ssh: .*no way"),
                             (("--wait-for", "log:("), r"--wait-for 'log:\(': is no regular expression"),
                             (("--wait-for", "boot"), "--wait-for 'boot'")):
            with self.subTest(options):
                self.assert_refused(self.qvm("run", *options, self.demo), why)


class Seed(harness.Test):
    def write(self, name, text):
        file = self.host.files / name
        file.write_text(text)
        self.addCleanup(file.unlink, missing_ok=True)
        return file

    def test_the_guest_finds_it(self):
        data = self.write("user-data", "#cloud-config\npackages: [vim]\n")
        key = self.write("key.pub", "ssh-ed25519 AAAA me\n")
        guest = self.detach("--net", "none", "--user-data", data, "--ssh-key", key, "--wait-for", "agent", self.demo)
        said = self.succeed("exec", guest, "sh", "-c",
                            "mkdir -p /mnt && mount -t iso9660 -o ro /dev/vdb /mnt && cd /mnt && "
                            "cat user-data meta-data", seconds=60)
        head, meta = said.rsplit("\n", 2)[0], json.loads(said.splitlines()[-1])
        self.assertEqual(head + "\n", "#cloud-config\npackages: [vim]\n")
        self.assertEqual(meta["local-hostname"], guest)
        self.assertEqual(len(meta["public-keys"]), 2)
        self.assertEqual(meta["public-keys"][1], "ssh-ed25519 AAAA me")

    def test_none_for_an_image_that_is_written_to(self):
        image = self.copy_of_demo("raw", "persist.raw")
        self.addCleanup(image.unlink)
        done = self.qvm("run", "-q", "--net", "none", "--persist", image, "--", "ls", "/dev/vdb", seconds=60)
        self.assertEqual(done.returncode, 1)

    def test_refused(self):
        for option, text, why in (("--user-data", "packages: [vim]\n", "does not begin as"),
                                  ("--user-data", "#cloud-config\na: [\n", "line 3: "),
                                  ("--ssh-key", "hello\n", "is no public key"),
                                  ("--ssh-key", "-----BEGIN OPENSSH PRIVATE KEY-----\n", "is a private key")):
            with self.subTest(text):
                file = self.write("bad", text)
                self.assert_refused(self.qvm("run", option, file, self.demo), f"{option} '.*bad': {why}")
                self.assert_refused(self.qvm("create", option, file, self.demo), f"{option} '.*bad': {why}")
        self.assert_refused(self.qvm("run", "--user-data", "/none", self.demo), "--user-data '/none': No such file")


if __name__ == "__main__":
    harness.main()
