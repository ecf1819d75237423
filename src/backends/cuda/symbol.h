// Functions of libraries that MLX has loaded.
#pragma once

#include <dlfcn.h>

#include <stdexcept>
#include <string>

namespace sdpa::cuda {

// Points f at a function of a library. Throws std::runtime_error that names both.
template <class F>
void load_symbol(F& f, void* library, const char* owner, const char* name) {
  f = reinterpret_cast<F>(dlsym(library, name));
  if (!f) throw std::runtime_error(std::string(owner) + " has no " + name);
}

}  // namespace sdpa::cuda
