#include "src/backends/metal_source.h"

#include <algorithm>
#include <fstream>
#include <mutex>
#include <set>
#include <sstream>
#include <stdexcept>

namespace sdpa::metal {

namespace {

std::mutex mutex;
std::string folder;
int generation = 0;

constexpr const char kPrefix[] =
    "kernels/";  // of our includes; what follows is looked up in the folder
constexpr const char kInclude[] = "#include \"";

class Text {
 public:
  std::string out;

  explicit Text(std::string root) : root_(std::move(root)) {}

  void add(const std::string& path) {
    if (!seen_.insert(path).second) return;
    if (path.rfind(kPrefix, 0) != 0)
      throw std::runtime_error("'" + path + "' is included, which is not under " + kPrefix);
    const std::string place = root_ + "/" + path.substr(sizeof(kPrefix) - 1);
    std::ifstream file(place);
    if (!file) throw std::runtime_error("the kernel source " + place + " cannot be read");
    mark(1, path);
    std::string line;
    for (int number = 1; std::getline(file, line); ++number) {
      if (std::any_of(line.begin(), line.end(), [](unsigned char c) { return c > 127; }))
        throw std::runtime_error(place + ":" + std::to_string(number) + " is not ASCII");
      if (line == "#pragma once") line.clear();
      if (line.rfind(kInclude, 0) == 0) {
        const size_t begin = sizeof(kInclude) - 1;
        add(line.substr(begin, line.find('"', begin) - begin));
        mark(number + 1, path);
      } else {
        out.append(line).append("\n");
      }
    }
  }

 private:
  // So that messages of the compiler name our files.
  void mark(int line, const std::string& path) {
    out.append("#line ").append(std::to_string(line)).append(" \"").append(path).append("\"\n");
  }

  std::string root_;
  std::set<std::string> seen_;
};

}  // namespace

void set_kernel_folder(const std::string& path) {
  std::lock_guard lock(mutex);
  if (path == folder) return;
  folder = path;
  ++generation;
}

std::string kernel_folder() {
  std::lock_guard lock(mutex);
  return folder;
}

int kernel_folder_generation() {
  std::lock_guard lock(mutex);
  return generation;
}

std::string source_of(const Instance& kernel) {
  Text text(kernel_folder());
  text.add(kernel.file);
  text.out += "template [[host_name(\"" + kernel.name + "\")]] [[kernel]] decltype(" +
              kernel.function + ") " + kernel.function + ";\n";
  return std::move(text.out);
}

}  // namespace sdpa::metal
