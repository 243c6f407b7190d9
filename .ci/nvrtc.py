"""Compiles CUDA sources, as one, with NVRTC: as at run time, and down to the machine code of two GPUs.

Usage: nvrtc.py LIBNVRTC FILE...
"""

import ctypes
import sys
import time

# What `device.rs` asks for, and the GPUs that recipes are trained on: A100 and H100 or H200.
ARCHITECTURES = ["compute_80", "sm_80", "sm_90"]


def main(library, *files):
    nvrtc = ctypes.CDLL(library)
    source = "".join(open(file).read() for file in files).encode()
    for architecture in ARCHITECTURES:
        start = time.time()
        program, size = ctypes.c_void_p(), ctypes.c_size_t()
        check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, b"masksub.cu", 0, None, None))
        options = [f"--gpu-architecture={architecture}".encode(), b"--std=c++17"]
        status = nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
        check(nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size)))
        log = ctypes.create_string_buffer(size.value)
        check(nvrtc.nvrtcGetProgramLog(program, log))
        # A warning is a fault, too.
        if status != 0 or log.value.strip():
            sys.exit(f"{architecture}:\n{log.value.decode()}")
        kind = "PTX" if architecture.startswith("compute") else "CUBIN"
        check(getattr(nvrtc, f"nvrtcGet{kind}Size")(program, ctypes.byref(size)))
        if size.value == 0:
            sys.exit(f"{architecture}: no code")
        print(f"the kernels for CUDA compile for {architecture}: {size.value} bytes in {time.time() - start:.1f} s")
        check(nvrtc.nvrtcDestroyProgram(ctypes.byref(program)))


def check(status):
    if status != 0:
        sys.exit(f"NVRTC: error {status}")


main(*sys.argv[1:])
