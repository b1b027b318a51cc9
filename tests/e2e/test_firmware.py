"""What boots a guest: UEFI with variables of its own, secure boot, a TPM; and another architecture."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import unittest

import harness
import vm
from test_confinement import errors_of, inside, status_of

EFIVARS = "/sys/firmware/efi/efivars"
VARIABLE = f"{EFIVARS}/QvmTest-0f9a1c1e-3f6b-4b0e-9d5a-6d1f6f2f3a55"
MOUNT = f"mount -t efivarfs efivarfs {EFIVARS}"
# Its attributes (non-volatile, for boot services and at run time), and its value.
WRITE = f"printf '\\007\\000\\000\\000kept' >{VARIABLE}"
READ = f"tail -c +5 {VARIABLE}"
# TPM2_ReadClock, whose answer has at byte 26 how often the TPM was reset (TPM 2.0, part 3, 29.1).
RESETS = (r"exec 3<>/dev/tpm0; printf '\200\001\000\000\000\012\000\000\001\201' >&3; "
          "dd bs=64 count=1 <&3 2>/dev/null | od -An -tu1 -j29 -N1")
AARCH64 = os.environ.get("QVM_DEMO_AARCH64", "")
SIGNED = os.environ.get("QVM_SIGNED", "")
BOOT = 200  # seconds: UEFI takes as long as the rest


def reachable(disk):
    """The disk where the user whose qvm is finds it."""
    return harness.host.bind(disk, os.path.basename(disk)) if harness.ROOTLESS else disk


class Test(harness.Test):
    def setUp(self):
        super().setUp()
        self.addCleanup(shutil.rmtree, self.host.data / "snapshot", ignore_errors=True)


class Firmware(Test):
    def in_guest(self, command, *options):
        done = self.qvm("run", "-q", "--net", "none", *options, "--", "sh", "-c", command, seconds=BOOT)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        return done.stdout.strip()

    def on_created(self, name, command):
        """What a command prints in a VM that was created, which is started for it."""
        self.succeed("start", "-q", "--wait-for", "agent", name, seconds=BOOT)
        said = self.succeed("exec", name, "sh", "-c", command)
        self.assertEqual(self.qvm("stop", name, seconds=BOOT).returncode, 0)
        return said.strip()

    def without(self, directory):
        """Nothing is in that directory of the host until the test's end."""
        subprocess.run(["mount", "-t", "tmpfs", "none", directory], check=True, timeout=20)
        self.addCleanup(subprocess.run, ["umount", directory], check=True, timeout=20)

    # --- UEFI -----------------------------------------------------------------------------------

    def test_the_disk_boots(self):
        self.assertEqual(self.in_guest("ls /sys/firmware", "--firmware", "uefi", self.demo).split().count("efi"), 1)
        self.assertNotIn("efi", self.in_guest("ls /sys/firmware", "--firmware", "bios", self.demo).split())

    def test_variables_of_a_throw_away_vm_go_with_it(self):
        options = ("--firmware", "uefi", *self.boot_files())
        self.assertEqual(self.in_guest(f"{MOUNT}; {WRITE}; {READ}", *options), "kept")
        self.assertEqual(self.in_guest(f"{MOUNT}; ls {VARIABLE} 2>&1 || true", *options),
                         f"ls: {VARIABLE}: No such file or directory")

    def test_what_a_created_vm_keeps(self):
        """Variables, and the TPM's state."""
        name = self.create("--net", "none", "--firmware", "uefi", "--tpm", *self.boot_files(), self.demo)
        self.assertEqual(self.on_created(name, f"{MOUNT}; {WRITE}; {READ}; {RESETS}").split(), ["kept", "1"])
        with self.subTest("powered down"):
            self.assertEqual(self.on_created(name, f"{MOUNT}; {READ}; {RESETS}").split(), ["kept", "2"])
        with self.subTest("killed"):
            self.succeed("start", "-q", name)
            self.succeed("kill", name)
            self.assertEqual(self.on_created(name, f"{MOUNT}; {READ}").split(), ["kept"])
        directory = self.host.data / "vm" / name
        self.assertEqual(json.loads((directory / "definition.json").read_text())["vm"]["firmware"], "uefi")
        self.succeed("rm", name)
        self.assertFalse(directory.exists())

    def test_a_snapshot_has_the_variables(self):
        self.detach("-m", "256M", "--net", "none", "--name", "base", "--firmware", "uefi", "--wait-for", "agent",
                    *self.boot_files())
        self.succeed("exec", "base", "sh", "-c", f"{MOUNT}; {WRITE}")
        self.succeed("snapshot", "create", "-q", "base", "ready")
        self.succeed("kill", "base")
        # Mounted anew, it has what the firmware says.
        again = f"umount {EFIVARS}; {MOUNT}; {READ}; ls {EFIVARS} | grep -c ^Qvm"
        for _ in range(2):
            said = self.succeed("run", "-q", "snapshot:ready", "--", "sh", "-c",
                                f"{again}; {WRITE.replace('QvmTest', 'QvmMore')}; {again}", seconds=BOOT)
            self.assertEqual(said, "kept1\nkept2\n")

    def test_nothing_to_boot(self):
        done = self.qvm("run", "-q", "--net", "none", "--firmware", "uefi", self.hang, seconds=BOOT)
        self.assertEqual(done.returncode, 125)
        self.assertEqual(done.stderr, f"qvm: boot '{self.hang}': the firmware found no boot loader on it\n")

    def test_a_file(self):
        firmware = self.host.files / "firmware,1.fd"
        shutil.copy("/usr/share/ovmf/OVMF.fd", firmware)
        firmware.chmod(0o600)
        self.host.give(firmware)
        self.addCleanup(firmware.unlink)
        self.assertIn("efi", self.in_guest("ls /sys/firmware", "--firmware", firmware, *self.boot_files()).split())
        self.assert_refused(self.qvm("run", "--net", "none", "--firmware", "none.fd", self.hang),
                            "--firmware 'none.fd': No such file or directory")

    # --- secure boot ----------------------------------------------------------------------------

    def test_secure_boot(self):
        said = self.in_guest(f"{MOUNT}; od -An -tu1 {EFIVARS}/SecureBoot-*", "--secure-boot", *self.boot_files())
        self.assertEqual(said.split(), ["6", "0", "0", "0", "1"])
        with self.subTest("a boot loader without a signature"):
            done = self.qvm("run", "-q", "--net", "none", "--secure-boot", self.demo, seconds=BOOT)
            self.assertEqual(done.returncode, 125)
            self.assertRegex(done.stdout, "Access Denied")
            self.assertEqual(done.stderr, f"qvm: boot '{self.demo}': the firmware found no boot loader on it: "
                                          "--secure-boot takes only what is signed\n")

    # --- the TPM --------------------------------------------------------------------------------

    def test_a_tpm(self):
        said = self.in_guest(f"cat /sys/class/tpm/tpm0/tpm_version_major; {RESETS}", "--tpm", self.demo)
        self.assertEqual(said.split(), ["2", "1"])

    def test_what_swtpm_can_reach(self):
        supervisor = self.supervisor_of(self.detach("--net", "none", "--tpm", self.hang))
        pid = vm.child(supervisor, "swtpm", vm.SOON)
        status = status_of(pid)
        self.assertEqual({int(status[kind], 16) for kind in ("CapPrm", "CapEff", "CapBnd")}, {0})
        self.assertEqual((status["NoNewPrivs"], status["Seccomp"]), ("1", "2"))
        qemu = vm.child(supervisor, "qemu-system", vm.SOON)
        self.assertNotEqual(status["Uid"], status_of(qemu)["Uid"])
        files = ["/etc/passwd", "/root", "/tmp", "/proc/1/environ", "/proc/self/environ", "/proc/cmdline",
                 "/sys/class/net", str(self.hang), str(self.host.run), str(self.host.data)]

        def attempt():
            calls = {name: lambda name=name: os.close(os.open(name, os.O_RDONLY)) for name in files}
            calls["kill"] = lambda: os.kill(qemu, 0)
            return errors_of(calls)

        found = inside(pid, attempt)
        self.assertEqual(found.pop("kill"), 1)  # EPERM
        self.assertEqual(set(found.values()), {2}, found)  # ENOENT

    def test_swtpm_goes_with_the_vm(self):
        supervisor = self.supervisor_of(self.detach("--net", "none", "--tpm", self.hang))
        pid = vm.child(supervisor, "swtpm", vm.SOON)
        os.kill(supervisor, signal.SIGKILL)
        self.wait_until(lambda: not os.path.exists(f"/proc/{pid}"))
        self.sweep()

    def test_a_guest_without_its_tpm_is_ended(self):
        guest = self.start("-q", "--net", "none", "--tpm", self.hang)
        guest.out.expect(harness.STARTED, vm.BOOT)
        os.kill(guest.child("swtpm"), signal.SIGKILL)
        self.assertEqual(guest.wait(), 123)
        self.assertEqual(guest.errors(), ["qvm: --tpm: swtpm ended: signal 9 (Killed)"])

    def test_qemu_that_dies_is_not_the_tpms_end(self):
        guest = self.start("-q", "--net", "none", "--tpm", self.hang)
        guest.out.expect(harness.STARTED, vm.BOOT)
        os.kill(guest.child("qemu-system"), signal.SIGKILL)
        self.assertEqual(guest.wait(), 123)
        self.assertEqual(guest.errors(), ["qvm: QEMU died: signal 9 (Killed)"])

    def test_no_snapshot_of_a_tpm(self):
        name = self.detach("--net", "none", "--tpm", self.hang)
        self.assert_refused(self.qvm("snapshot", "create", name, "ready"),
                            "--tpm: clones would all have its secrets")

    # --- what is missing ------------------------------------------------------------------------

    def test_what_is_missing_is_named(self):
        with contextlib.ExitStack() as stack:
            stack.callback(self.doCleanups)
            self.without("/usr/share/qemu/firmware")
            for options, why, package in (
                    (("--firmware", "uefi"), "--firmware uefi: no such firmware for x86_64", "ovmf"),
                    (("--secure-boot",), "--secure-boot: no such firmware for x86_64", "ovmf"),
                    (("--arch", "arm64"), "--firmware uefi: no such firmware for aarch64", "qemu-efi-aarch64")):
                for command in ("run", "create"):
                    self.assert_refused(self.qvm(command, "--net", "none", *options, self.hang), why,
                                        f"apt-get install {package}")
        self.assert_refused(self.qvm("run", "--net", "none", "--arch", "arm64", "--firmware", "bios", self.hang),
                            "--firmware bios: is a PC's")
        self.assert_refused(self.qvm("run", "--net", "none", "--arch", "arm64", "--accel", "kvm", self.hang),
                            "--accel kvm: the guest is aarch64, the host x86_64")
        for options, why in ((("--arch", "arm64"), "--arch aarch64: QEMU does not say"),
                             (("--tpm",), "--tpm: clones would all have its secrets")):
            self.assert_refused(self.qvm("run", "--warm", *options, self.hang), f"--warm: {why}")


@unittest.skipUnless(os.path.exists(SIGNED), "QVM_SIGNED names no disk")
class Signed(Test):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.disk = reachable(SIGNED)

    def test_it_boots(self):
        """shim, GRUB, kernel: each is looked at by the one before."""
        done = self.qvm("run", "-q", "--net", "none", "--secure-boot", self.disk, "--", "sh", "-c",
                        "dmesg | grep -o 'Secure boot enabled'", seconds=BOOT)
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, "Secure boot enabled\n", ""))


@unittest.skipUnless(os.path.exists(AARCH64), "QVM_DEMO_AARCH64 names no disk")
class Aarch64(Test):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.demo = reachable(AARCH64)

    def test_a_command(self):
        done = self.qvm("run", "--net", "isolated", "--arch", "arm64", "--tpm", self.demo, "--", "sh", "-c",
                        "uname -m; modprobe tpm_tis; cat /sys/class/tpm/tpm0/tpm_version_major; ip -4 addr show eth0",
                        seconds=BOOT)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertRegex(done.stdout, r"^aarch64\n2\n[^\0]*inet 192\.168\.26\.10/24")
        self.assertEqual(done.stderr, "qvm: no KVM here (the guest is aarch64, the host x86_64): QEMU's TCG runs "
                                      "the guest, much slower\n")

    def test_the_console_and_the_power_button(self):
        guest = self.start("-q", "--net", "none", "--arch", "aarch64", self.demo)
        guest.wait_for_prompt(BOOT)
        self.assertEqual(guest.sh("tty"), ("/dev/ttyAMA0\n", 0))
        guest.signal(signal.SIGTERM)
        self.assertEqual(guest.wait(), 128 + signal.SIGTERM)
        self.assertIn("Power down", guest.out.text)

    def test_secure_boot(self):
        done = self.qvm("run", "-q", "--net", "none", "--arch", "aarch64", "--secure-boot", self.demo, seconds=BOOT)
        self.assertEqual((done.returncode, done.stderr),
                         (125, f"qvm: boot '{self.demo}': the firmware found no boot loader on it: "
                               "--secure-boot takes only what is signed\n"))

    def test_more_than_one_command(self):
        """Ports are plugged in while it runs, and variables and architecture stay with a VM."""
        name = self.create("--net", "none", "--arch", "aarch64", self.demo)
        self.succeed("start", "-q", "--wait-for", "agent", name, seconds=BOOT)
        for word in ("one", "two", "three"):
            self.assertEqual(self.succeed("exec", name, "echo", word), f"{word}\n")
        self.assert_refused(self.qvm("snapshot", "create", name, "ready"), "--arch aarch64: QEMU does not say")
        self.assertEqual(self.qvm("stop", name, seconds=BOOT).returncode, 0)


if __name__ == "__main__":
    harness.main()
