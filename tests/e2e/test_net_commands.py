"""net ls, inspect and exec: the namespaces of VMs that live."""

import json
import os
import signal
import subprocess

import harness


class NetCommands(harness.Test):
    def test_networks(self):
        self.assertEqual(self.succeed("net", "ls", "--json"), "[]\n")
        self.assertEqual(self.succeed("net", "ls").split(), ["NAME", "MODE", "SUBNET", "HOST",
                                                             "LINK", "VMS"])
        self.detach("--net", "nat", "--name", "web", self.hang)
        self.detach("--net", "isolated,subnet=10.9.8.0/24", "--name", "lone", self.hang)
        self.detach("--net", "none", "--name", "cut", self.hang)
        told = json.loads(self.succeed("net", "ls", "--json"))
        self.assertEqual([(net["name"], net["mode"], net["subnet"]) for net in told],
                         [("lone", "isolated", "10.9.8.0/24"), ("web", "nat", "192.168.26.0/24")])
        self.assertIsNone(told[0]["host_link"])
        if harness.ROOTLESS:
            self.assertIsNone(told[1]["host_link"])
        else:
            self.assertRegex(told[1]["host_link"], "^qvm-")
        self.assertEqual([vm["name"] for vm in told[1]["vms"]], ["web"])
        lines = self.succeed("net", "ls").splitlines()
        self.assertEqual([line.split()[0] for line in lines], ["NAME", "lone", "web"])
        (one,) = json.loads(self.succeed("net", "inspect", "web"))
        self.assertEqual(one, told[1])
        for verb in ("inspect", "exec"):
            words = ["--", "true"] if verb == "exec" else []
            self.assert_refused(self.qvm("net", verb, "unknown", *words), "'unknown'", "qvm net ls")
            self.assert_refused(self.qvm("net", verb, "cut", *words), "'cut': --net none")

    def test_exec(self):
        self.detach("--net", "nat", "--name", "web", self.hang)
        run = ("net", "exec", "web", "--")
        self.assertIn("192.168.26.1/24", self.succeed(*run, "ip", "-o", "addr"))
        self.wait_until(lambda: "10.213.0.1/31" in self.succeed(*run, "ip", "-o", "addr"))
        with self.subTest("/sys and resolv.conf are the namespace's; the host's stay"):
            before = os.listdir("/sys/class/net")
            self.assertEqual(set(self.succeed(*run, "ls", "/sys/class/net").split()),
                             {"lo", "tap0", "up0"})
            inside = self.succeed(*run, "cat", "/etc/resolv.conf")
            self.assertNotIn("127.0.0.53", inside)
            with open("/etc/resolv.conf") as file:
                self.assertIn("127.0.0.53", file.read())
            self.assertEqual(os.listdir("/sys/class/net"), before)
        with self.subTest("status, words, streams"):
            for status in (0, 1, 42, 125, 255):
                self.assertEqual(self.qvm(*run, "sh", "-c", f"exit {status}").returncode, status)
            self.assertEqual(self.qvm(*run, "sh", "-c", "kill -9 $$").returncode, -signal.SIGKILL)
            self.assertEqual(self.succeed(*run, "printf", "%s|", "a b", "", "--", "-x"),
                             "a b||--|-x|")
            done = subprocess.run([harness.QVM, *run, "cat"], input="through\n",
                                  capture_output=True, text=True, timeout=30)
            self.assertEqual(done.stdout, "through\n")
        with self.subTest("what cannot be run"):
            done = self.qvm(*run, "no-such-command")
            self.assertEqual((done.returncode, done.stdout), (127, ""))
            self.assertRegex(done.stderr, "^qvm: .*'no-such-command': No such file or directory\n$")
            done = self.qvm(*run, self.hang)
            self.assertEqual(done.returncode, 126)
            self.assertRegex(done.stderr, f"'{self.hang}': Permission denied")
            self.assert_refused(self.qvm("net", "exec", "web"), "COMMAND is missing")
            self.assert_refused(self.qvm("net", "exec", "web", "--"), "COMMAND is missing")
        with self.subTest("a command that outlives its VM has a namespace, and no VM waits for it"):
            sleeper = self.started(*run, "sh", "-c", "echo inside; exec sleep 60")
            sleeper.out.expect("inside", 30)
            self.succeed("kill", "web")
            self.assertEqual(self.succeed("net", "ls", "--json"), "[]\n")
            sleeper.signal(signal.SIGTERM)
            self.assertEqual(sleeper.wait(), -signal.SIGTERM)


if __name__ == "__main__":
    harness.main()
