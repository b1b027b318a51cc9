"""qvm doctor: what it finds on the played host, and on the same host with something taken away."""

import json
import os
import pty
import re
import shutil
import subprocess

import harness
import picture

LINE = re.compile(r"^(ok     |warning|missing)  (\S+) +(\S.*)$")
REMEDY = re.compile(r"^         -> \S.*$")


class Doctor(harness.Test):
    def findings(self, status, name, **more):
        """The findings of that name; `status` is qvm's exit status."""
        done = self.qvm("doctor", "--json", **more)
        self.assertEqual((done.returncode, done.stderr), (status, ""), done.stdout)
        found = [finding for finding in json.loads(done.stdout) if finding["name"] == name]
        self.assertTrue(found, done.stdout)
        return found

    def finding(self, status, name, **more):
        (found,) = self.findings(status, name, **more)
        return found

    def nft(self, commands, undo):
        """Rules on the host until the test's end."""
        subprocess.run(["nft", commands], check=True, timeout=20)
        self.addCleanup(subprocess.run, ["nft", undo], check=True, timeout=20)

    def cover(self, path, with_path="/dev/null"):
        subprocess.run(["mount", "--bind", with_path, path], check=True, timeout=20)
        self.addCleanup(subprocess.run, ["umount", path], check=True, timeout=20)

    def assert_unchanged_by_doctor(self, **more):
        before = picture.Picture(self.host)
        done = self.qvm("doctor", **more)
        self.assertEqual(before.diff(picture.Picture(self.host)), "")
        return done

    def test_the_played_host_is_fine(self):
        done = self.assert_unchanged_by_doctor()
        self.assertEqual((done.returncode, done.stderr), (0, ""), done.stdout)
        for line in done.stdout.splitlines():
            self.assertRegex(line, f"{LINE.pattern}|{REMEDY.pattern}")
        fine = {match[2] for match in map(LINE.match, done.stdout.splitlines())
                if match and match[1].strip() == "ok"}
        self.assertLessEqual({"qemu", "qemu-img", "tun", "namespaces", "nftables", "firewall",
                              "dnsmasq", "run-directory", "cache-directory"}, fine)

    def test_columns_are_aligned(self):
        lines = self.qvm("doctor").stdout.splitlines()
        self.assertEqual(len({match.start(3) for match in map(LINE.match, lines) if match}), 1)

    def test_json(self):
        done = self.qvm("doctor", "--json")
        findings = json.loads(done.stdout)
        self.assertEqual(findings[0]["name"], "qemu")
        for finding in findings:
            self.assertEqual(set(finding), {"name", "status", "found", "remedy"})
            self.assertIn(finding["status"], {"ok", "warning", "missing"})
            self.assertEqual(finding["status"] == "ok", finding["remedy"] == "", finding)

    def test_kvm_is_judged_as_run_judges_it(self):
        plan = self.qvm("run", "-q", "--dry-run", "--net", "none", self.hang).stdout
        if "-accel kvm" not in plan:
            self.assertEqual(self.finding(0, "kvm")["status"], "warning")

    def test_no_dnsmasq(self):
        self.cover(shutil.which("dnsmasq"))
        self.assertEqual(self.finding(1, "dnsmasq"), {
            "name": "dnsmasq", "status": "missing", "found": "it is not installed",
            "remedy": "apt-get install dnsmasq-base"})

    def test_no_tun(self):
        self.cover("/dev/net", self.host.cwd)
        found = self.finding(1, "tun")
        self.assertEqual((found["status"], found["remedy"]), ("missing", "modprobe tun"))

    @harness.needs_root("nothing is forwarded without it")
    def test_a_chain_that_drops_is_named(self):
        self.nft("add table ip strict; add chain ip strict through "
                 "{ type filter hook forward priority 0; policy drop; }", "delete table ip strict")
        found = self.finding(0, "firewall")
        self.assertEqual(found["status"], "warning")
        self.assertIn("ip strict through, policy drop", found["found"])

    def test_its_remedy_is_one(self):
        self.nft("add table ip strict; add chain ip strict through "
                 "{ type filter hook forward priority 0; policy drop; }", "delete table ip strict")
        subprocess.run(["sh", "-c", self.finding(0, "firewall")["remedy"]], check=True, timeout=20)
        self.assertEqual(self.finding(0, "firewall")["status"], "ok")

    @harness.needs_root("nothing is forwarded without it")
    def test_docker_is_recognised(self):
        if not shutil.which("iptables"):
            self.skipTest("there is no iptables")
        rules = "*filter\n:FORWARD DROP\n:DOCKER-USER -\n-A FORWARD -j DOCKER-USER\nCOMMIT\n"
        subprocess.run(["iptables-nft-restore"], input=rules, text=True, check=True, timeout=20)
        self.addCleanup(subprocess.run, ["nft", "delete table ip filter"], check=True, timeout=20)
        found = self.finding(0, "firewall")
        self.assertIn("ip filter FORWARD, policy drop (Docker's)", found["found"])
        subprocess.run(["sh", "-c", found["remedy"]], check=True, timeout=20)
        self.assertEqual(self.finding(0, "firewall")["status"], "ok")

    def test_a_directory_that_cannot_be_written(self):
        before = ["env", "QVM_CACHE_DIR=/dev/null/cache"]
        found = self.finding(1, "cache-directory", before=before)
        self.assertEqual(found["status"], "missing")
        self.assertTrue(found["found"].startswith("/dev/null/cache: "), found)
        self.assertIn("QVM_CACHE_DIR", found["remedy"])

    def test_few_descriptors(self):
        found = self.finding(0, "descriptors", before=["prlimit", "--nofile=1024:1024"])
        self.assertEqual((found["status"], found["found"]), ("warning", "at most 1024"))

    @harness.needs_root("it is taken away here")
    def test_a_sysctl_that_forbids_is_named(self):
        # A user namespace has limits of its own.
        before = ["unshare", "--user", "--map-root-user", "sh", "-c",
                  'echo 0 >/proc/sys/user/max_net_namespaces && exec "$@"', "sh"]
        found = self.finding(1, "namespaces", before=before)
        self.assertIn("user.max_net_namespaces = 0", found["found"])
        self.assertRegex(found["remedy"], "^sysctl -w user.max_net_namespaces=")
        self.assertEqual(self.finding(0, "namespaces")["status"], "ok")

    def test_full_stdout_is_an_error(self):
        with open("/dev/full", "w") as full:
            done = subprocess.run([harness.QVM, "doctor"], stdout=full, stderr=subprocess.PIPE,
                                  text=True, timeout=30)
        self.assertEqual(done.returncode, 125)
        self.assertRegex(done.stderr, r"^qvm: write to stdout: ")


@harness.needs_root("it is taken away here")
class WithoutPrivilege(harness.Test):
    """A user with nothing but namespaces of his own."""

    def doctor(self):
        qvm = self.host.base / "qvm"  # where nobody may run it
        shutil.copy(harness.QVM, qvm)
        qvm.chmod(0o755)
        self.addCleanup(qvm.unlink)
        done = subprocess.run(
            ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "env",
             f"QVM_RUN_DIR={self.host.base}/none", f"QVM_CACHE_DIR={self.host.base}/none",
             qvm, "doctor", "--json"],
            cwd="/", timeout=30, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        self.assertEqual((done.returncode, done.stderr), (1, ""))
        return {finding["name"]: finding for finding in json.loads(done.stdout)}

    def test_what_a_user_lacks(self):
        found = self.doctor()
        self.assertEqual(found["run-directory"]["status"], "missing")
        self.assertEqual(found["firewall"]["status"], "ok")
        if os.stat("/dev/net/tun").st_mode & 0o006 != 0o006:
            self.assertEqual(found["tun"]["remedy"], "chmod 0666 /dev/net/tun")


class Colour(harness.Test):
    def on_terminal(self, **variables):
        leader, follower = pty.openpty()
        done = subprocess.run([harness.QVM, "doctor"], stdout=follower, timeout=30,
                              env={**os.environ, "NO_COLOR": "", "TERM": "xterm", **variables})
        os.close(follower)
        text = b""
        try:
            while block := os.read(leader, 4096):
                text += block
        except OSError:  # how a terminal says that it is over
            pass
        os.close(leader)
        self.assertEqual(done.returncode, 0)
        return text.decode()

    def test_of_the_status_word_on_a_terminal(self):
        self.assertRegex(self.on_terminal(), r"(?m)^\x1b\[32mok     \x1b\[0m  qemu ")

    def test_never_where_it_is_not_wanted(self):
        self.assertNotIn("\x1b", self.on_terminal(NO_COLOR="1"))
        self.assertNotIn("\x1b", self.on_terminal(TERM="dumb"))

    def test_never_in_a_pipe(self):
        self.assertNotIn("\x1b", self.qvm("doctor", before=["env", "TERM=xterm"]).stdout)


if __name__ == "__main__":
    harness.main()
