#include "images/debian_steps.h"

namespace qvm::images {

const std::vector<DebianFile> debian_files{
    {"etc/hostname", "debian\n"},
    {"etc/hosts", "127.0.0.1 localhost\n127.0.1.1 debian\n::1 localhost\n"},
    {"etc/fstab", "LABEL=root / ext4 defaults 0 0\n"},
    {"etc/cloud/cloud.cfg.d/90-qvm.cfg", R"(datasource_list: [NoCloud, None]
apt:
  preserve_sources_list: true
ssh_genkeytypes: [ed25519]
locale: false
grub_dpkg:
  enabled: false
)"},
    {"etc/initramfs-tools/conf.d/qvm", "MODULES=list\n"},
    {"usr/share/initramfs-tools/modules.d/qvm", "virtio_pci\nvirtio_blk\nvirtio_console\n"},
    {"etc/modprobe.d/qvm.conf", R"(# Drivers of the host's CPU, which udev loads one after another.
blacklist kvm_amd
blacklist kvm_intel
blacklist aesni_intel
blacklist ghash_clmulni_intel
blacklist sha512_ssse3
blacklist sha256_ssse3
blacklist sha1_ssse3
blacklist crc32_pclmul
blacklist crct10dif_pclmul
blacklist powernow_k8
)"},
    {"etc/systemd/journald.conf.d/qvm.conf", "[Journal]\nStorage=volatile\n"},
    {"etc/systemd/system/cloud-init-local.service.d/late.conf",
     R"(# Seconds of Python: udev finds the guest agent's port first.
[Service]
CPUWeight=idle
)"},
    {"etc/systemd/system/qemu-guest-agent.service.d/early.conf",
     R"(# As soon as there is a file system to write to, not after cloud-init.
[Unit]
DefaultDependencies=no
After=local-fs.target systemd-tmpfiles-setup.service
Conflicts=shutdown.target
Before=shutdown.target
)"},
    {"etc/systemd/system/systemd-networkd-wait-online.service.d/any.conf",
     R"(# One NIC will do; and a NIC that is configured but absent does not come.
[Service]
ExecStart=
ExecStart=/lib/systemd/systemd-networkd-wait-online --any --timeout=30
)"},
};

// What a guest that lives for a minute does not need, and would wait for without KVM.
const std::vector<DebianFile> debian_links{
    {"etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf"},
    {"etc/systemd/system/apt-daily.timer", "/dev/null"},
    {"etc/systemd/system/apt-daily-upgrade.timer", "/dev/null"},
    {"etc/systemd/system/dpkg-db-backup.timer", "/dev/null"},
    {"etc/systemd/system/e2scrub_all.timer", "/dev/null"},
    {"etc/systemd/system/e2scrub_reap.service", "/dev/null"},
    {"etc/systemd/system/fstrim.timer", "/dev/null"},
    {"etc/systemd/system/getty@tty1.service", "/dev/null"},
    {"etc/systemd/system/modprobe@.service", "/dev/null"},
    {"etc/systemd/system/systemd-pstore.service", "/dev/null"},
    {"etc/systemd/system/systemd-repart.service", "/dev/null"},
    {"etc/systemd/system/sys-kernel-debug.mount", "/dev/null"},
    {"etc/systemd/system/sys-kernel-tracing.mount", "/dev/null"},
    {"etc/systemd/system-generators/systemd-cryptsetup-generator", "/dev/null"},
    {"etc/systemd/system-generators/systemd-gpt-auto-generator", "/dev/null"},
    {"etc/systemd/system-generators/systemd-hibernate-resume-generator", "/dev/null"},
    {"etc/systemd/system-generators/systemd-integritysetup-generator", "/dev/null"},
    {"etc/systemd/system-generators/systemd-rc-local-generator", "/dev/null"},
    {"etc/systemd/system-generators/systemd-run-generator", "/dev/null"},
    {"etc/systemd/system-generators/systemd-system-update-generator", "/dev/null"},
    {"etc/systemd/system-generators/systemd-sysv-generator", "/dev/null"},
    {"etc/systemd/system-generators/systemd-veritysetup-generator", "/dev/null"},
};

}  // namespace qvm::images
