# The dynamic symbols of LIBRARY (listed by NM) are exactly the functions that HEADER marks with RINGBUF_API.
cmake_minimum_required(VERSION 3.25)

execute_process(COMMAND ${NM} -D --defined-only ${LIBRARY} OUTPUT_VARIABLE listing COMMAND_ERROR_IS_FATAL ANY)
string(REGEX MATCHALL "[^ \n]+\n" exported "${listing}")
list(TRANSFORM exported STRIP)

file(READ ${HEADER} header)
string(REGEX MATCHALL "\nRINGBUF_API[^;(]*\\(" declared "${header}")
list(TRANSFORM declared REPLACE ".*[^a-z0-9_]([a-z0-9_]+)\\(" "\\1")

set(undeclared ${exported})
list(REMOVE_ITEM undeclared ${declared})
set(missing ${declared})
list(REMOVE_ITEM missing ${exported})
if(undeclared OR missing OR NOT declared)
  message(FATAL_ERROR "exported but not in the header: [${undeclared}]; in the header but not exported: [${missing}]")
endif()
