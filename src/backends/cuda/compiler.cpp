#include "src/backends/cuda/compiler.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <mutex>
#include <stdexcept>

#include "src/backends/cuda/cubin_cache.h"
#include "src/backends/cuda/symbol.h"

namespace sdpa::cuda {

namespace fs = std::filesystem;

namespace {

struct Program_;
using Program = Program_*;
using Result = int;

struct Nvrtc {
  std::string include;  // the folder of CUDA's headers
  int major, minor;
  Result (*nvrtcVersion)(int*, int*);
  const char* (*nvrtcGetErrorString)(Result);
  Result (*nvrtcCreateProgram)(Program*, const char* source, const char* name, int headers,
                               const char* const* texts, const char* const* names);
  Result (*nvrtcDestroyProgram)(Program*);
  Result (*nvrtcCompileProgram)(Program, int, const char* const* options);
  Result (*nvrtcGetCUBINSize)(Program, size_t*);
  Result (*nvrtcGetCUBIN)(Program, char*);
  Result (*nvrtcGetProgramLogSize)(Program, size_t*);
  Result (*nvrtcGetProgramLog)(Program, char*);
};

// The copy that MLX has loaded: another one would not find its builtins beside it.
void* loaded_nvrtc() {
  for (const char* name : {"libnvrtc.so.13", "libnvrtc.so.12"})
    if (void* library = dlopen(name, RTLD_NOLOAD | RTLD_NOW)) return library;
  throw std::runtime_error("MLX has not loaded NVRTC, the CUDA compiler");
}

std::string include_folder(void* symbol) {
  Dl_info info;
  std::vector<fs::path> tried;
  if (dladdr(symbol, &info) && info.dli_fname) {
    const fs::path library = fs::path(info.dli_fname).parent_path();
    tried = {library.parent_path() / "include",
             library.parent_path().parent_path() / "cuda_runtime" / "include"};
  }
  for (const char* name : {"CUDA_HOME", "CUDA_PATH"})
    if (const char* home = std::getenv(name)) tried.push_back(fs::path(home) / "include");
  tried.push_back("/usr/local/cuda/include");
  std::string text;
  for (const fs::path& folder : tried) {
    if (fs::exists(folder / "cuda_bf16.h")) return folder;
    text.append(text.empty() ? "" : ", ").append(folder);
  }
  throw std::runtime_error("cuda_bf16.h is in none of " + text +
                           " (the package nvidia-cuda-runtime has it)");
}

Nvrtc load_nvrtc() {
  void* library = loaded_nvrtc();
  Nvrtc n;
  const auto load = [&](auto& f, const char* name) { load_symbol(f, library, "NVRTC", name); };
  load(n.nvrtcVersion, "nvrtcVersion");
  load(n.nvrtcGetErrorString, "nvrtcGetErrorString");
  load(n.nvrtcCreateProgram, "nvrtcCreateProgram");
  load(n.nvrtcDestroyProgram, "nvrtcDestroyProgram");
  load(n.nvrtcCompileProgram, "nvrtcCompileProgram");
  load(n.nvrtcGetCUBINSize, "nvrtcGetCUBINSize");
  load(n.nvrtcGetCUBIN, "nvrtcGetCUBIN");
  load(n.nvrtcGetProgramLogSize, "nvrtcGetProgramLogSize");
  load(n.nvrtcGetProgramLog, "nvrtcGetProgramLog");
  n.nvrtcVersion(&n.major, &n.minor);
  n.include = include_folder(reinterpret_cast<void*>(n.nvrtcVersion));
  return n;
}

const Nvrtc& nvrtc() {
  static const Nvrtc one = load_nvrtc();
  return one;
}

std::string& folder() {
  static std::string one;
  return one;
}

std::string read(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw std::runtime_error("the kernel source '" + path.string() + "' cannot be read");
  return {std::istreambuf_iterator<char>(in), {}};
}

// All that a kernel may include: any change of it is another kernel.
std::string sources() {
  std::vector<fs::path> files{fs::path(folder()) / "kernels" / "params.h"};
  for (const auto& entry : fs::directory_iterator(fs::path(folder()) / "kernels" / "cuda"))
    files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  std::string all;
  for (const fs::path& file : files)
    all.append(file.filename().string()).append("\n").append(read(file));
  return all;
}

void must(Result result, const char* call) {
  if (result != 0)
    throw std::runtime_error(std::string(call) + ": " + nvrtc().nvrtcGetErrorString(result));
}

std::string compile_now(const std::string& source, const std::string& file,
                        const std::vector<std::string>& options) {
  const Nvrtc& n = nvrtc();
  std::vector<const char*> pointers;
  for (const std::string& option : options) pointers.push_back(option.c_str());
  Program program = nullptr;
  must(n.nvrtcCreateProgram(&program, source.c_str(), file.c_str(), 0, nullptr, nullptr),
       "nvrtcCreateProgram");
  const Result result = n.nvrtcCompileProgram(program, int(pointers.size()), pointers.data());
  std::string text;
  size_t size = 0;
  if (result != 0) {
    n.nvrtcGetProgramLogSize(program, &size);
    text.resize(size);
    n.nvrtcGetProgramLog(program, text.data());
  } else {
    n.nvrtcGetCUBINSize(program, &size);
    text.resize(size);
    n.nvrtcGetCUBIN(program, text.data());
  }
  n.nvrtcDestroyProgram(&program);
  if (result != 0) throw std::runtime_error("it does not compile: " + text.substr(0, 2000));
  return text;
}

}  // namespace

void set_source_folder(const std::string& path) { folder() = path; }
const std::string& source_folder() { return folder(); }

std::string compile(const std::string& file, const std::string& arch,
                    const std::vector<std::string>& macros) {
  const Nvrtc& n = nvrtc();
  std::vector<std::string> options{"--gpu-architecture=" + arch, "--std=c++20",
                                   "--include-path=" + folder(), "--include-path=" + n.include};
  std::string key = "NVRTC " + std::to_string(n.major) + "." + std::to_string(n.minor) + "\n" +
                    arch + "\n" + file + "\n";
  for (const std::string& macro : macros) {
    options.push_back("-D" + macro);
    key.append(macro).append("\n");
  }
  key += sources();
  if (auto kept = cached_cubin(key)) return *kept;
  std::string cubin = compile_now(read(fs::path(folder()) / file), file, options);
  keep_cubin(key, cubin);
  return cubin;
}

}  // namespace sdpa::cuda
