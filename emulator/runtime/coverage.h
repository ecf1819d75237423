// Which lines of kernels were executed, in this process.
#pragma once

#include <string>

#include "abi.h"

namespace softmetal {

// From when a module is loaded to when it is unloaded.
void start_coverage(const LibraryEntry& entry);
void end_coverage(const LibraryEntry& entry);

// Rows of file, line and 1 or 0, with tabs between.
std::string coverage_text();

}  // namespace softmetal
