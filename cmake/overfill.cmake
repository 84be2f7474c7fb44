# Flags and helpers shared by every folder.

add_library(overfill_flags INTERFACE)
target_include_directories(overfill_flags INTERFACE ${PROJECT_SOURCE_DIR})
target_compile_options(overfill_flags INTERFACE
  -Wall -Wextra -Werror -Wno-unused-parameter -fno-omit-frame-pointer)
if(CMAKE_CXX_COMPILER_ID STREQUAL "Clang")
  target_compile_options(overfill_flags INTERFACE -Wthread-safety)
endif()
if(OVERFILL_SANITIZE)
  # Everything is instrumented, C++ libraries of the system excepted.
  add_compile_options(-fsanitize=${OVERFILL_SANITIZE} -g1)
  add_link_options(-fsanitize=${OVERFILL_SANITIZE})
  if(OVERFILL_SANITIZE MATCHES "undefined")
    add_compile_options(-fno-sanitize-recover=undefined)
  endif()
endif()

# overfill_library(NAME SOURCES ... DEPS ...): one folder, one target.
function(overfill_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  add_library(${name} STATIC ${ARG_SOURCES})
  target_link_libraries(${name} PUBLIC overfill_flags ${ARG_DEPS})
endfunction()

# overfill_test(NAME LABEL unit|e2e|slow SOURCES ... DEPS ... [ENV A=B ...]):
# one gtest program, one ctest entry, run from the repository root.
function(overfill_test name)
  cmake_parse_arguments(ARG "" "LABEL;TIMEOUT" "SOURCES;DEPS;ENV" ${ARGN})
  if(NOT ARG_LABEL)
    set(ARG_LABEL unit)
  endif()
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 600)
  endif()
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE ${ARG_DEPS} GTest::gtest GTest::gmock)
  add_test(NAME ${name} COMMAND ${name} WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
  set_tests_properties(${name} PROPERTIES
    LABELS ${ARG_LABEL} TIMEOUT ${ARG_TIMEOUT} ENVIRONMENT "${ARG_ENV}")
endfunction()

# overfill_fuzzer(NAME SOURCES ... DEPS ...): NAME_fuzz's sources as a libFuzzer
# program where the fuzzers are built, and everywhere as a test that runs each
# file of tests/fuzz/corpus/NAME once.
function(overfill_fuzzer name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  string(REGEX REPLACE "_fuzz$" "" corpus ${name})
  add_executable(${name}_replay
    ${ARG_SOURCES} ${PROJECT_SOURCE_DIR}/tests/fuzz/replay_main.cc)
  target_link_libraries(${name}_replay PRIVATE ${ARG_DEPS})
  add_test(NAME ${name}_replay
    COMMAND ${name}_replay tests/fuzz/corpus/${corpus}
    WORKING_DIRECTORY ${PROJECT_SOURCE_DIR})
  set_tests_properties(${name}_replay PROPERTIES LABELS unit TIMEOUT 300)
  if(OVERFILL_FUZZERS)
    add_executable(${name} ${ARG_SOURCES})
    target_compile_options(${name} PRIVATE -fsanitize=fuzzer)
    target_link_options(${name} PRIVATE -fsanitize=fuzzer)
    target_link_libraries(${name} PRIVATE ${ARG_DEPS})
  endif()
endfunction()
