# How toolchain.cmake archives and links.
set(CMAKE_CXX_ARCHIVE_CREATE "\"${SDPA_ZIG}\" ar qcs <TARGET> <OBJECTS>")
set(CMAKE_CXX_ARCHIVE_APPEND "\"${SDPA_ZIG}\" ar qs <TARGET> <OBJECTS>")
set(CMAKE_CXX_ARCHIVE_FINISH "")

# zig's own linker takes no -U list; its clang is the plain one and drives ld64.lld, which signs ad hoc.
set(CMAKE_SHARED_LIBRARY_RUNTIME_C_FLAG "-Wl,-rpath,") # CMake before 4 sets it by the version of the host's macOS
string(JOIN " " CMAKE_CXX_CREATE_SHARED_MODULE
  "\"${SDPA_ZIG}\" clang --target=arm64-apple-macos14.0 -mlinker-version=1000 --ld-path=\"${SDPA_LD64}\" -nostdlib"
  "<CMAKE_SHARED_MODULE_CREATE_CXX_FLAGS> <LINK_FLAGS> -o <TARGET> <OBJECTS> <LINK_LIBRARIES>"
  "\"${SDPA_STUBS}/libc++.tbd\" \"${SDPA_STUBS}/libSystem.tbd\" \"${SDPA_STUBS}/libobjc.tbd\""
  "-Wl,-map,<TARGET>.map")
