// Compiles kernels with the NVRTC that MLX has loaded, and keeps what comes out in the user's cache folder.
#pragma once

#include <string>
#include <vector>

namespace sdpa::cuda {

// Where the sources are: the folder that holds `kernels`.
void set_source_folder(const std::string&);
const std::string& source_folder();
// Where compiled kernels are kept; empty = nowhere. They are found by source, options, architecture and compiler.
void set_cache_folder(const std::string&);

// The cubin of a source file for an architecture such as "sm_90a". file: relative to the source folder. Throws
// std::runtime_error with the compiler's words.
std::string compile(const std::string& file, const std::string& arch,
                    const std::vector<std::string>& macros);

}  // namespace sdpa::cuda
