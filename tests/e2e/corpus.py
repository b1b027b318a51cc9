"""Commands whose output and end are the same here and in a guest."""

import os
import subprocess

CORPUS = (
    "true", "false", "exit 42", "exit 255", "echo out; echo err >&2; exit 3", "printf 'a\\0b\\377\\n'",
    "printf 'no end of line'", ">&2 printf 'no end of line'", "kill -TERM $$", "kill -KILL $$",
    "cat", "wc -c", "cat >&2", "read -r a; echo \"[$a]\"", "exec 0<&-; cat 2>/dev/null; echo $?",
    "exec 1>&-; echo lost 2>/dev/null; exit 5", "i=0; while [ $i -lt 2000 ]; do echo $i; i=$((i+1)); done",
    "seq 3000 >&2; seq 3000", "echo \"$A|$B\"", "pwd", "printf '\\0%s' \"$0\" >&2",
    "sh -c 'exit 7'; echo $?", "echo 'quotes \" and $dollars' \\\\",
)
INPUT = bytes(range(256)) * 64 + b"last line without an end"


def on_host(words):
    return subprocess.run(words, input=INPUT, capture_output=True, timeout=20, cwd="/",
                          env={**os.environ, "A": "1 2", "B": "$x"})


def assert_same(test, done, wanted):
    """Byte for byte; a signal is what a shell has for one."""
    test.assertEqual((done.stdout, done.stderr), (wanted.stdout, wanted.stderr))
    test.assertEqual(done.returncode, wanted.returncode % 256 if wanted.returncode >= 0
                     else 128 - wanted.returncode)
