#include "launcher/qemu_command.h"

#include <catch2/catch.hpp>

using namespace qvm;

namespace {

QemuSpec example() {
    QemuSpec spec;
    spec.name = "web";
    spec.disk = QemuDisk{.format = "qcow2"};
    spec.nic = QemuNic{.mac = "52:54:00:12:34:56", .queues = 1};
    return spec;
}

bool has(const std::vector<std::string>& argv, const std::string& word) {
    return std::find(argv.begin(), argv.end(), word) != argv.end();
}

}  // namespace

TEST_CASE("the whole command of a plain VM") {
    CHECK(shell_text(qemu_command(example())) == R"(qemu-system-x86_64 \
    -name web \
    -no-user-config \
    -nodefaults \
    -machine q35,vmport=off,memory-backend=memory \
    -object memory-backend-memfd,id=memory,size=1024M,share=on \
    -accel tcg \
    -cpu max \
    -smp 1 \
    -m 1024M \
    -display none \
    -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny \
    -S \
    -chardev socket,id=qmp,fd=3 \
    -mon chardev=qmp,mode=control \
    -chardev socket,id=console,fd=4 \
    -serial chardev:console \
    -device virtio-serial-pci,id=ports,max_ports=64 \
    -chardev socket,id=agent,fd=5 \
    -device virtserialport,chardev=agent,id=agent0,name=org.qemu.guest_agent.0 \
    -chardev socket,id=exec-in-0,fd=9 \
    -device virtserialport,chardev=exec-in-0,id=exec-in-0,name=qvm.in.0 \
    -chardev socket,id=exec-out-0,fd=10 \
    -device virtserialport,chardev=exec-out-0,id=exec-out-0,name=qvm.out.0 \
    -chardev socket,id=exec-err-0,fd=11 \
    -device virtserialport,chardev=exec-err-0,id=exec-err-0,name=qvm.err.0 \
    -chardev socket,id=firmware,fd=6 \
    -device isa-debugcon,iobase=0x402,chardev=firmware \
    -device virtio-rng-pci \
    -device pvpanic-pci \
    -device vmgenid,guid=auto \
    -add-fd fd=7,set=1 \
    -blockdev driver=file,node-name=base-file,filename=/dev/fdset/1,read-only=on \
    -blockdev '{"driver":"qcow2","node-name":"base","file":"base-file","read-only":true,"backing":null}' \
    -add-fd fd=8,set=2 \
    -blockdev driver=file,node-name=disk-file,filename=/dev/fdset/2,discard=unmap \
    -blockdev driver=qcow2,node-name=disk,file=disk-file,backing=base,discard=unmap,cache.no-flush=on \
    -device virtio-blk-pci,drive=disk,bootindex=0 \
    -netdev tap,id=net0,fd=12 \
    -device virtio-net-pci,netdev=net0,romfile=,mac=52:54:00:12:34:56 \
    -device pcie-root-port,id=plug)");
}

TEST_CASE("a machine that was saved begins with its memory's file, and waits for its state") {
    auto spec = example();
    spec.machine = "pc-q35-7.2";
    spec.incoming = true;
    spec.memory_file = "/snapshots/a,b/memory";
    const auto argv = qemu_command(spec);
    CHECK(has(argv, "pc-q35-7.2,vmport=off,memory-backend=memory"));
    CHECK(
        has(argv,
            "memory-backend-file,id=memory,size=1024M,share=off,mem-path=/snapshots/a,,b/memory"));
    CHECK(shell_text(argv).find("-S \\\n    -incoming defer \\\n") != std::string::npos);
}

TEST_CASE("UEFI and a TPM are descriptors after the disks, and before the network's") {
    auto spec = example();
    spec.drives = {{.format = "raw", .read_only = true}};
    spec.disk->backing = {"raw"};
    spec.flash = QemuFlash{.code_format = "raw", .variables_format = "qcow2", .smm = true};
    spec.tpm = true;
    const auto text = shell_text(qemu_command(spec));
    CHECK(text.find(R"(
    -machine q35,vmport=off,memory-backend=memory,pflash0=firmware,pflash1=variables,smm=on \
    -global driver=cfi.pflash01,property=secure,value=on \
)") != std::string::npos);
    CHECK(text.find(R"(
    -add-fd fd=14,set=5 \
    -blockdev driver=file,node-name=firmware-file,filename=/dev/fdset/5,read-only=on \
    -blockdev '{"driver":"raw","node-name":"firmware","file":"firmware-file","read-only":true}' \
    -add-fd fd=15,set=6 \
    -blockdev driver=file,node-name=variables-file,filename=/dev/fdset/6,discard=unmap \
    -blockdev '{"driver":"qcow2","node-name":"variables","file":"variables-file","discard":"unmap","backing":null}' \
    -chardev socket,id=tpm,fd=16 \
    -tpmdev emulator,id=tpm,chardev=tpm \
    -device tpm-crb,tpmdev=tpm \
    -netdev tap,id=net0,fd=17 \
)") != std::string::npos);
    spec.flash->smm = false;
    CHECK(has(qemu_command(spec),
              "q35,vmport=off,memory-backend=memory,pflash0=firmware,pflash1=variables"));
    CHECK(!has(qemu_command(spec), "-global"));
}

TEST_CASE("a machine that is no PC has none of a PC's devices") {
    auto spec = example();
    spec.architecture = Architecture::aarch64;
    spec.machine = "virt";
    spec.tpm = true;
    spec.bios = "/firmware/a,b.fd";
    const auto argv = qemu_command(spec);
    CHECK(argv.front() == "qemu-system-aarch64");
    CHECK(has(argv, "virt,gic-version=max,memory-backend=memory"));
    CHECK(has(argv, "tpm-tis-device,tpmdev=tpm"));
    CHECK(has(argv, "/firmware/a,b.fd"));
    CHECK(has(argv, "pcie-root-port,id=plug"));
    const auto text = shell_text(argv);
    CHECK(text.find("isa-debugcon") == std::string::npos);
    CHECK(text.find("vmgenid") == std::string::npos);
}

TEST_CASE("the image's format is fixed, and a base is read-only") {
    auto spec = example();
    spec.disk->format = "raw";
    const auto argv = qemu_command(spec);
    CHECK(has(argv, R"({"driver":"raw","node-name":"base","file":"base-file","read-only":true})"));
    CHECK(has(argv, "driver=file,node-name=base-file,filename=/dev/fdset/1,read-only=on"));
}

TEST_CASE("--persist: the image itself, with its flushes") {
    auto spec = example();
    spec.disk->persist = true;
    const auto text = shell_text(qemu_command(spec));
    CHECK(text.find(R"("node-name":"disk","file":"disk-file","discard":"unmap","backing":null)") !=
          std::string::npos);
    CHECK(text.find("set=2") == std::string::npos);
    CHECK(text.find("no-flush") == std::string::npos);
    CHECK(text.find("read-only") == std::string::npos);
}

TEST_CASE("drives come before the TAP, and name no other file") {
    auto spec = example();
    spec.drives = {{.format = "qcow2", .serial = "data"}, {.format = "raw", .read_only = true}};
    const auto text = shell_text(qemu_command(spec));
    CHECK(text.find(R"(
    -add-fd fd=12,set=3 \
    -blockdev driver=file,node-name=drive0-file,filename=/dev/fdset/3,discard=unmap \
    -blockdev '{"driver":"qcow2","node-name":"drive0","file":"drive0-file","discard":"unmap","backing":null}' \
    -device virtio-blk-pci,drive=drive0,serial=data \
    -add-fd fd=13,set=4 \
    -blockdev driver=file,node-name=drive1-file,filename=/dev/fdset/4,read-only=on \
    -blockdev '{"driver":"raw","node-name":"drive1","file":"drive1-file","read-only":true}' \
    -device virtio-blk-pci,drive=drive1 \
    -netdev tap,id=net0,fd=14 \
)") != std::string::npos);
}

TEST_CASE("what is beneath the image is a descriptor each, and nothing is beneath the last") {
    auto spec = example();
    spec.drives = {{.format = "raw", .read_only = true}};
    spec.disk->backing = {"qcow2", "raw"};
    const auto text = shell_text(qemu_command(spec));
    CHECK(text.find(R"(
    -add-fd fd=14,set=5 \
    -blockdev driver=file,node-name=backing1-file,filename=/dev/fdset/5,read-only=on \
    -blockdev '{"driver":"raw","node-name":"backing1","file":"backing1-file","read-only":true}' \
    -add-fd fd=13,set=4 \
    -blockdev driver=file,node-name=backing0-file,filename=/dev/fdset/4,read-only=on \
    -blockdev '{"driver":"qcow2","node-name":"backing0","file":"backing0-file","read-only":true,"backing":"backing1"}' \
)") != std::string::npos);
    CHECK(text.find(
              R"("node-name":"base","file":"base-file","read-only":true,"backing":"backing0")") !=
          std::string::npos);
    CHECK(text.find("tap,id=net0,fd=15") != std::string::npos);
}

TEST_CASE("several queues and vhost are several descriptors") {
    auto spec = example();
    spec.nic->queues = 3;
    CHECK(has(qemu_command(spec), "tap,id=net0,fds=12:13:14"));
    CHECK(has(qemu_command(spec),
              "virtio-net-pci,netdev=net0,romfile=,mac=52:54:00:12:34:56,mq=on,vectors=8"));
    spec.nic->vhost = true;
    CHECK(has(qemu_command(spec), "tap,id=net0,fds=12:13:14,vhost=on,vhostfds=15:16:17"));
    spec.nic->queues = 1;
    CHECK(has(qemu_command(spec), "tap,id=net0,fd=12,vhost=on,vhostfd=13"));
}

TEST_CASE("user networking, none, and another MTU") {
    auto spec = example();
    spec.nic = QemuNic{};
    CHECK(has(qemu_command(spec), "user,id=net0"));
    spec.nic.reset();
    CHECK(!has(qemu_command(spec), "-netdev"));
    spec.nic = QemuNic{.mac = {}, .mtu = 1400, .queues = 1};
    CHECK(has(qemu_command(spec), "virtio-net-pci,netdev=net0,romfile=,host_mtu=1400"));
}

TEST_CASE("a kernel, KVM, and the user's own arguments last") {
    auto spec = example();
    spec.kvm = true;
    spec.cpu = "host";
    spec.kernel = "/boot/a,b";
    spec.initrd = "/boot/c,d";
    spec.append = "console=ttyS0 root=/dev/vda";
    spec.extra = {"-device", "usb-ehci"};
    const auto argv = qemu_command(spec);
    CHECK(has(argv, "virtio-blk-pci,drive=disk"));  // -kernel has bootindex 0 itself
    CHECK(has(argv, "kvm"));
    CHECK(has(argv, "host"));
    CHECK(has(argv, "/boot/a,b"));
    CHECK(has(argv, "/boot/c,d"));
    CHECK(has(argv, "console=ttyS0 root=/dev/vda"));
    CHECK(argv.at(argv.size() - 2) == "-device");
    CHECK(argv.back() == "usb-ehci");
}

TEST_CASE("words are quoted for a shell, commas for QEMU") {
    CHECK(shell_text({"a", "b c", "it's", ""}) == R"(a 'b c' 'it'\''s' '')");
    CHECK(doubled("a,b,,c", ',') == "a,,b,,,,c");
}
