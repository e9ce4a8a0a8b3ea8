# Fails if an object compiled for one instruction set offers a symbol that the linker may merge with
# the same symbol of another set, or of the rest of the module: then code of a set that the CPU
# lacks could run. Every such symbol must carry the set's namespace.
#
#   cmake -DISA=avx512 -DNM=nm "-DOBJECTS=a.o|b.o" -P symbols.cmake
string(REPLACE "|" ";" OBJECTS "${OBJECTS}")
foreach(object IN LISTS OBJECTS)
  execute_process(COMMAND "${NM}" "${object}" OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
  string(REGEX MATCHALL "[^\n]* [VWu] [^\n]*" mergeable "${symbols}")
  string(LENGTH "${ISA}" length)
  list(FILTER mergeable EXCLUDE REGEX "${length}${ISA}|DW\\.ref\\.__gxx_personality_v0")
  if(mergeable)
    message(FATAL_ERROR "${object} shares code between instruction sets:\n${mergeable}")
  endif()
endforeach()
