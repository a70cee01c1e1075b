# Fill tests_c/vendor/unity/ with the sources of Unity, the C test framework.  Runs at configure time, or by hand:
#
#     cmake [-D UNITY_DIR=folder] -P tests_c/vendor/fetch_unity.cmake
#
# The repository holds only what we write; unity.lock says by hash which foreign files we take instead, and nothing that does not
# match it is ever compiled, wherever it came from.  Tried in this order: the folder UNITY_DIR (a variable here or in the
# environment), what an earlier run has put there, the upstream release, and the copy in Debian's source package cjson, for
# machines that reach no more than their distribution's archive.  (An installed `unity` CMake package comes before the downloads;
# it has no sources, so tests_c/CMakeLists.txt sees to it.)  It is in CMake because that is the one language a C build has here.

cmake_minimum_required(VERSION 3.25)

# unity_adopt(<folder> <result>): copy the files in <folder> to unity/src if they are, to the last byte, those of one entry of
# unity.lock.  <result> is true if so.
function(unity_adopt folder result)
  set(${result} FALSE PARENT_SCOPE)
  set(vendor ${CMAKE_CURRENT_FUNCTION_LIST_DIR})
  file(READ ${vendor}/unity.lock lock)
  string(JSON entries LENGTH ${lock})
  math(EXPR last_entry "${entries} - 1")
  foreach(i RANGE ${last_entry})
    string(JSON files GET ${lock} ${i} files)
    string(JSON count LENGTH ${files})
    math(EXPR last_file "${count} - 1")
    set(matching "")
    foreach(j RANGE ${last_file})
      string(JSON name MEMBER ${files} ${j})
      string(JSON expected GET ${files} ${name})
      if(EXISTS ${folder}/${name})
        file(SHA256 ${folder}/${name} actual)
        if(actual STREQUAL expected)
          list(APPEND matching ${name})
        endif()
      endif()
    endforeach()
    list(LENGTH matching matches)
    if(matches EQUAL count)
      foreach(name IN LISTS matching)
        cmake_path(SET target NORMALIZE ${vendor}/unity/src/${name})
        cmake_path(GET target PARENT_PATH parent)
        file(MAKE_DIRECTORY ${parent})
        file(COPY_FILE ${folder}/${name} ${target} ONLY_IF_DIFFERENT)
      endforeach()
      string(JSON version GET ${lock} ${i} version)
      string(JSON origin GET ${lock} ${i} origin)
      message(STATUS "Unity ${version} (${origin})")
      set(${result} TRUE PARENT_SCOPE)
      return()
    endif()
  endforeach()
endfunction()

# unity_from_upstream(<scratch> <result>): download the release.  <result> is the folder of its sources; it may not exist.
function(unity_from_upstream scratch result)
  set(${result} ${scratch}/none PARENT_SCOPE)
  file(READ ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/unity.lock lock)
  string(JSON url GET ${lock} 0 url)
  string(JSON expected GET ${lock} 0 sha256)
  message(STATUS "Unity: trying ${url}")
  file(DOWNLOAD ${url} ${scratch}/release.tar.gz TLS_VERIFY ON TIMEOUT 60 INACTIVITY_TIMEOUT 15 STATUS status)
  list(GET status 0 failed)
  if(failed)
    return()
  endif()
  file(SHA256 ${scratch}/release.tar.gz actual)
  if(NOT actual STREQUAL expected)
    message(WARNING "${url} is not the file that unity.lock names; not used.")
    return()
  endif()
  file(ARCHIVE_EXTRACT INPUT ${scratch}/release.tar.gz DESTINATION ${scratch}/release)
  file(GLOB folder ${scratch}/release/*/src)
  set(${result} ${folder} PARENT_SCOPE)
endfunction()

# unity_from_cjson(<scratch> <result>): likewise, from the distribution's archive that this machine is set up for.
function(unity_from_cjson scratch result)
  set(${result} ${scratch}/none PARENT_SCOPE)
  find_program(apt_get apt-get NO_CACHE)
  find_program(apt_config apt-config NO_CACHE)
  if(NOT apt_get OR NOT apt_config)
    return()
  endif()
  message(STATUS "Unity: trying the distribution's source package cjson")

  # The machine's lists of binary packages, turned into lists of sources in a folder of ours: apt's own setup stays as it is.
  # Only those that name this release, where one does: other people's archives cost time and have no cjson.
  execute_process(COMMAND ${apt_config} shell list Dir::Etc::sourcelist/f parts Dir::Etc::sourceparts/d OUTPUT_VARIABLE shell)
  string(REGEX REPLACE ".*list='([^']*)'.*parts='([^']*)'.*" "\\1;\\2*.list;\\2*.sources" patterns "${shell}")
  file(GLOB lists ${patterns})
  cmake_host_system_information(RESULT release QUERY DISTRIB_VERSION_CODENAME)
  set(of_release "")
  foreach(list IN LISTS lists)
    file(READ ${list} text)
    if(release AND text MATCHES "[ \t]${release}[ \t\r\n]")
      list(APPEND of_release ${list})
    endif()
  endforeach()
  if(of_release)
    set(lists ${of_release})
  endif()
  file(MAKE_DIRECTORY ${scratch}/sources ${scratch}/lists/partial ${scratch}/cache/archives/partial ${scratch}/package)
  foreach(list IN LISTS lists)
    file(READ ${list} text)
    string(REGEX REPLACE "(^|\n)deb([ \t])" "\\1deb-src\\2" text "${text}")
    string(REGEX REPLACE "(^|\n)Types:[^\n]*" "\\1Types: deb-src" text "${text}")
    cmake_path(GET list FILENAME name)
    file(WRITE ${scratch}/sources/${name} "${text}")
  endforeach()

  set(options -q
    -o Dir::Etc::sourcelist=/dev/null -o Dir::Etc::sourceparts=${scratch}/sources
    -o Dir::State::lists=${scratch}/lists -o Dir::Cache=${scratch}/cache
    -o APT::Sandbox::User= -o Acquire::Languages=none -o Acquire::http::Timeout=15)
  # Its exit status says nothing: one archive of several may fail and cjson still be found.
  execute_process(COMMAND ${apt_get} ${options} update OUTPUT_QUIET ERROR_QUIET TIMEOUT 300)
  execute_process(COMMAND ${apt_get} ${options} source --download-only cjson
    WORKING_DIRECTORY ${scratch}/package OUTPUT_QUIET ERROR_QUIET TIMEOUT 120)
  file(GLOB archive ${scratch}/package/cjson_*.orig.tar.*)
  if(archive)
    file(ARCHIVE_EXTRACT INPUT ${archive} DESTINATION ${scratch}/cjson PATTERNS */tests/unity)
    file(GLOB folder ${scratch}/cjson/*/tests/unity/src)
    set(${result} ${folder} PARENT_SCOPE)
  endif()
endfunction()

function(unity_fetch)
  set(vendored ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/unity)
  file(LOCK ${vendored} DIRECTORY GUARD FUNCTION) # several presets may be configured at once

  if(NOT UNITY_DIR)
    set(UNITY_DIR $ENV{UNITY_DIR})
  endif()
  if(UNITY_DIR)
    foreach(folder ${UNITY_DIR} ${UNITY_DIR}/src)
      unity_adopt(${folder} found)
      if(found)
        return()
      endif()
    endforeach()
    message(FATAL_ERROR "UNITY_DIR=${UNITY_DIR} does not hold unity.c, unity.h and unity_internals.h of a version that "
      "tests_c/vendor/unity.lock accepts.")
  endif()

  unity_adopt(${vendored}/src found)
  foreach(origin upstream cjson)
    if(NOT found)
      set(scratch ${vendored}/scratch)
      file(REMOVE_RECURSE ${scratch})
      cmake_language(CALL unity_from_${origin} ${scratch} folder)
      unity_adopt(${folder} found)
      file(REMOVE_RECURSE ${scratch})
    endif()
  endforeach()
  if(NOT found)
    message(FATAL_ERROR "Cannot get the C test framework Unity: neither its release on github.com nor the source package cjson of "
      "this machine's distribution could be had.  Set UNITY_DIR to a folder with unity.c, unity.h and unity_internals.h of "
      "Unity 2.6.1, or turn the tests off with -D RINGBUF_BUILD_TESTS=OFF.")
  endif()
endfunction()

unity_fetch()
