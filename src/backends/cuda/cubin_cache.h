// Compiled kernels on disk, one file each, named by a digest of all that they were made from.
#pragma once

#include <optional>
#include <string>

namespace sdpa::cuda {

// Both do nothing where there is no folder, or none that can be used: kernels are then compiled again.
std::optional<std::string> cached_cubin(const std::string& key);
void keep_cubin(const std::string& key, const std::string& cubin);

}  // namespace sdpa::cuda
