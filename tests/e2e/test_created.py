"""VMs with a name and a disk of their own: create, start, rm, and what survives what."""

import json
import os
import random
import shutil
import signal
import subprocess
import time

import harness
from test_images import read_last_sector, write_last_sector


class Created(harness.Test):
    def definition(self, name):
        return self.host.data / "vm" / name / "definition.json"

    def start_vm(self, name):
        self.assertEqual(self.succeed("start", "-q", name), f"{name}\n")
        return self.killed_with_test(name)

    def boot_vm(self, name):
        """`qvm start` up to the demo guest's prompt."""
        self.start_vm(name)
        shell = self.attach(name)
        shell.type("\n")
        shell.wait_for_prompt()
        return shell

    def names(self):
        return [vm["name"] for vm in self.ps("-a")]

    def image(self, name, megabytes=1):
        path = self.host.files / name
        path.write_bytes(harness.HANG.ljust(megabytes * 2**20, b"\0"))
        self.addCleanup(path.unlink, missing_ok=True)
        return path

    # --- disks ----------------------------------------------------------------------------------

    def test_what_the_guest_writes_stays(self):
        image = self.copy_of_demo("qcow2", "base.qcow2")
        self.addCleanup(image.unlink)
        before = self.sha256(image)
        name = self.create("--name", "Box", "--net", "none", *self.boot_files(), image)
        self.assertEqual(name, "box")
        shell = self.boot_vm(name)
        write_last_sector(shell, "first-run")
        shell.end()
        with self.subTest("powered down"):
            self.assertEqual(self.qvm("stop", name).returncode, 0)
            shell = self.boot_vm(name)
            self.assertEqual(read_last_sector(shell), "first-run")
        with self.subTest("the supervisor is killed: what was synced is there"):
            write_last_sector(shell, "second-run")
            os.kill(self.supervisor_of(name), signal.SIGKILL)
            self.wait_until(lambda: self.ps() == [])
            # As after a reboot of the host: the run directory is a fresh tmpfs.
            shutil.rmtree(self.host.run)
            self.host.run.mkdir(mode=0o700)
            self.assertEqual([vm["state"] for vm in self.ps("-a")], ["stopped"])
            shell = self.boot_vm(name)
            self.assertEqual(read_last_sector(shell), "second-run")
        with self.subTest("killed, and the disk is sound"):
            self.succeed("kill", name)
            overlay = self.definition(name).parent / "overlay.qcow2"
            self.tool("qemu-img", "check", "-q", overlay)
        self.assertEqual(self.sha256(image), before, "the image was written to")
        self.succeed("rm", name)
        self.assertEqual(os.listdir(self.host.data / "vm"), [])

    def test_what_qemu_holds_survives_a_kill(self):
        """Written, and not synced: QEMU is let to end by itself."""
        name = self.create("--name", "box", "--net", "none", *self.boot_files(), self.demo)
        shell = self.boot_vm(name)
        said, status = shell.sh("echo direct | dd of=/dev/vda bs=512 seek=131071 conv=sync "
                                "oflag=direct 2>&1")
        self.assertEqual(status, 0, said)
        self.succeed("kill", name)
        self.assertEqual(read_last_sector(self.boot_vm(name)), "direct")

    def test_image_of_another_size(self):
        image = self.image("grows.raw")
        name = self.create("--name", "box", "--net", "none", image)
        self.image("grows.raw", 2)
        self.assert_refused(self.qvm("start", name),
                            f"'{image}'.*2097152 bytes.*1048576.*'box'", "disk")
        self.assertEqual(os.listdir(self.host.run), [])
        image.unlink()
        self.assert_refused(self.qvm("start", name), f"'{image}': No such file")
        self.image("grows.raw")
        self.start_vm(name)

    # --- names ----------------------------------------------------------------------------------

    def test_names(self):
        self.create("--name", "box", "--net", "none", self.hang)
        self.assert_refused(self.qvm("create", "--name", "box", self.hang),
                            "--name 'box': .*exists", "qvm rm box")
        self.assert_refused(self.qvm("run", "-d", "--net", "none", "--name", "box", self.hang),
                            "--name 'box'.*created", "qvm start box")
        self.assert_refused(self.qvm("start", "unknown"), "'unknown'.*", "qvm ps -a")
        self.assert_refused(self.qvm("rm", "unknown"), "'unknown'.*none of that name", "qvm ps -a")
        self.detach("--net", "none", "--name", "runs", self.hang)
        self.assert_refused(self.qvm("create", "--name", "runs", self.hang),
                            "'runs'.*running already")
        self.assert_refused(self.qvm("rm", "runs"), "'runs'.*running", "qvm stop runs")
        self.assert_refused(self.qvm("start", "runs"), "'runs'.*running already")

    def test_start_twice(self):
        name = self.create("--name", "box", "--net", "none", self.hang)
        self.start_vm(name)
        pid = self.supervisor_of(name)
        self.assert_refused(self.qvm("start", name), rf"'box'.*running already \(pid {pid}\)")

    def test_start_at_the_same_moment(self):
        name = self.create("--name", "box", "--net", "none", self.hang)
        for _ in range(5):
            starts = [self.started("start", "-q", name) for _ in range(3)]
            statuses = sorted(start.wait() for start in starts)
            self.assertEqual(statuses, [0, 125, 125], [start.err.text for start in starts])
            self.assertEqual("".join(start.out.text for start in starts), "box\n")
            for start in starts:
                self.assertRegex(start.err.text, "^(|qvm: .*running already.*\n)$")
            self.assertEqual([vm["state"] for vm in self.ps()], ["running"])
            self.succeed("kill", name)

    def test_rm(self):
        name = self.create("--name", "box", "--net", "none", self.hang)
        self.start_vm(name)
        self.assert_refused(self.qvm("rm", name), "'box'.*is running", "qvm rm -f box")
        self.assertEqual(self.names(), ["box"])
        self.assertEqual(self.succeed("rm", "-f", name), "box\n")
        self.assertEqual(self.names(), [])
        self.assertEqual(os.listdir(self.host.run), [])
        self.assertEqual(os.listdir(self.host.data / "vm"), [])
        with self.subTest("one of several is unknown"):
            self.create("--name", "one", "--net", "none", self.hang)
            self.create("--name", "two", "--net", "none", self.hang)
            done = self.qvm("rm", "one", "unknown", "two")
            self.assertEqual((done.returncode, done.stdout), (125, "one\ntwo\n"))
            self.assertRegex(done.stderr, "'unknown'")

    # --- definitions ----------------------------------------------------------------------------

    def test_definition(self):
        name = self.create("--name", "box", "--net", "isolated,subnet=10.9.8.0/24", "-m", "300M",
                           self.hang)
        told = json.loads(self.definition(name).read_text())
        self.assertEqual((told["version"], told["name"], told["virtual_size"]),
                         (1, "box", len(harness.HANG)))
        self.assertEqual((told["vm"]["memory_mib"], told["vm"]["image"]), (300, str(self.hang)))
        self.start_vm(name)
        (vm,) = json.loads(self.succeed("inspect", name))
        self.assertEqual(vm["net"]["subnet"], "10.9.8.0/24")
        self.assertTrue(vm["named"])

    def test_definitions_that_cannot_be_read(self):
        good = self.create("--name", "good", "--net", "none", self.hang)
        bad = self.create("--name", "bad", "--net", "none", self.hang)
        path = self.definition(bad)
        whole = json.loads(path.read_text())
        for text, why in {
            json.dumps({**whole, "version": 99}): "version 99.*knows 1",
            json.dumps({**whole, "version": "x"}): "'version' is not a whole number",
            json.dumps({**whole, "vm": None}): "'vm' is not an object",
            json.dumps({**whole, "vm": {**whole["vm"], "memory_mib": -1}}): "'memory_mib'",
            json.dumps({**whole, "vm": {**whole["vm"], "memory_mib": 0}}): "memory_mib",
            json.dumps({**whole, "vm": {**whole["vm"], "cpus": 2**32 + 1}}): "cpus",
            json.dumps({**whole, "vm": {**whole["vm"], "net": "bogus"}}): "'net' is 'bogus'",
            json.dumps({**whole, "vm": {**whole["vm"], "publish": [7]}}): "'publish'",
            json.dumps({**whole, "vm": {**whole["vm"], "image": 7}}): "'image'",
            json.dumps(whole)[:-20]: "not a JSON object",
            "": "not a JSON object",
            "[]": "not a JSON object",
            "\0" * 4096: "not a JSON object",
        }.items():
            with self.subTest(why):
                path.write_text(text)
                self.assert_refused(self.qvm("start", bad), why)
                self.assertEqual(self.ps(), [])
                done = self.qvm("ps", "-a", "-q")
                self.assertEqual(done.returncode, 0)
                self.assertIn(good, done.stdout.split())
        path.write_text("")
        done = self.qvm("ps", "-a")
        self.assertRegex(done.stderr, f"^qvm: read '{path}': is not a JSON object\n$")
        self.assert_refused(self.qvm("inspect", bad), str(path))
        path.unlink()
        self.assert_refused(self.qvm("start", bad), f"'{path}': No such file")
        # It can be got rid of all the same.
        self.assertEqual(self.succeed("rm", bad), "bad\n")
        self.assertEqual(self.names(), [good])

    def test_full_disk(self):
        for kilobytes in (4, 12, 20, 64, 196, 212):
            with self.subTest(kilobytes=kilobytes):
                small = self.host.base / "small"
                small.mkdir(mode=0o700, exist_ok=True)
                subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k,mode=700",
                                "small", small], check=True, timeout=20)
                self.host.give(small)
                try:
                    env = ["env", f"QVM_DATA_DIR={small}"]
                    done = self.qvm("create", "--name", "box", self.hang, before=env)
                    if done.returncode == 0:
                        self.assertEqual(self.qvm("ps", "-aq", before=env).stdout, "box\n")
                        continue
                    self.assert_refused(done, "No space left on device")
                    self.assertEqual(self.succeed("ps", "-aq", before=env), "")
                    self.assertIn(os.listdir(small), ([], ["vm"]))
                    self.assertEqual(list(small.glob("vm/*")) + list(small.glob("vm/.*")), [])
                    self.assertEqual(os.listdir(self.host.run), [])
                finally:
                    subprocess.run(["umount", small], check=True, timeout=20)
                    small.rmdir()

    def test_create_is_killed_at_any_moment(self):
        chance = random.Random(1)
        start = time.monotonic()
        self.create("--name", "box", "--net", "none", self.hang)
        whole = time.monotonic() - start
        self.succeed("rm", "box")
        made = 0
        for _ in range(40):
            create = subprocess.Popen([harness.QVM, "create", "--name", "box", "--net", "none",
                                       self.hang], stdout=subprocess.DEVNULL)
            time.sleep(chance.random() * 1.5 * whole)
            create.kill()
            create.wait(30)
            self.qvm("gc")
            if names := self.names():
                made += 1
                self.assertEqual(names, ["box"])
                json.loads(self.definition("box").read_text())
                self.tool("qemu-img", "check", "-q", self.definition("box").parent / "overlay.qcow2")
                self.assertEqual(self.succeed("rm", "box"), "box\n")
            self.assertEqual(os.listdir(self.host.run), [])
            if (self.host.data / "vm").exists():
                self.assertEqual(os.listdir(self.host.data / "vm"), [])
        self.assertGreater(made, 0, "no moment was late enough")
        self.assertLess(made, 40, "no moment was early enough")

    def test_rm_is_killed_at_any_moment(self):
        chance = random.Random(2)
        for _ in range(20):
            self.qvm("create", "--name", "box", "--net", "none", self.hang)
            remove = subprocess.Popen([harness.QVM, "rm", "box"], stdout=subprocess.DEVNULL)
            time.sleep(chance.random() * 0.02)
            remove.kill()
            remove.wait(30)
            self.qvm("gc")
            if self.names():
                self.tool("qemu-img", "check", "-q", self.definition("box").parent / "overlay.qcow2")
                self.succeed("rm", "box")
            self.assertEqual(os.listdir(self.host.data / "vm"), [])

    # --- how it ended ---------------------------------------------------------------------------

    def test_the_end_is_kept(self):
        name = self.create("--name", "box", "--net", "none", self.hang)
        self.assert_refused(self.qvm("wait", name), "'box': is not running", "qvm start box")
        self.start_vm(name)
        self.wait_until(lambda: harness.STARTED in self.succeed("logs", name))
        self.succeed("kill", name)
        done = self.qvm("wait", name)
        self.assertEqual((done.returncode, done.stdout, done.stderr), (137, "137\n", ""))
        self.assertIn(harness.STARTED, self.succeed("logs", name))
        self.assertIn(harness.STARTED, self.succeed("logs", "-f", name))
        (vm,) = self.ps("-a")
        self.assertEqual((vm["state"], vm["exit_status"], vm["pid"]), ("stopped", 137, None))
        (vm,) = json.loads(self.succeed("inspect", name))
        self.assertEqual(vm["last_end"]["exit_status"], 137)

    def test_the_end_of_a_supervisor_that_was_killed(self):
        name = self.create("--name", "box", "--net", "none", self.demo)
        self.start_vm(name)
        self.wait_until(lambda: "demo# " in self.succeed("logs", name))
        self.succeed("kill", name)
        self.start_vm(name)
        self.wait_until(lambda: "SYSLINUX" in self.succeed("logs", name))
        waiting = self.started("wait", name)
        time.sleep(1)
        os.kill(self.supervisor_of(name), signal.SIGKILL)
        self.assertEqual((waiting.wait(), waiting.out.text, waiting.err.text), (137, "137\n", ""))
        (vm,) = self.ps("-a")
        self.assertEqual((vm["state"], vm["exit_status"]), ("stopped", 137))
        (vm,) = json.loads(self.succeed("inspect", name))
        self.assertEqual(vm["last_end"]["message"], "its supervisor was killed")
        log = self.succeed("logs", name)
        self.assertIn("SYSLINUX", log)
        self.assertNotIn("demo# ", log, "the log of the life before")

    def test_what_never_lived_was_not_killed(self):
        """A start that was killed before there was anything, and a removal."""
        name = self.create("--name", "box", "--net", "none", self.hang)
        left = self.host.run / "box"
        for _ in range(2):
            left.mkdir(mode=0o700)
            (left / "lock").write_text("1")
            (vm,) = self.ps("-a")
            self.assertEqual((vm["state"], vm["exit_status"]), ("stopped", None))
            self.assertFalse(left.exists())
        self.start_vm(name)
        self.succeed("qmp", name, "quit")
        self.wait_until(lambda: self.ps() == [])
        left.mkdir(mode=0o700)
        for file in ("lock", "state.json"):  # as of one that was killed after it had said its end
            (left / file).write_text("1")
        (vm,) = self.ps("-a")
        self.assertEqual(vm["exit_status"], 0)

    def test_a_start_is_alone_with_its_vm(self):
        """Nobody removes or makes anew what a start has begun to read."""
        name = self.create("--name", "box", "--net", "none", self.hang)
        gate = self.host.files / "instead-of-qemu-img" / "gate"  # elsewhere it may not read
        before = self.instead_of(
            "qemu-img", f"read -r _ <{gate}; exec {shutil.which('qemu-img')} \"$@\"")
        os.mkfifo(gate)
        start = self.started("start", name, before=before)
        self.killed_with_test(name)
        self.wait_until(lambda: self.ps())
        self.assert_refused(self.qvm("rm", name), "'box': is running", "qvm stop box")
        self.assert_refused(self.qvm("start", name), "'box': is running already")
        gate.write_text("go")
        self.assertEqual(start.wait(), 0, start.err.text)
        self.assertEqual(self.ps()[0]["state"], "running")

    def test_an_image_that_was_written_to(self):
        image = self.host.files / "base.raw"
        image.write_bytes(harness.HANG)
        name = self.create("--name", "box", "--net", "none", image)
        self.start_vm(name)
        self.succeed("kill", name)
        os.utime(image)
        done = self.qvm("start", name)
        self.killed_with_test(name)
        self.assertEqual((done.returncode, done.stdout), (0, "box\n"))
        self.assertRegex(done.stderr, f"image '{image}' was written to since VM 'box' was created")


if __name__ == "__main__":
    harness.main()
