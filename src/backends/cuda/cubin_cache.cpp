#include "src/backends/cuda/cubin_cache.h"

#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "src/backends/cuda/compiler.h"

namespace sdpa::cuda {

namespace fs = std::filesystem;

namespace {

std::string& folder() {
  static std::string one;
  return one;
}

uint64_t fnv1a(const std::string& text, uint64_t hash) {
  for (unsigned char c : text) hash = (hash ^ c) * 0x100000001b3;
  return hash;
}

// 128 bits, of two independent starts.
std::string digest(const std::string& text) {
  char out[33];
  std::snprintf(out, sizeof out, "%016llx%016llx",
                static_cast<unsigned long long>(fnv1a(text, 0xcbf29ce484222325)),
                static_cast<unsigned long long>(fnv1a(text, 0x9ae16a3b2f90404f)));
  return out;
}

fs::path path_of(const std::string& key) {
  return fs::path(folder()) / ("kernel-" + digest(key) + ".cubin");
}

}  // namespace

void set_cache_folder(const std::string& path) { folder() = path; }

std::optional<std::string> cached_cubin(const std::string& key) {
  if (folder().empty()) return std::nullopt;
  std::ifstream in(path_of(key), std::ios::binary);
  if (!in) return std::nullopt;
  std::string text{std::istreambuf_iterator<char>(in), {}};
  // A digest of the rest comes first: a file that was cut short is not a kernel.
  if (text.size() <= 32 || text.compare(0, 32, digest(text.substr(32))) != 0) return std::nullopt;
  return text.substr(32);
}

void keep_cubin(const std::string& key, const std::string& cubin) {
  if (folder().empty()) return;
  std::error_code error;
  fs::create_directories(folder(), error);
  const fs::path path = path_of(key);
  const fs::path part = path.string() + "." + std::to_string(getpid()) + ".part";
  {
    std::ofstream out(part, std::ios::binary);
    out << digest(cubin) << cubin;
    if (!out) {
      out.close();
      fs::remove(part, error);
      return;
    }
  }
  fs::rename(part, path, error);  // a reader sees all of it or nothing
  if (error) fs::remove(part, error);
}

}  // namespace sdpa::cuda
