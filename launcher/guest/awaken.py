# The same as awaken.pl, for guests without perl.
import fcntl, os, struct, sys, time
try:
    import ctypes
except ImportError:
    pass

def put(path, text):
    with open(path, "w") as f:
        f.write(text + "\n")

if len(sys.argv) > 2:
    os.write(int(sys.argv[2]), b"ready\n")
    os.close(int(sys.argv[2]))
name, seconds, nanoseconds, random, boot_id = sys.stdin.readline().split()
put("/proc/sys/kernel/hostname", name)
with open("/dev/urandom", "w") as f:
    fcntl.ioctl(f, 0x40085203, struct.pack("ii32s", 128, 32, random.encode()))
    try:
        fcntl.ioctl(f, 0x5207, 0)
    except OSError:
        pass
put("/run/qvm-boot-id", boot_id)
MS_BIND = 4096
paths = b"/run/qvm-boot-id", b"/proc/sys/kernel/random/boot_id"
if not os.path.samefile(*paths) and ctypes.CDLL(None).mount(*paths, None, MS_BIND, None) != 0:
    sys.exit(1)
seconds, nanoseconds = int(seconds), int(nanoseconds)
try:
    with open("/sys/class/rtc/rtc0/since_epoch") as f:
        now = int(f.read())
    if seconds < now < seconds + 60:
        seconds, nanoseconds = now, 0
except OSError:
    pass
time.clock_settime_ns(time.CLOCK_REALTIME, seconds * 10**9 + nanoseconds)
