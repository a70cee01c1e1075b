# Install what is in BUILD_DIR, move it, and build and run main.c against it: with find_package and with pkg-config, each against
# the shared and the static library.  Works in SCRATCH.  With TOOLCHAIN and EMULATOR where the tree was cross-compiled.
cmake_minimum_required(VERSION 3.25)

function(run)
  execute_process(COMMAND ${ARGV} WORKING_DIRECTORY ${SCRATCH} COMMAND_ECHO STDOUT COMMAND_ERROR_IS_FATAL ANY)
endfunction()

set(source ${CMAKE_CURRENT_LIST_DIR})
set(prefix ${SCRATCH}/moved)
file(REMOVE_RECURSE ${SCRATCH})
file(MAKE_DIRECTORY ${SCRATCH})
run(${CMAKE_COMMAND} --install ${BUILD_DIR} --config ${CONFIG} --prefix ${SCRATCH}/installed)
file(RENAME ${SCRATCH}/installed ${prefix})

run(${CMAKE_COMMAND} -S ${source} -B build -D CMAKE_PREFIX_PATH=${prefix}
  -D CMAKE_C_COMPILER=${CC} -D CMAKE_C_FLAGS=${CFLAGS} -D CMAKE_BUILD_TYPE=${CONFIG} -D CMAKE_TOOLCHAIN_FILE=${TOOLCHAIN})
run(${CMAKE_COMMAND} --build build)
run(${EMULATOR} build/shared)
run(${EMULATOR} build/static)

find_program(pkg_config NAMES pkg-config pkgconf)
if(NOT pkg_config)
  message(FATAL_ERROR "pkg-config is not installed, so what we install for it cannot be tested.")
endif()
set(ENV{PKG_CONFIG_PATH} ${prefix}/${LIBDIR}/pkgconfig)
separate_arguments(CFLAGS UNIX_COMMAND "${CFLAGS}")

function(run_with_pkg_config program)
  execute_process(COMMAND ${pkg_config} ${ARGN} --cflags --libs ringbuf
    OUTPUT_VARIABLE flags OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
  separate_arguments(flags UNIX_COMMAND "${flags}")
  run(${CC} ${CFLAGS} -o ${program} ${source}/main.c ${flags})
  run(${CMAKE_COMMAND} -E env LD_LIBRARY_PATH=${prefix}/${LIBDIR} ${EMULATOR} ./${program})
endfunction()

run_with_pkg_config(pkg_config_shared)
# With no shared library left, -lringbuf means the static one.
file(GLOB shared ${prefix}/${LIBDIR}/libringbuf.so*)
file(REMOVE ${shared})
run_with_pkg_config(pkg_config_static --static)
