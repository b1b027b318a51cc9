"""Machines that are saved while they run, and others that begin where they were."""

import fcntl
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time

import detached
import harness
import played_host
import vm
from detached import wait_for

TRIES = int(os.environ.get("QVM_TRIES") or 6)
MEMORY = ("-m", "128M")


class Snapshots(detached.Test):
    """One VM, which all begin with."""

    def setUp(self):
        super().setUp()
        self.addCleanup(shutil.rmtree, self.host.cache / "warm", ignore_errors=True)
        self.addCleanup(shutil.rmtree, self.store, ignore_errors=True)

    @property
    def store(self):
        return self.host.data / "snapshot"

    def booted(self, *options, name="base"):
        """A VM whose boot is over."""
        self.detach(*MEMORY, "--name", name, "--wait-for", "agent", *options, self.demo)
        self.wait_until(lambda: self.qvm("exec", name, "test", "!", "-e", "/run/qvm-booting").returncode == 0)
        return name

    def saved(self, *options):
        """The snapshot `ready` of such a VM, which is gone."""
        self.booted(*options)
        self.assertEqual(self.succeed("snapshot", "create", "-q", "base", "ready"), "ready\n")
        self.succeed("kill", "base")

    def clone(self, *options, snapshot="ready"):
        return self.detach("--wait-for", "agent", *options, f"snapshot:{snapshot}")

    def run_clone(self, *words, options=(), snapshot="ready"):
        """What a command prints in a clone that goes with it."""
        return self.succeed("run", "-q", *options, f"snapshot:{snapshot}", "--", *words)

    def in_guest(self, name, script):
        return self.succeed("exec", name, "sh", "-c", script)

    def refused(self, *words, why, seconds=30):
        done = self.qvm(*words, seconds=seconds)
        self.assertEqual((done.returncode, done.stdout), (125, ""), done.stderr)
        self.assertRegex(done.stderr.splitlines()[0], f"^qvm: {why}$")

    def names(self):
        return self.succeed("snapshot", "ls", "-q").split()

    def change_manifest(self, change, name="ready"):
        file = self.store / name / "manifest.json"
        manifest = json.loads(file.read_text())
        change(manifest)
        file.write_text(json.dumps(manifest))

    # --- what a clone is --------------------------------------------------------------------------

    def test_a_clone_goes_on_where_the_machine_was(self):
        self.booted("--net", "nat")
        self.in_guest("base", "echo written >/root/file; (while :; do sleep 1; done) & echo $! >/run/loop")
        created = self.qvm("snapshot", "create", "base", "ready")
        self.assertEqual((created.returncode, created.stdout), (0, "ready\n"))
        self.assertRegex(created.stderr, r"^qvm: base: stood still for \d+ ms\n$")
        self.assertEqual(self.inspect("base")["state"], "running")
        self.in_guest("base", "echo later >/root/file")
        said = self.run_clone("sh", "-c", "cat /root/file; kill -0 $(cat /run/loop) && hostname",
                              options=("--name", "nina"))
        self.assertEqual(said, "written\nnina\n")
        self.assertEqual(self.in_guest("base", "cat /root/file; hostname"), "later\nbase\n")
        listed = json.loads(self.succeed("snapshot", "ls", "--json"))
        self.assertEqual([(each["name"], each["clones"], each["vm"]["memory_mib"]) for each in listed],
                         [("ready", [], 128)])
        self.assertEqual(listed, json.loads(self.succeed("snapshot", "inspect", "ready")))
        self.assertLess(listed[0]["disk_usage"], 128 << 20)

    def test_its_network_and_time_are_those_of_now(self):
        self.saved("--net", "nat")
        for net in (("--net", "nat"), ("--net", "isolated")):
            with self.subTest(net=net):
                name = self.clone(*net)
                said = self.in_guest(name, "ip -4 -o addr show eth0; udhcpc -i eth0 -n -q 2>&1; date +%s")
                self.assertIn("192.168.26.10/24", said)
                self.assertIn("lease of 192.168.26.10 obtained", said)
                self.assertLess(abs(int(said.split()[-1]) - time.time()), 5)
                if net[1] == "nat":
                    said = self.in_guest(name, f"wget -q -O - http://{played_host.SERVICE_NAME}/")
                    self.assertRegex(said, "^you are ")
                # The router is the one that it remembers: not a packet is lost.
                self.in_guest(name, "ping -c 1 -W 1 192.168.26.1")
                self.succeed("kill", name)

    def test_clones_differ(self):
        self.booted("--net", "isolated")
        self.refused("fork", "-n", "2", "-p", "8080:80", "base",
                     why="--publish '8080:80': port 8080 is for one machine, and not for 2")
        self.succeed("snapshot", "create", "-q", "base", "base")
        names = self.succeed("fork", "-q", "-n", "4", "--name", "twin", "-p", "0:80", "base").split()
        self.assertEqual(names, [f"twin-{i}" for i in range(1, 5)])
        for name in names:
            self.killed_with_test(name)
        self.wait_until(lambda: all(self.inspect(name)["agent"] for name in names))
        boot_ids = {self.in_guest(name, "cat /proc/sys/kernel/random/boot_id") for name in ("base", *names)}
        self.assertEqual(len(boot_ids), 5)
        self.assertEqual([self.in_guest(name, "hostname") for name in names],
                         [f"{name}\n" for name in names])
        # One address, and each has its own disk and its own port of the host.
        for name in names:
            self.in_guest(name, f"echo {name} | dd of=/dev/vda bs=512 seek=20000 conv=notrunc 2>/dev/null;"
                                f"mkdir -p /srv; echo {name} >/srv/name; httpd -p 80 -h /srv")
        for name in names:
            self.assertEqual(self.in_guest(name, "dd if=/dev/vda bs=512 skip=20000 count=1 2>/dev/null | head -n 1"),
                             f"{name}\n")
            self.assertEqual(self.inspect(name)["net"]["address"], "192.168.26.10")
            port = self.inspect(name)["ports"][0]["host_port"]
            said = subprocess.run(["curl", "-s", f"http://127.0.0.1:{port}/name"], capture_output=True,
                                  text=True, timeout=20)
            self.assertEqual(said.stdout, f"{name}\n")
        # What they began with goes with the last of them.
        self.assertEqual(self.names(), ["base"])
        self.succeed("kill", *names)
        self.assertEqual(list(self.store.iterdir()), [self.store / "base"])

    def test_the_first_command(self):
        """It goes to a shell that waits for it, in the VM itself as in a clone, and is a command as
        all others are; so is the one after it."""
        self.booted("--net", "none")
        for _ in range(2):
            self.succeed("snapshot", "create", "-q", "base", "ready")
            with open(self.store / "ready/manifest.json") as file:
                self.assertGreater(json.load(file)["ready_shell"], 0)
            name = self.clone()
            for each in ("base", name) * 2:
                with self.subTest(vm=each):
                    done = subprocess.run(
                        [harness.QVM, "exec", "-i", "-e", "A=it's\nso", "-w", "/run", each, "sh", "-c",
                         'cat; pwd; printf "%s|" "$A" "$@"; echo error >&2; exit 7', "x", "a b", "", "$x\ny"],
                        input="given", capture_output=True, text=True, timeout=60)
                    self.assertEqual((done.returncode, done.stdout, done.stderr),
                                     (7, "given/run\nit's\nso|a b||$x\ny|", "error\n"))
            self.succeed("kill", name)
            self.succeed("snapshot", "rm", "ready")
        self.succeed("snapshot", "create", "-q", "base", "ready")
        word = "x" * 50_000  # too long for who waits
        for each in ("base", self.clone()):
            self.assertEqual(self.succeed("exec", each, "sh", "-c", "echo ${#1}", "x", word), "50000\n")
        done = self.qvm("run", "-q", "snapshot:ready", "--", "sh", "-c", "kill -9 $PPID", seconds=60)
        self.assertEqual((done.returncode, done.stderr),
                         (123, "qvm: run 'sh' in the guest: the command's shell ended too early, with 10\n"))
        for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
            clone = self.started("run", "-q", "snapshot:ready", "--", "sh", "-c", "echo begun; sleep 100")
            clone.out.expect("begun\n", 60)
            clone.signal(number)
            self.assertEqual(clone.wait(), status, clone.err.text)

    def test_after_many_commands_at_once(self):
        """The guest is told of no more ports at a time than it takes."""
        self.booted("--net", "none")
        commands = [self.started("exec", "base", "sleep", "1") for _ in range(8)]
        for command in commands:
            self.assertEqual(command.wait(), 0, command.err.text)
        self.succeed("snapshot", "create", "-q", "base", "ready")
        self.assertEqual(self.run_clone("echo", "runs"), "runs\n")

    def test_a_clone_that_is_reset_at_once(self):
        self.saved("--net", "none")
        name = self.killed_with_test(self.succeed("run", "-q", "-d", "snapshot:ready").strip())
        self.succeed("qmp", name, "system_reset")
        self.wait_until(lambda: self.inspect(name)["agent"], vm.BOOT)
        self.assertEqual(self.in_guest(name, "echo again"), "again\n")

    def test_what_does_not_go_with_the_network(self):
        self.saved("--net", "none")
        for option, why in ((("-p", "8099:80"), "--publish: a guest with --net none has no address"),
                            (("--allow-host",), "--allow-host: goes with --net nat only"),
                            (("--group", "lab"), "--group 'lab': VMs of a group share a namespace, .*")):
            with self.subTest(option=option):
                self.refused("run", "-d", *option, "snapshot:ready", why=f"snapshot 'ready': {why}")
        # Nothing stands still for what cannot be had.
        for options, why in ((("--name", "base"), "VM 'base': .*"),
                             (("--restore-hook", "/none"), "--restore-hook '/none': No such file or directory"),
                             (("-v", "/none:/mnt"), "--volume '/none.*': .*")):
            with self.subTest(options=options):
                self.refused("fork", *options, "base", why=why)

    def test_a_clone_cannot_write_to_what_others_share(self):
        self.saved("--net", "none")
        name = self.clone()
        qemu = self.inspect(name)["qemu_pid"]
        links = subprocess.run(["ls", "-l", f"/proc/{qemu}/fd"], capture_output=True, text=True).stdout
        number = re.search(r" (\d+) -> \S*/ready/memory", links).group(1)
        with open(f"/proc/{qemu}/fdinfo/{number}") as info:
            flags = int(re.search(r"flags:\s*(\d+)", info.read()).group(1), 8)
        self.assertEqual(flags & os.O_ACCMODE, os.O_RDONLY)
        self.in_guest(name, "dd if=/dev/zero of=/run/x bs=1M count=20 2>/dev/null")
        self.assertEqual(self.run_clone("echo", "still", "good"), "still good\n")

    def test_volumes_are_given_anew(self):
        self.booted("--net", "none")
        self.succeed("snapshot", "create", "-q", "base", "ready")
        for i in range(3):
            directory = self.host.files / f"volume{i}"
            directory.mkdir(exist_ok=True)
            self.host.give(directory)
            (directory / "file").write_text(f"{i}\n")
        volumes = [word for i in range(3) for word in ("-v", f"{self.host.files}/volume{i}:/mnt/{i}")]
        self.assertEqual(self.run_clone("sh", "-c", "cat /mnt/*/file; echo new >/mnt/1/out", options=volumes),
                         "0\n1\n2\n")
        self.assertEqual((self.host.files / "volume1" / "out").read_text(), "new\n")
        with_volume = self.detach(*MEMORY, "--net", "none", *volumes[:2], self.demo)
        self.refused("snapshot", "create", with_volume, "other",
                     why=f"VM '{with_volume}': save: --volume '.*': its connection cannot be saved; "
                     "a clone may have volumes")

    def test_the_hook(self):
        self.saved("--net", "none")
        hook = self.host.files / "hook.sh"
        hook.write_text("echo $QVM_NAME >/etc/machine-id\n")
        self.assertEqual(self.run_clone("cat", "/etc/machine-id", options=("--name", "one", "--restore-hook", hook)),
                         "one\n")
        hook.write_text("echo it is broken >&2; exit 3\n")
        for words in (("snapshot:ready", "--", "true"), ("-d", "snapshot:ready")):
            self.refused("run", "-q", "--restore-hook", hook, *words,
                         why="--restore-hook in the guest: exit status 3: it is broken")
        # What it leaves behind is nobody's concern.
        hook.write_text("sleep 100 & echo $QVM_NAME >/etc/machine-id\n")
        name = self.clone("--restore-hook", hook)
        self.assertEqual(self.in_guest(name, "cat /etc/machine-id; ls /tmp"), f"{name}\n")
        hook.write_text("sleep 100\n")
        done = self.qvm("run", "-q", "-d", "--boot-timeout", "5s", "--restore-hook", hook, "snapshot:ready")
        self.assertEqual(done.returncode, 124)
        self.assertIn("--boot-timeout: phase 'restore-hook': it still ran in the guest after 5 s", done.stderr)

    def test_a_clone_is_saved(self):
        self.saved("--net", "none")
        name = self.clone()
        self.in_guest(name, "echo more >/root/more")
        self.succeed("snapshot", "create", "-q", name, "second")
        self.succeed("kill", name)
        self.succeed("snapshot", "rm", "ready")
        self.assertEqual(self.run_clone("cat", "/root/more", snapshot="second"), "more\n")
        self.assertEqual(self.run_clone("grep", "-c", "boot_id", "/proc/mounts", snapshot="second"), "1\n")

    def test_a_clone_outlives_the_name_that_it_began_with(self):
        """It is saved with the disk and the seed that it has, whatever has their name by now."""
        marks = "dd if=/dev/vda bs=512 skip=20000 count=1 2>/dev/null | head -n 1"

        def mark(text):
            self.in_guest("base", f"echo {text} | dd of=/dev/vda bs=512 seek=20000 conv=notrunc,fsync 2>/dev/null;"
                                  "echo 3 >/proc/sys/vm/drop_caches")
        self.booted("--net", "none")
        mark("first")
        self.succeed("snapshot", "create", "-q", "base", "ready")
        name = self.clone()
        self.succeed("snapshot", "rm", "-f", "ready")
        self.succeed("snapshot", "create", "-q", name, "alone")
        mark("second")
        self.succeed("snapshot", "create", "-q", "base", "ready")
        self.succeed("snapshot", "create", "-q", name, "other")
        self.assertEqual(json.loads(self.succeed("snapshot", "inspect", "ready"))[0]["clones"], [])
        forked = self.killed_with_test(self.succeed("fork", "-q", "--name", "forked", name).strip())
        self.wait_until(lambda: self.inspect(forked)["agent"])
        self.assertEqual(self.in_guest(forked, marks), "first\n")
        for snapshot, text in (("alone", "first"), ("other", "first"), ("ready", "second")):
            with self.subTest(snapshot=snapshot):
                self.assertEqual(self.run_clone("sh", "-c", marks, snapshot=snapshot), f"{text}\n")

    def test_a_clone_is_saved_on_another_file_system(self):
        other = self.host.base / "other"
        other.mkdir()
        self.tool("mount", "-t", "tmpfs", "-o", "mode=700", "other", other)
        self.addCleanup(other.rmdir)
        self.addCleanup(self.tool, "umount", other)
        self.host.give(other)
        self.saved("--net", "none")
        self.tool("cp", "-a", "--sparse=always", self.store / "ready", other)
        name = self.clone(snapshot=other / "ready")
        self.succeed("snapshot", "create", "-q", name, "second")
        self.assertEqual(self.run_clone("hostname", options=("--name", "x"), snapshot="second"), "x\n")
        self.succeed("kill", name)

    def test_one_that_is_paused_stays_so(self):
        self.booted("--net", "none")
        self.succeed("pause", "base")
        self.succeed("snapshot", "create", "-q", "base", "ready")
        self.assertEqual(self.inspect("base")["state"], "paused")
        self.assertEqual(self.run_clone("echo", "runs"), "runs\n")
        self.succeed("resume", "base")
        self.assertEqual(self.in_guest("base", "echo goes on"), "goes on\n")

    def test_in_a_group(self):
        self.saved("--net", "isolated")
        self.clone("--group", "lab", "--name", "one")
        other = self.detach(*MEMORY, "--group", "lab", "--name", "other", "--wait-for", "agent", self.demo)
        self.wait_until(lambda: self.qvm("exec", other, "ping", "-c", "1", "-W", "1", "one").returncode == 0)
        self.refused("run", "-q", "-d", "--group", "lab", "snapshot:ready",
                     why="--net isolated in group 'lab': address 192.168.26.10: is another guest's in this group")

    # --- what is refused --------------------------------------------------------------------------

    def test_machines_that_cannot_be_saved(self):
        self.booted("--net", "none")
        with_command = self.started("exec", "base", "sleep", "100")
        self.wait_until(lambda: self.qvm("exec", "base", "pidof", "sleep").returncode == 0)
        self.refused("snapshot", "create", "base", "ready",
                     why="VM 'base': save: a command runs in the guest, and its connection cannot be saved")
        with_command.signal(signal.SIGTERM)
        with_command.wait()
        self.succeed("snapshot", "create", "-q", "base", "ready")
        image = self.copy_of_demo("qcow2", "persist.qcow2")
        self.detach(*MEMORY, "--net", "none", "--persist", "--name", "persist", image)
        self.refused("snapshot", "create", "persist", "other",
                     why="VM 'persist': save: --persist: the image itself goes on changing")
        drive = self.host.files / "drive.raw"
        drive.write_bytes(bytes(1 << 20))
        self.addCleanup(drive.unlink)
        before = drive.stat()
        self.detach(*MEMORY, "--net", "none", "--drive", f"{drive}:ro:format=raw", "--name", "grown", self.hang)
        os.truncate(drive, 2 << 20)
        os.utime(drive, ns=(before.st_atime_ns, before.st_mtime_ns))
        self.refused("snapshot", "create", "grown", "other",
                     why="VM 'grown': .*save: '.*/drive.raw' is another than when the VM was started")
        self.refused("snapshot", "create", "nobody", "other", why="VM 'nobody': there is none of that name")
        self.refused("snapshot", "create", "base", "ready", why="snapshot 'ready': there is one of that name")
        self.assertEqual(self.names(), ["ready"])

    def test_one_that_is_broken_hides_no_other(self):
        self.saved("--net", "none")
        for name in ("bad", "worse"):
            directory = self.store / name
            directory.mkdir()
            (directory / "lock").touch()
            (directory / "manifest.json").write_text('{"version": 7}')
        for words, broken in ((("ls",), ["bad", "worse"]), (("ls", "--json"), ["bad", "worse"]),
                              (("inspect", "bad", "none", "ready"), ["bad", "none"])):
            with self.subTest(words=words):
                done = self.qvm("snapshot", *words)
                self.assertEqual(done.returncode, 125)
                self.assertIn("ready", done.stdout)
                self.assertEqual(re.findall("^qvm: snapshot '(.*?)': ", done.stderr, re.M), broken)

    def test_there_is_no_room(self):
        self.booted("--net", "none")
        self.store.mkdir(parents=True, exist_ok=True)
        self.host.give(self.store)
        for size, file in (("4M", "memory"), ("300K", "state")):
            self.tool("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", self.store)
            try:
                self.host.give(self.store)
                self.refused("snapshot", "create", "base", "ready",
                             why=rf"VM 'base': save: write '{self.store}/\.ready\.[0-9a-f]+/{file}': "
                             "No space left on device")
                self.assertEqual(list(self.store.iterdir()), [])
            finally:
                self.tool("umount", self.store)
        self.succeed("snapshot", "create", "-q", "base", "ready")

    def test_snapshots_that_do_not_fit(self):
        self.saved("--net", "none")
        what = "snapshot 'ready': "
        run = ("run", "-q", "snapshot:ready")
        kept = (self.store / "ready" / "manifest.json").read_text()
        for change, why in (
                (lambda m: m["machine"].update(qemu="99.0.1"), r"it needs QEMU 99\.0\.1, and this is .*"),
                (lambda m: m["machine"]["cpu"][0].update(features=1), "its CPU had other features: CPUID .*"),
                (lambda m: m["files"][0].update(size=5), "'memory' has 134217728 bytes, and had 5 when it was made"),
                (lambda m: m.update(version=7), "'.*manifest.json' has version 7; this qvm knows 1"),
                (lambda m: m["image"][0].update(modified_ns=5), "'.*' was changed since it was made"),
                (lambda m: m["image"][0].update(path="/none"), "open '/none': No such file or directory")):
            with self.subTest(why=why):
                self.change_manifest(change)
                self.refused(*run, why=what + why)
                (self.store / "ready" / "manifest.json").write_text(kept)
        with open(self.store / "ready" / "state", "r+b") as state:
            state.seek(1000)
            state.write(b"damage" * 50)
        self.refused(*run, why=f"{what}'.*/state' is not what was written when it was made")
        for words, why in ((("-m", "1G"), "--memory: the machine of a snapshot is as it was saved"),
                           (("--net", "user"), f"{what}--net user: the snapshot's guest has none"),
                           (("--persist",), "--persist: a snapshot is not written to")):
            self.refused("run", "-q", *words, "snapshot:ready", why=why)

    def test_what_is_in_use_is_not_removed(self):
        self.saved("--net", "none")
        name = self.clone()
        self.refused("snapshot", "rm", "ready", why=f"snapshot 'ready': is in use by {name}")
        self.assertEqual(json.loads(self.succeed("snapshot", "inspect", "ready"))[0]["clones"], [name])
        self.succeed("snapshot", "rm", "-f", "ready")
        self.assertEqual(self.names(), [])
        self.assertEqual(self.in_guest(name, "dmesg >/dev/null; echo lives"), "lives\n")
        self.refused("run", "-q", "snapshot:ready", why="snapshot 'ready': there is none")

    # --- one file ---------------------------------------------------------------------------------

    def test_export_and_import(self):
        self.saved("--net", "none")
        file = self.host.files / "ready.tar.gz"
        beside, precious = self.host.files / ".ready.tar.gz", self.host.files / "precious"
        precious.write_text("as it was")
        beside.symlink_to(precious)
        self.assertEqual(self.succeed("snapshot", "export", "ready", file, seconds=120), "")
        self.assertEqual((precious.read_text(), beside.is_symlink(), file.is_symlink()), ("as it was", True, False))
        self.refused("snapshot", "export", "ready", "/dev/null", why="export '/dev/null': it is there, and no regular file")
        self.assertEqual(file.stat().st_mode & 0o777, 0o600)
        self.assertEqual(self.succeed("snapshot", "import", file, "again", seconds=120), "again\n")
        self.assertEqual(self.run_clone("hostname", options=("--name", "x"), snapshot="again"), "x\n")
        moved = self.copy_of_demo("raw", "another.raw")
        self.refused("snapshot", "import", "--image", moved, file, "other",
                     why="import '.*': it needs '.*another.raw', and what is here is another", seconds=120)
        cut = self.host.files / "cut.tar.gz"
        cut.write_bytes(file.read_bytes()[:2_000_000])
        self.refused("snapshot", "import", cut, "other", why="import '.*': tar: .*", seconds=120)
        self.refused("snapshot", "import", self.hang, "other", why="import '.*': tar: .*")
        evil = self.host.files / "evil.tar"
        subprocess.run(["tar", "-cf", evil, "-P", "--transform", "s,^.*$,../../evil,", self.hang], check=True)
        self.refused("snapshot", "import", evil, "other", why=r"import '.*': '\.\./\.\./evil' is no file of a snapshot")
        self.assertEqual(self.names(), ["again", "ready"])
        for path in (file, cut, evil, moved, beside, precious):
            path.unlink()

    def test_of_a_chain_without_an_agent(self):
        directory, file = self.host.files / "chain", self.host.files / "chain.tar"
        directory.mkdir()
        self.host.give(directory)
        (directory / "base.raw").write_bytes(self.hang.read_bytes())
        self.tool("qemu-img", "create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", directory / "top.qcow2")
        self.host.give(directory / "top.qcow2")
        self.detach(*MEMORY, "--net", "none", "--trust-backing", "--name", "chain", directory / "top.qcow2")
        done = self.qvm("snapshot", "create", "chain", "ready")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("qvm: chain: no guest agent answers in it yet: copies learn their name", done.stderr)
        self.succeed("snapshot", "export", "ready", file)
        self.succeed("kill", "chain")
        self.succeed("snapshot", "rm", "ready")
        moved = directory.rename(self.host.files / "moved")
        self.addCleanup(shutil.rmtree, moved)
        self.refused("snapshot", "import", file, "ready", why="import '.*': it needs '.*/chain/top.qcow2': No such file or directory")
        self.refused("snapshot", "import", "--image", moved / "base.raw", file, "ready",
                     why="import '.*': it needs a chain of 2 images, and '.*/base.raw' is one of 1")
        self.succeed("snapshot", "import", "--image", moved / "top.qcow2", file, "ready")
        self.detach("--name", "again", "snapshot:ready")
        file.unlink()

    def test_export_of_one_that_is_removed_meanwhile(self):
        self.saved("--net", "none")
        file = self.host.files / "ready.tar"
        tar = self.instead_of("tar", f'{harness.PROGRAM} snapshot rm -f ready >/dev/null && exec {shutil.which("tar")} "$@"')
        self.assertEqual(self.succeed("snapshot", "export", "ready", file, before=tar, seconds=60), "")
        self.assertEqual(self.names(), [])
        self.assertEqual(list(self.store.iterdir()), [])
        self.succeed("snapshot", "import", file, "again", seconds=60)
        self.assertEqual(self.run_clone("hostname", options=("--name", "x"), snapshot="again"), "x\n")
        file.unlink()

    def test_import_of_what_is_not_whole(self):
        """What the archive has, and what its manifest names, are the same."""
        self.saved("--net", "none")
        ready = self.store / "ready"
        own = [file.name for file in ready.iterdir() if file.name not in ("lock", "manifest.json")]
        manifest = json.loads((ready / "manifest.json").read_text())
        less = dict(manifest, files=[file for file in manifest["files"] if file["name"] != "state"])
        made = self.host.files / "made"
        made.mkdir()
        self.addCleanup(shutil.rmtree, made)
        (made / "disk-7").touch()
        for name in own:
            os.link(ready / name, made / name)
        for its_manifest, files, why in (
                (less, own, "names no 'state' among its files"),
                (manifest, [*own, "disk-7"], "its manifest names no 'disk-7'"),
                (manifest, [name for name in own if name != "seed"], "'seed' in it is not what it was")):
            with self.subTest(why=why):
                (made / "manifest.json").write_text(json.dumps(its_manifest))
                self.tool("tar", "-cSf", made / "file.tar", "-C", made, "manifest.json", *files)
                self.refused("snapshot", "import", made / "file.tar", "other", why=f"import '.*': {why}")
        self.assertEqual(self.names(), ["ready"])

    # --- kills ------------------------------------------------------------------------------------

    def assert_whole(self):
        """No half snapshot; those that there are can be used."""
        for name in self.names():
            self.assertEqual(self.run_clone("echo", "whole", snapshot=name), "whole\n")
            self.succeed("snapshot", "rm", name)
        self.assertEqual(list(self.store.iterdir()), [])

    def test_a_client_that_is_killed(self):
        """The VM goes on, whatever has come of it."""
        self.booted("--net", "none")
        for i in range(TRIES):
            client = self.started("snapshot", "create", "-q", "base", f"s{i}")
            time.sleep(random.uniform(0, 0.25))
            client.signal(signal.SIGKILL)
            client.wait()
            self.wait_until(lambda: self.inspect("base")["state"] == "running")
            # It is saved to its end, and can be saved again.
            self.wait_until(lambda: self.qvm("qmp", "base", "query-status").stdout.startswith('{"status":"running"'))
        self.assertEqual(self.in_guest("base", "echo lives"), "lives\n")
        self.assert_whole()

    def test_a_supervisor_that_is_killed(self):
        for i in range(TRIES // 2):
            name = self.booted("--net", "none", name=f"base{i}")
            client = self.started("snapshot", "create", "-q", name, "ready")
            time.sleep(random.uniform(0, 0.25))
            os.kill(self.inspect(name)["pid"], signal.SIGKILL)
            client.wait()
            self.assertIn(client.process.returncode, (0, 125))
            self.assert_whole()

    def test_fork_is_killed(self):
        self.booted("--net", "none")
        for _ in range(TRIES // 2):
            forking = self.started("fork", "-q", "-n", "3", "base")
            time.sleep(random.uniform(0, 0.5))
            forking.signal(signal.SIGKILL)
            forking.wait()
            others = [name for name in self.succeed("ps", "-q").split() if name != "base"]
            if others:
                self.qvm("kill", *others)
            self.wait_until(lambda: self.succeed("ps", "-q") == "base\n")
            self.qvm("gc")
            wait_for(lambda: not list(self.store.iterdir()))

    # --- --warm -----------------------------------------------------------------------------------

    WARM = ("run", "--warm", *MEMORY, "--net", "isolated")

    def test_warm(self):
        first = self.qvm(*self.WARM, self.demo, "--", "cat", "/proc/uptime", seconds=90)
        self.assertEqual(first.returncode, 0, first.stderr)
        self.assertIn("once; later runs begin where it is ready\n", first.stderr)
        at_first = float(first.stdout.split()[0])
        again = self.qvm(*self.WARM, "-p", "0:80", "--name", "ann", self.demo, "--", "sh", "-c",
                         "cat /proc/uptime; hostname; exit 5")
        self.assertEqual((again.returncode, again.stderr), (5, ""))
        self.assertLess(float(again.stdout.split()[0]), at_first + 2)
        self.assertEqual(again.stdout.split()[-1], "ann")
        kept = list((self.host.cache / "warm").iterdir())
        self.assertEqual(len(kept), 1)
        self.succeed("run", "--warm=refresh", "-q", *self.WARM[2:], self.demo, "--", "true", seconds=90)
        fresh = list((self.host.cache / "warm").iterdir())
        self.assertEqual([path.name for path in fresh], [path.name for path in kept])
        # Another machine is another snapshot, and what was not used for the longest time goes.
        self.succeed(*self.WARM, "-q", "--cpus", "2", self.demo, "--", "true", seconds=90,
                     before=("env", "QVM_WARM_SIZE=1M"))
        last = list((self.host.cache / "warm").iterdir())
        self.assertEqual(len(last), 1)
        self.assertNotEqual(last[0].name, kept[0].name)
        self.assertEqual(self.ps(), [])

    def test_warm_by_several_at_once(self):
        runs = [self.started(*self.WARM, self.demo, "--", "echo", f"run {i}", stdin=subprocess.DEVNULL)
                for i in range(3)]
        self.assertEqual([run.wait(120) for run in runs], [0, 0, 0], [run.err.text for run in runs])
        self.assertEqual([run.out.text for run in runs], [f"run {i}\n" for i in range(3)])
        booted = [run for run in runs if "later runs begin" in run.err.text]
        self.assertEqual(len(booted), 1)

    @property
    def warm(self):
        return self.host.cache / "warm"

    def run_warm(self, *words, image=None):
        """What it says on stderr."""
        done = self.qvm(*self.WARM, *words, image or self.demo, "--", "echo", "runs", seconds=90)
        self.assertEqual((done.returncode, done.stdout), (0, "runs\n"), done.stderr)
        return done.stderr

    def test_warm_is_made_anew_where_it_is_not_what_was_saved(self):
        base = self.copy_of_demo("qcow2", "base.qcow2")
        image = self.host.files / "top.qcow2"
        self.tool("qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", image)
        self.host.give(image)
        run = ("--trust-backing",)
        self.assertIn("booting", self.run_warm(*run, image=image))
        kept, = self.warm.iterdir()
        for change, why in (
                (lambda: os.utime(base), f"'{base}' was changed since it was made"),
                (lambda: (kept / "memory").unlink(), f"open '{kept}/memory': No such file or directory"),
                (lambda: (kept / "state").write_bytes(bytes((kept / "state").stat().st_size)),
                 f"'{kept}/state' is not what was written when it was made"),
                (lambda: (kept / "manifest.json").write_text(""), f"'{kept}/manifest.json' .*")):
            with self.subTest(why=why):
                change()
                self.assertRegex(self.run_warm(*run, image=image),
                                 f"^qvm: --warm: {why}: it is made anew\nqvm: booting ")
                self.assertEqual(self.run_warm(*run, image=image), "")
        self.assertEqual(list(self.warm.iterdir()), [kept])
        for path in (image, base):
            path.unlink()

    def test_warm_that_does_not_fit(self):
        self.run_warm()
        kept, = self.warm.iterdir()
        manifest = json.loads((kept / "manifest.json").read_text())
        manifest["machine"]["cpu"][0]["features"] = 1
        (kept / "manifest.json").write_text(json.dumps(manifest))
        self.assert_refused(self.qvm(*self.WARM, self.demo, "--", "true"),
                            "--warm: its CPU had other features: CPUID .*", "--warm=refresh boots it anew")

    def take_away_what_is_free(self):
        """What others do for want of room."""
        for lock in self.warm.glob("[!.]*/lock"):
            try:
                with open(lock, "r+") as file:
                    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    lock.parent.rename(self.warm / f".{lock.parent.name}.1")
            except (BlockingIOError, FileNotFoundError):
                pass

    def test_warm_is_not_taken_away_before_it_is_used(self):
        run = self.started(*self.WARM, "-q", self.demo, "--", "echo", "runs", stdin=subprocess.DEVNULL)
        while run.process.poll() is None:
            self.take_away_what_is_free()
            time.sleep(0.001)
        self.assertEqual((run.wait(), run.out.text), (0, "runs\n"), run.err.text)

    def test_warm_is_ended(self):
        """While it waits for the guest that is saved, which ends with it."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            with self.subTest(signal=number):
                run = self.started(*self.WARM, self.demo, "--", "true", stdin=subprocess.DEVNULL)
                name = self.wait_until(lambda: self.succeed("ps", "-q")).strip()
                # It does not hear that the guest is ready, before it ends.
                run.signal(signal.SIGSTOP)
                self.wait_until(lambda: self.inspect(name)["agent"], vm.BOOT)
                time.sleep(0.2)  # a run that is left to itself would have been by now
                run.signal(number)
                run.signal(signal.SIGCONT)
                run.process.wait(vm.SOON)
                self.assertEqual(run.process.returncode, -number, run.err.text)
                wait_for(lambda: self.ps() == [], vm.SOON)
                self.qvm("gc")
                self.assertEqual(list(self.warm.iterdir()), [])

    def test_warm_of_what_does_not_boot(self):
        done = self.qvm(*self.WARM, "--boot-timeout", "2s", self.hang, "--", "true")
        self.assertEqual(done.returncode, 124, done.stderr)
        self.assertEqual(list((self.host.cache / "warm").iterdir()), [])
        self.assertEqual(self.ps(), [])


if __name__ == "__main__":
    harness.main()
