"""Runs a command and prints, as the last line, what the kernel counted for it: wall and CPU seconds, peak resident bytes.

usage: measure.py PROGRAM [ARGUMENT]...

Peak resident memory is `ru_maxrss` of wait4(2): the high-water mark of the process itself, mapped pages included. The
command's own stdout goes to stderr.
"""

import json
import os
import sys
import time

start = time.monotonic()
pid = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, 2, 1)])
_, status, used = os.wait4(pid, 0)
wall = time.monotonic() - start
code = os.waitstatus_to_exitcode(status)
print(json.dumps({"wall_s": wall, "cpu_s": used.ru_utime + used.ru_stime, "peak_rss": used.ru_maxrss * 1024}))
sys.exit(0 if code == 0 else 1)
