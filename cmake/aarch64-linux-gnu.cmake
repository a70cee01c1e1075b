# Cross-compile for AArch64 Linux with Debian's compiler, and run what was built under qemu's user emulation.
# Packages: gcc-aarch64-linux-gnu g++-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)
find_program(aarch64_cxx aarch64-linux-gnu-g++)
if(aarch64_cxx) # the C++ test of the header is left out without it
  set(CMAKE_CXX_COMPILER ${aarch64_cxx})
endif()
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64 -L /usr/aarch64-linux-gnu)
