"""What cffi needs to write the source of sage_queue._ringbuf.  Run by python/CMakeLists.txt through `python -m cffi.gen_src`.

The interface has one copy: the marked region of the public C header is the cdef, so the two cannot drift apart.
"""

import re
from pathlib import Path

from cffi import FFI

HEADER = Path(__file__).resolve().parent / "c" / "include" / "ringbuf" / "ringbuf.h"


def cdef() -> str:
    """The declarations between the header's two marks, without what is not C (RINGBUF_API)."""
    region = re.search(
        r"/\* \[cdef begin\] \*/(.*)/\* \[cdef end\] \*/", HEADER.read_text(encoding="utf-8"), re.DOTALL
    )
    if region is None:
        raise ValueError(f"{HEADER}: the marks [cdef begin] and [cdef end] are missing")
    return region[1].replace("RINGBUF_API ", "")


ffibuilder = FFI()
# Beside the interface, the one call that adds the hot path (python/port.c) to the module.
ffibuilder.cdef(cdef() + "int sage_install_port(void);")
# RINGBUF_API blank: the module exports its init function only.
ffibuilder.set_source(
    "sage_queue._ringbuf", "#define RINGBUF_API\n#include <ringbuf/ringbuf.h>\nint sage_install_port(void);\n"
)
