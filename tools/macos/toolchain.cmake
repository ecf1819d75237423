# arm64 macOS 14 from Linux: compiles with zig, links with ld64.lld. tools/macos_wheel.py sets SDPA_ZIG, SDPA_LD64, and
# SDPA_STUBS, the folder of the system libraries' .tbd files.
set(CMAKE_SYSTEM_NAME Darwin)
set(CMAKE_SYSTEM_PROCESSOR arm64)
set(CMAKE_OSX_DEPLOYMENT_TARGET 14.0 CACHE STRING "")
set(CMAKE_TRY_COMPILE_TARGET_TYPE STATIC_LIBRARY) # the one link is the rule below
list(APPEND CMAKE_TRY_COMPILE_PLATFORM_VARIABLES SDPA_ZIG)

set(CMAKE_CXX_COMPILER "${SDPA_ZIG}" c++)
set(CMAKE_CXX_COMPILER_TARGET aarch64-macos.14.0)
set(CMAKE_CXX_SCAN_FOR_MODULES OFF) # zig brings no clang-scan-deps
# zig's libc++ headers leave out what macOS 14 lacks (std::__hash_memory) only if told that the library is Apple's; of
# Apple's frameworks, metal-cpp's need what is in `include`.
file(STRINGS "${CMAKE_CURRENT_LIST_DIR}/flags.txt" flags)
list(JOIN flags " " flags)
set(CMAKE_CXX_FLAGS_INIT "${flags} -isystem \"${CMAKE_CURRENT_LIST_DIR}/include\"")
set(CMAKE_USER_MAKE_RULES_OVERRIDE_CXX "${CMAKE_CURRENT_LIST_DIR}/rules.cmake") # read after CMake's own rules
set(CMAKE_BUILD_WITH_INSTALL_RPATH ON) # there is no install_name_tool to change it with
