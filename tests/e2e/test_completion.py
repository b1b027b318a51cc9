"""Shell completion: the script that qvm prints, in real shells, with VMs that live."""

import os
import pathlib
import shutil
import subprocess

import harness
import image_store
import vm

# Asks the function as bash does; what it wants of bash itself is printed.
ASK = """
compopt() { echo "compopt $*"; }
source <("$1" completion bash) || exit
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
_qvm
((${#COMPREPLY[@]} == 0)) || printf '%s\\n' "${COMPREPLY[@]}"
"""


class Bash(harness.Test):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        for words in (["run", "-q", "-d", "--net", "none", "--name", "alive"],
                      ["run", "-q", "-d", "--net", "isolated", "--group", "lab", "--name", "web"],
                      ["create", "--net", "none", "--name", "asleep"]):
            subprocess.run([harness.QVM, *words, harness.Test.demo], check=True, timeout=60,
                           stdout=subprocess.DEVNULL)

    @classmethod
    def tearDownClass(cls):
        for words in (["kill", "alive", "web"], ["rm", "asleep"]):
            subprocess.run([harness.QVM, *words], check=True, timeout=60,
                           stdout=subprocess.DEVNULL)
        super().tearDownClass()

    def complete(self, *words):
        """What is offered for the last of the words."""
        done = subprocess.run(["bash", "--norc", "-c", ASK, "bash", harness.QVM, *words],
                              cwd=self.host.cwd, capture_output=True, text=True, timeout=60)
        self.assertEqual(done.stderr, "")
        return done.stdout.splitlines()

    def test_commands(self):
        self.assertEqual(self.complete("re"), ["resume", "restart"])
        self.assertEqual(self.complete("net", ""), ["ls", "inspect", "exec"])

    def test_options(self):
        self.assertEqual(self.complete("run", "--ti"), ["--timeout", "--timings"])
        self.assertEqual(self.complete("stop", "--"), ["--help", "--timeout", "--time"])
        self.assertEqual(self.complete("net", "ls", "--j"), ["--json"])

    def test_vms_that_live(self):
        for command in ("stop", "kill", "pause", "resume", "restart", "console", "qmp"):
            with self.subTest(command):
                self.assertEqual(self.complete(command, ""), ["alive", "web"])
        self.assertEqual(self.complete("stop", "-t", "5", "alive", "w"), ["web"])

    def test_vms_that_do_not_live(self):
        for command in ("start", "rm", "inspect", "logs", "wait"):
            with self.subTest(command):
                self.assertEqual(self.complete(command, "a"), ["alive", "asleep"])

    def test_images(self):
        self.addCleanup(image_store.Store(self.host).remove)
        for name in ("disk:1", "disk:2", "other"):
            self.succeed("image", "import", self.hang, name)
        self.assertEqual(self.complete("image", "rm", ""), ["disk:1", "disk:2", "other"])
        # As bash breaks the words, and wants what follows the colon.
        self.assertEqual(self.complete("image", "export", "disk", ":"), ["1", "2"])
        self.assertEqual(self.complete("image", "tag", "disk", ":", "2"), ["2"])
        self.assertIn("debian:13", self.complete("image", "pull", "debi"))
        (self.host.cwd / "disk.raw").touch()
        self.addCleanup((self.host.cwd / "disk.raw").unlink)
        with self.subTest("a machine's is a file as well"):
            self.assertEqual(self.complete("run", "dis"), ["compopt -o default", "disk:1", "disk:2", "disk.raw"])

    def test_networks(self):
        self.assertEqual(self.complete("net", "inspect", ""), ["alive", "lab", "web"])
        self.assertEqual(self.complete("net", "exec", "l"), ["lab"])

    def test_the_command_of_net_exec(self):
        self.assertIn("mktemp", self.complete("net", "exec", "lab", "mktem"))
        self.assertIn("mktemp", self.complete("net", "exec", "lab", "--", "mktem"))
        self.assertEqual(self.complete("net", "exec", "lab", "ls", "-"), ["compopt -o default"])

    def test_values(self):
        self.assertEqual(self.complete("run", "--net", ""),
                         ["isolated", "nat", "flat", "user", "none", "bridge="])
        self.assertEqual(self.complete("create", "--accel", "k"), ["kvm"])
        self.assertEqual(self.complete("run", "--memory", ""), [])
        self.assertEqual(self.complete("completion", ""), ["bash", "zsh", "fish"])

    def test_values_after_an_equals_sign(self):
        # As bash breaks the words.
        self.assertEqual(self.complete("run", "--accel", "=", "t"), ["tcg"])
        self.assertEqual(self.complete("run", "--net", "="),
                         ["isolated", "nat", "flat", "user", "none", "bridge="])

    def test_files(self):
        files = ["compopt -o default"]
        self.assertEqual(self.complete("run", ""), files)
        self.assertEqual(self.complete("run", "--net", "=", "isolated", "-d", "x"), files)
        self.assertEqual(self.complete("run", "-p", "8080", ":", "80", ""), files)
        self.assertEqual(self.complete("create", "--kernel", ""), files)
        self.assertEqual(self.complete("run", "--timings", "=", "t"), files)
        self.assertEqual(self.complete("image", "demo", ""), files)

    def test_on_a_terminal(self):
        program = pathlib.Path(harness.QVM)
        shell = vm.TerminalVm(["env", f"PATH={program.parent}:{os.environ['PATH']}", "TERM=dumb",
                               "bash", "--norc", "--noprofile", "-i"], harness.host)
        self.addCleanup(shell.end)
        shell.type("source <(qvm completion bash); echo 'rea''dy'\n")
        shell.out.expect("ready", vm.SOON)
        shell.type("qvm insp\tali\t| grep -c '\"alive\"'; exit\n")
        shell.out.expect(r"\n1\r", vm.SOON)


class OtherShells(harness.Test):
    def script(self, shell):
        if not shutil.which(shell):
            self.skipTest(f"there is no {shell}")
        path = pathlib.Path(self.host.files / f"completion.{shell}")
        done = self.qvm("completion", shell)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        path.write_text(done.stdout)
        return path

    def test_syntax(self):
        for shell in ("bash", "zsh", "fish"):
            with self.subTest(shell):
                done = subprocess.run([shell, "-n", self.script(shell)], capture_output=True,
                                      text=True, timeout=60)
                self.assertEqual((done.returncode, done.stderr), (0, ""))

    def test_fish(self):
        command = f"source {self.script('fish')}; complete -C '{harness.QVM} run --accel k'"
        done = subprocess.run(["fish", "--no-config", "-c", command], capture_output=True,
                              text=True, timeout=60)
        self.assertRegex(done.stdout, "^kvm")

    def test_a_shell_that_is_not_known(self):
        self.assert_refused(self.qvm("completion", "ksh"), "SHELL 'ksh': is not a shell",
                            "bash, zsh and fish")


if __name__ == "__main__":
    harness.main()
