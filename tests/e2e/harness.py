"""What every end-to-end test stands on.

    import harness

    class Something(harness.Test):
        def test_it(self):
            vm = self.start("--net", "isolated", self.demo)
            ...

    if __name__ == "__main__":
        harness.main()

main() runs the file again inside namespaces of its own (network, mount, PID), where PlayedHost
makes the host that the tests see. Every test compares that host before and after."""

import ctypes
import hashlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
import unittest

import picture
import played_host
import qmp_client
import vm

SKIPPED = 77  # ctest's SKIP_RETURN_CODE
BASE = "/mnt"  # where this process's own file system is mounted; nobody else sees it
INSIDE = "QVM_E2E_INSIDE"
GONE = 5  # seconds: the kernel takes namespaces back one after another
QVM = os.environ.get("QVM", "")
# The same as a program and the words before it, for who puts more words between them.
PROGRAM, CALLER = QVM, []
AT_CALL = os.environ.get("QVM_AT_CALL", "")
DEMO = os.environ.get("QVM_DEMO", "")
DEBIAN = os.environ.get("QVM_DEBIAN", "")  # for the tests that require its fixture

ROOTLESS = bool(os.environ.get("QVM_E2E_ROOTLESS"))
FLAT = "nat" if ROOTLESS else "flat"  # a third kind of network, for who may have one
USER_NAME = played_host.USER_NAME if ROOTLESS else "root"  # whose qvm is
NETS = ("isolated", "nat", FLAT)
AS_USER = ["setpriv", f"--reuid={played_host.USER}", f"--regid={played_host.USER}", "--init-groups",
           "--inh-caps=-all", "--"]

STARTED = "guest started"  # what the boot sectors print


def boot_sector(then, more=b"", count=0):
    """A disk whose boot sector writes a line to the serial port and goes on with `then`; `more` is
    at 0x7c27, and a count for its use at 0x7df0."""
    code = bytes.fromhex("fc 31c0 8ed8 baf803 be177c"  # cld; ds = 0; dx = 0x3f8; si = the text
                         "ac 84c0 7403 ee ebf8") + then  # lodsb; test al,al; jz; out dx,al; jmp
    sector = code.ljust(0x17, b"\x90") + STARTED.encode() + b"\r\n\0" + more
    sector = sector.ljust(0x1f0, b"\0") + count.to_bytes(2, "little")
    return sector.ljust(510, b"\0") + b"\x55\xaa" + bytes(1024 * 1024 - 512)


HANG = boot_sector(b"\xfb\xf4\xeb\xfd")  # sti; hlt; jmp to hlt
BABBLE = boot_sector(b"\xeb\xf0")  # the line again, for ever
# The line again while there is a count; then SLP_EN for S5 to the PM1a control register (ACPI).
TALK = boot_sector(b"\xeb\x12",  # jmp to 0x7c27
                   bytes.fromhex("ff0ef07d 75db"  # dec word [0x7df0]; jnz to si = the text
                                 "ba0406 b80020 ef f4 ebfd"), 20000)

host = None  # the PlayedHost, once main() has made it


def needs_root(why):
    """A test, or a class of them, that a user without privilege cannot have."""
    return unittest.skipIf(ROOTLESS, why)


class Test(unittest.TestCase):
    maxDiff = 4000

    def setUp(self):
        self.host = host
        self.before = picture.Picture(host)
        self.addCleanup(self._compare)  # the last of the cleanups

    def _compare(self):
        self.assert_host_as_before(GONE)

    def assert_host_as_before(self, seconds, *sections):
        difference = picture.difference_to(self.before, host, seconds, sections or None)
        self.assertFalse(difference, f"the host is not as it was after {seconds} s:\n{difference}")

    def diff(self):
        """What is different on the host just now."""
        return self.before.diff(picture.Picture(host))

    # --- guests ---------------------------------------------------------------------------------

    demo = DEMO

    @property
    def hang(self):
        """An image that boots and then does nothing."""
        path = host.files / "hang.raw"
        if not path.exists():
            path.write_bytes(HANG)
        return path

    @property
    def babble(self):
        """An image that boots and prints for ever."""
        path = host.files / "babble.raw"
        path.write_bytes(BABBLE)
        return path

    @property
    def talker(self):
        """An image that boots, prints for a while and powers off."""
        path = host.files / "talker.raw"
        if not path.exists():
            path.write_bytes(TALK)
        return path

    def boot_files(self):
        """The options that boot the demo disk's kernel without its boot loader."""
        kernel, initrd = host.files / "vmlinuz", host.files / "initrd"
        if not initrd.exists():
            raw = self.copy_of_demo("raw", "boot.raw")
            for file in (kernel, initrd):
                self.tool("mcopy", "-i", f"{raw}@@1048576", f"::{file.name}", file)
            raw.unlink()
        return ["--kernel", kernel, "--initrd", initrd, "--append", "console=ttyS0 quiet no_timer_check"]

    def copy_of_demo(self, format, name):
        path = host.files / name
        self.tool("qemu-img", "convert", "-O", format, DEMO, path)
        host.give(path)
        return path

    def start(self, *options, before=(), **more):
        """`qvm run` with pipes, `before` before it; it is ended with the test."""
        command = [*before, QVM, "run", *map(str, options)]
        return self._ended_with_test(vm.Vm(command, host, **more))

    def start_on_terminal(self, *options):
        return self.on_terminal("run", *options)

    def on_terminal(self, *words):
        """Any qvm command, on a terminal."""
        return self._ended_with_test(vm.TerminalVm([QVM, *map(str, words)], host))

    def started(self, *words, before=(), **more):
        """Any qvm command that goes on, with pipes."""
        return self._ended_with_test(vm.Vm([*before, QVM, *map(str, words)], host, **more))

    def _ended_with_test(self, started):
        def end():
            # A test that failed in the middle must not take the next ones with it.
            if started.end():
                self.sweep()
        self.addCleanup(end)
        return started

    # --- guests in the background ---------------------------------------------------------------

    def detach(self, *options):
        """`qvm run -d`: the VM's name. It is ended with the test."""
        done = self.qvm("run", "-q", "-d", *options)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        return self.killed_with_test(done.stdout.strip())

    def killed_with_test(self, name):
        def end():
            if (pid := self.supervisor_of(name)) and self.qvm("kill", name).returncode != 0:
                os.kill(pid, signal.SIGKILL)
                self.sweep()
        self.addCleanup(end)
        return name

    def create(self, *options):
        """`qvm create`: the VM's name. It is removed with the test."""
        done = self.qvm("create", *options)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        name = done.stdout.strip()
        self.addCleanup(self.qvm, "rm", "-f", name)
        return name

    def supervisor_of(self, name):
        """The pid of a living VM's supervisor, or nothing."""
        for vm_json in self.ps():
            if vm_json["name"] == name:
                return vm_json["pid"]
        return None

    def ps(self, *options):
        done = self.qvm("ps", "--json", *options)
        self.assertEqual(done.returncode, 0, done.stderr)
        return json.loads(done.stdout)

    def attach(self, name):
        """A client of the console's socket."""
        client = vm.ConsoleClient(host.run / name / "console.sock")
        self.addCleanup(client.end)
        return client

    def control(self, name):
        """A client of the control socket."""
        client = qmp_client.Client(host.run / name / "control.sock")
        self.addCleanup(client.close)
        return client

    def succeed(self, *words, **more):
        """What a qvm command prints that says nothing on stderr."""
        done = self.qvm(*words, **more)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        return done.stdout

    def wait_until(self, condition, seconds=vm.SOON):
        deadline = time.monotonic() + seconds
        while not (result := condition()):
            self.assertLess(time.monotonic(), deadline, f"not within {seconds} s")
            time.sleep(0.05)
        return result

    def sweep(self):
        """Any qvm command puts back what a killed one could not."""
        done = self.qvm("run", "-q", "--dry-run", "--net", "none", self.hang)
        self.assertEqual(done.returncode, 0, done.stderr)

    def boot(self, *options):
        """`qvm run` up to the demo guest's prompt."""
        started = self.start(*options)
        started.wait_for_prompt()
        return started

    def power_off(self, guest):
        guest.type("poweroff\n")
        self.assertEqual(guest.wait(), 0, guest.err.text)

    def interrupt(self, guest):
        """SIGINT until it is gone: once for the guest, again for qvm. Two that come close
        together are one to the kernel."""
        for _ in range(300):
            guest.signal(signal.SIGINT)
            try:
                guest.process.wait(0.1)
                break
            except subprocess.TimeoutExpired:
                pass
        self.assertEqual(guest.wait(), 130)

    # --- commands -------------------------------------------------------------------------------

    def instead_of(self, tool, script):
        """Words before a command, for which `tool` is this shell script, until the next one."""
        directory = host.files / f"instead-of-{tool}"
        directory.mkdir(exist_ok=True)
        self.addCleanup(shutil.rmtree, directory, ignore_errors=True)
        (directory / tool).write_text(f"#!/bin/sh\n{script}\n")
        (directory / tool).chmod(0o755)
        return ["env", f"PATH={directory}:{os.environ['PATH']}"]

    def tool(self, *command):
        subprocess.run([str(word) for word in command], check=True, timeout=60,
                       stdout=subprocess.DEVNULL)

    def qvm(self, *words, before=(), stdin=subprocess.DEVNULL, seconds=vm.SOON):
        """Runs qvm to its end; `before` are words before it, such as nsenter's."""
        command = [str(word) for word in (*before, QVM, *words)]
        return subprocess.run(command, cwd=host.cwd, stdin=stdin, capture_output=True, text=True,
                              timeout=seconds)

    def assert_refused(self, done, why, hint=None):
        """One line `qvm: ...`, perhaps one of `hint: ...`, exit status 125, and nothing else."""
        self.assertEqual(done.returncode, 125, done.stderr)
        self.assertEqual(done.stdout, "")
        lines = done.stderr.splitlines()
        self.assertTrue(lines, "nothing on stderr")
        self.assertRegex(lines[0], rf"^qvm: .*(?:{why})")
        self.assertLessEqual(len(lines), 2, done.stderr)
        if len(lines) == 2:
            self.assertRegex(lines[1], "^hint: .")
        if hint:
            self.assertRegex(lines[-1], f"^hint: .*{hint}")

    def sha256(self, path):
        return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


def _skip(reason):
    print(f"skipped: {reason}")
    sys.exit(SKIPPED)


def main():
    if not os.environ.get(INSIDE):
        _enter()
    global host
    try:
        host = played_host.PlayedHost(BASE)
    except (OSError, subprocess.SubprocessError) as error:
        _skip(f"cannot play a host: {error}")
    os.environ.update(QVM_RUN_DIR=str(host.run), QVM_CACHE_DIR=str(host.cache),
                      QVM_DATA_DIR=str(host.data))
    if ROOTLESS:
        _become_user()
    unittest.main(module="__main__", verbosity=2)


def _become_user():
    """What the tests call qvm is, from now on, qvm as a user without privilege. The tests themselves
    stay root: it is they who play the host."""
    global QVM, PROGRAM, CALLER, AT_CALL, DEBIAN
    host.add_user()
    os.environ["PATH"] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    if os.path.exists(DEBIAN):
        DEBIAN = host.bind(DEBIAN, "debian.qcow2")
    Test.demo = host.bind(DEMO, "demo.qcow2")
    (host.base / "as-user").mkdir()
    wrapper = host.base / "as-user" / "qvm"
    PROGRAM = host.bind(QVM, "qvm")
    CALLER = AS_USER
    AT_CALL = host.bind(AT_CALL, "at_call")
    wrapper.write_text(f"#!/bin/sh\nexec {' '.join(AS_USER)} {PROGRAM} \"$@\"\n")
    wrapper.chmod(0o755)
    QVM = str(wrapper)
    _own_what_is_made()


def _own_what_is_made():
    """Files that the tests make are that user's, and it still is root who makes them."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.setfsgid(played_host.USER)
    libc.setfsuid(played_host.USER)
    # Which takes some capabilities away (capabilities(7)); they are still permitted.
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3
    data = (ctypes.c_uint32 * 6)()
    if libc.capget(header, data) != 0:
        raise OSError(ctypes.get_errno(), "capget")
    data[0], data[3] = data[1], data[4]  # effective = permitted
    if libc.capset(header, data) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def _enter():
    if os.geteuid() != 0:
        _skip("namespaces of the host's kind need root")
    if not QVM or not DEMO:
        _skip("QVM and QVM_DEMO must name the program and the demo disk")
    for program in ("unshare", "nsenter", "ip", "nft", "setpriv", "setsid", "lsns", "mcopy",
                    "qemu-img", "qemu-system-x86_64", "dnsmasq"):
        if not shutil.which(program):
            _skip(f"there is no {program}")
    # --kill-child: when this process is killed, all that the tests started goes with it.
    spaces = ["unshare", "--net", "--mount", "--propagation=private", "--pid", "--fork",
              "--kill-child", "--mount-proc"]
    if subprocess.run([*spaces, "true"], timeout=20).returncode != 0:
        _skip("this kernel or container makes no namespaces")
    os.environ[INSIDE] = "1"
    # Process 1 is a shell: it reaps whoever has lost its parent.
    os.execvp("unshare", [*spaces, "sh", "-c", '"$@"; exit $?', "sh", sys.executable, "-B",
                          *sys.argv])
