"""The supervisor's N-th system call that may fail fails, for many N: exit status 125 and a line
that says which step failed on what and why, or a run as if nothing had happened. Never a crash, a
hang, a guest without its network; and nothing is left.

QVM_EVERY_POINT=1 tries every one, with every error of the table; QVM_POINTS=FIRST-LAST some."""

import difflib
import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import calls
import harness
import picture
import vm

POINTS = 6  # of each variant, unless it is every one
ENDED = 128 + signal.SIGTERM
OVER = 12  # seconds: more than --timeout
LIFE = ["-q", "--timeout", "6", "--name", "vm"]

# What may happen to a call of ours by its manual page, and on a host that is short of something.
# Not here: what cannot fail as we call it (signals' masks and handlers, epoll_wait, timerfd_settime,
# prctl, what is sent to or waited for from a child of ours), what fails only with the call made
# (close), and what others mind alone: the C library (futex, madvise, munmap, set_robust_list), and
# Asio, which registers descriptors of its own and does not look at what epoll_ctl says.
ERRORS = {
    "open": "EMFILE ENOMEM EPERM",
    "openat": "EMFILE ENOMEM EPERM",
    "mkdir": "ENOSPC EPERM",
    "rmdir": "EBUSY EPERM",
    "unlink": "EBUSY EPERM",
    "rename": "ENOSPC EPERM",
    "chdir": "ENOMEM EACCES",
    "getcwd": "ENOMEM",
    "stat": "ENOMEM EACCES",
    "lstat": "ENOMEM EACCES",
    "fstat": "ENOMEM",
    "newfstatat": "ENOMEM EACCES",
    "statx": "ENOMEM EACCES",
    "access": "ENOMEM EACCES",
    "faccessat": "ENOMEM EACCES",
    "faccessat2": "ENOMEM EACCES",
    "readlink": "ENOMEM EACCES",
    "getdents64": "EIO",
    "read": "EIO",
    "pread64": "EIO",
    "readv": "EIO",
    "write": "ENOSPC EIO",
    "pwrite64": "ENOSPC EIO",
    "writev": "ENOSPC EIO",
    "ftruncate": "EIO EPERM",
    "flock": "ENOLCK",
    "fcntl": "EMFILE ENOLCK",
    "ioctl": "EBUSY EPERM",
    "dup": "EMFILE",
    "dup2": "EBUSY",
    "dup3": "EBUSY",
    "pipe": "EMFILE ENFILE",
    "pipe2": "EMFILE ENFILE",
    "eventfd2": "EMFILE ENOMEM",
    "signalfd4": "EMFILE ENOMEM",
    "timerfd_create": "EMFILE ENOMEM",
    "epoll_create1": "EMFILE ENOMEM",
    "poll": "ENOMEM",
    "mmap": "ENOMEM",
    "mremap": "ENOMEM",
    "mprotect": "ENOMEM",
    "brk": "ENOMEM",
    "clone": "EAGAIN ENOMEM",
    "clone3": "EAGAIN ENOMEM",
    "fork": "EAGAIN ENOMEM",
    "vfork": "EAGAIN ENOMEM",
    "execve": "ENOMEM EACCES",
    "setns": "EPERM ENOMEM",
    "unshare": "ENOSPC EPERM",
    "setsid": "EPERM",
    "prlimit64": "EPERM",
    "getrandom": "ENOSYS",
    "socket": "EMFILE ENOBUFS",
    "socketpair": "EMFILE ENFILE",
    "bind": "EADDRINUSE ENOMEM",
    "listen": "EADDRINUSE",
    "accept4": "EMFILE ENOBUFS",
    "connect": "EAGAIN ECONNREFUSED",
    "getsockname": "ENOBUFS",
    "setsockopt": "ENOMEM",
    "getsockopt": "ENOBUFS",
    "sendto": "ENOBUFS ENOMEM",
    "sendmsg": "ENOBUFS ENOMEM",
    "recvfrom": "ENOBUFS",  # which is also what libnl makes of ENOMEM
    "recvmsg": "ENOBUFS",
}
CHOICES = {calls.NUMBERS[name]: [getattr(errno, word) for word in words.split()]
           for name, words in ERRORS.items()}
NETWORK = """ip -o -4 address; ip -o link; ip route; nft list ruleset; ss -4Hltun
             grep . /proc/sys/net/ipv4/conf/*/forwarding"""
OUT_OF_MEMORY = "qvm: out of memory"


def table(choose):
    """What at_call takes: an error for each call, or none, chosen among the list of its errors."""
    chosen = ((number, choose(errors)) for number, errors in CHOICES.items())
    return {number: error for number, error in chosen if error}


def nth(index):
    return lambda errors: errors[index] if index < len(errors) else None


def alike(line):
    """A line of two networks of the same kind: without indexes, MACs, the link's name, addresses
    and subnets that were chosen, ports that the kernel chose."""
    for pattern in (r"^\d+: ", r"@if\d+|link-netnsid \d+", r"link/ether \S+", r"qvm-[0-9a-f]{8}",
                    r"10\.213\.\d+\.\d+", r"192\.168\.\d+", r"52:54:00(:\w\w){3}",
                    r"127\.0\.0\.1:\d{5}", r'"id": "\w+"'):
        line = re.sub(pattern, "_", line)
    return re.sub(" +", " ", line)


class FailingCalls(calls.Test):
    wanted = None

    def fail_at(self, number, errors, *words, forked=False):
        """Runs qvm so. What the guest's network was when it was up, if it was, and the end."""
        text = ",".join(f"{call}={error}" for call, error in errors.items())
        started = vm.Vm(self.at_call(number, text, *words, forked=forked), self.host,
                        stdin=subprocess.DEVNULL)
        try:
            network = None
            if self.comes_up(started, words):
                network = self.settled_network()
                self.end_vm()
            status = started.wait(OVER)
        finally:
            hangs = started.end()
        self.assertFalse(hangs)
        return network, status, started.err.text

    def comes_up(self, started, words):
        try:
            started.out.expect("vm\n" if "-d" in words else harness.STARTED, OVER)
            return True
        except AssertionError:
            return False

    def end_vm(self):
        """By signals, of which the first one is for the guest; one of them may be the call that
        fails, in its handler."""
        for pid in [each["pid"] for each in self.ps_of("vm")] * 4:
            try:
                os.kill(pid, signal.SIGTERM)
            except ProcessLookupError:
                return
            time.sleep(0.15)

    def settled_network(self):
        """The network, once it is as it has to be, or after a second."""
        deadline = time.monotonic() + 1
        while True:
            network = self.network()
            if network == self.wanted or time.monotonic() > deadline:
                return network

    def network(self):
        """What a VM's network is made of, without what differs between two of the same kind."""
        inside = [["nsenter", f"--net=/proc/{pid}/ns/net"]
                  for pid, name in picture.processes().items() if name == "dnsmasq"]
        lines = json.dumps([each["net"] for each in self.ps()], indent=1).splitlines()
        for enter in [[], *inside]:
            done = subprocess.run([*enter, "sh", "-c", NETWORK], capture_output=True, text=True,
                                  timeout=20)
            lines += sorted(map(alike, done.stdout.splitlines()))
        lines += [path.read_text() for path in sorted(self.host.run.rglob("dhcp-hosts"))]
        return "\n".join(map(alike, lines))

    def try_points(self, *options, forked=False):
        self.try_command(*options, "-m", "64M", self.hang, forked=forked)

    def try_command(self, *words, forked=False):
        words = ("run", *LIFE, *words)
        self.sweep()  # which makes directories that stay
        before = picture.Picture(self.host)
        problems = []
        for point, errors in self.points(words, forked):
            problem = self.try_point(point, errors, words, forked, before)
            if problem:
                problems.append(problem)
                print(problem, file=sys.stderr, flush=True)
        self.assertEqual(problems, [])

    def points(self, words, forked):
        """Where, and with which errors."""
        first = table(nth(0))
        self.wanted, status, text = self.fail_at(calls.NEVER, first, *words, forked=forked)
        self.assertEqual(status, 0 if "-d" in words else ENDED, text)
        call, total = self.what_was_hit()
        self.assertIsNone(call)
        self.wait_until(lambda: not self.ps_of("vm"))
        print(f"{total} calls", file=sys.stderr)
        if some := os.environ.get("QVM_POINTS"):
            begin, end = map(int, some.split("-"))
            return [(point, first) for point in range(begin, min(end, total) + 1)]
        if calls.EVERY_POINT:
            return [(point, table(nth(index))) for index in range(3)
                    for point in range(1, total + 1)]
        return [(1 + int(total * (i + random.random()) / POINTS), table(random.choice))
                for i in range(POINTS)]

    def ps_of(self, name):
        return [each for each in self.ps() if each["name"] == name]

    def try_point(self, point, errors, words, forked, before):
        """What was wrong with it, as text."""
        try:
            network, status, text = self.fail_at(point, errors, *words, forked=forked)
            call, _ = self.what_was_hit()
        except Exception as error:
            return f"call {point}: {error!r}"
        if call is None:
            return None
        error = errors[calls.NUMBERS[call]]
        what = f"call {point}, {call}: {errno.errorcode[error]}: status {status}: {text!r}"
        if os.environ.get("QVM_SHOW"):
            print(what, file=sys.stderr, flush=True)
        try:
            if "-d" in words:
                self.wait_until(lambda: not self.ps_of("vm"))
            self.judge(status, text, error, words)
            if status != 125:
                self.assertIsNotNone(network, "the guest did not come up")
                self.assertEqual("\n".join(difflib.unified_diff(
                    self.wanted.splitlines(), network.splitlines(), n=0, lineterm="")), "")
            self.assert_nothing_left(before, "left")
        except AssertionError as wrong:
            return f"{what}: {wrong}"
        return None

    def judge(self, status, text, error, words):
        lines = text.splitlines()
        if status != 125:
            self.assertEqual((status, text), (0 if "-d" in words else ENDED, ""))
            return
        self.assertIn(len(lines), (1, 2))
        if len(lines) == 2:
            self.assertRegex(lines[1], "^hint: .")
        if lines[0] == OUT_OF_MEMORY:
            return self.assertEqual(error, errno.ENOMEM)
        step = re.match("qvm: (.+?): .", lines[0])
        self.assertTrue(step, "no step and reason")
        self.assertIn(" ", step.group(1), "a call's name is no step")
        # pthread_create(3) says EAGAIN whatever was short.
        said = errno.EAGAIN if "start a thread" in text else error
        self.assertIn(os.strerror(said), text)

    def test_isolated(self):
        self.try_points("--net", "isolated")

    def test_nat(self):
        self.try_points("--net", "nat", "-p", "0:80")

    @harness.needs_root("flat needs root")
    def test_flat(self):
        self.try_points("--net", "flat")

    def test_in_the_background(self):
        self.try_points("-d", "--net", "nat", forked=True)

    def test_the_parent_of_one_in_the_background(self):
        self.try_points("-d", "--net", "isolated")

    def test_a_clone(self):
        self.detach("--net", "nat", "--name", "base", "-m", "64M", self.hang)
        self.addCleanup(shutil.rmtree, self.host.data / "snapshot")
        self.succeed("snapshot", "create", "-q", "base", "saved")
        self.succeed("kill", "base")
        self.try_command("-d", "snapshot:saved", forked=True)

    def test_second_of_a_group(self):
        self.detach("--net", "nat", "--group", "lab", "--name", "first", "-m", "64M", self.hang)
        self.try_points("--group", "lab")


if __name__ == "__main__":
    harness.main()
