# What `ostree admin set-default 1` of later releases does, by the library of this one: the second
# deployment becomes the first. Prints the seconds of wall and processor time, without python's start.
import sys
import time

import gi

gi.require_version("OSTree", "1.0")
from gi.repository import Gio, OSTree

wall, processor = time.monotonic(), time.process_time()
sysroot = OSTree.Sysroot.new(Gio.File.new_for_path(sys.argv[1]))
sysroot.load(None)
sysroot.lock()
first, second, *others = sysroot.get_deployments()
sysroot.write_deployments([second, first, *others], None)
print(time.monotonic() - wall, time.process_time() - processor)
