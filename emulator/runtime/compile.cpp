// compile(): asks emulator/compile.py, in a Python process, and remembers its answer.
#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <fstream>
#include <mutex>
#include <sstream>
#include <stdexcept>

#include "kernel.h"

extern char** environ;

namespace softmetal {

namespace {

// Files of one compilation: source, the library's path, the compiler's text.
struct Folder {
  std::string path = (std::string(P_tmpdir) + "/softmetal-XXXXXX");
  Folder() {
    if (!mkdtemp(path.data())) throw std::runtime_error("cannot make a folder in " P_tmpdir);
  }
  ~Folder() {
    for (const char* name : {"source", "output", "errors"}) unlink(file(name).c_str());
    rmdir(path.c_str());
  }
  std::string file(const std::string& name) const { return path + "/" + name; }
};

std::string read(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

// emulator/__init__.py sets both variables.
std::string python() {
  const char* program = std::getenv("SOFTMETAL_PYTHON");
  return program ? program : "python3";
}

std::vector<std::string> environment() {
  std::vector<std::string> all;
  const char* path = std::getenv("SOFTMETAL_PYTHONPATH");
  for (char** variable = environ; *variable; ++variable) {
    const std::string text = *variable;
    if (!path || text.rfind("PYTHONPATH=", 0) != 0) all.push_back(text);
  }
  if (path) all.push_back("PYTHONPATH=" + std::string(path));
  return all;
}

std::string compile_with_python(const std::string& source) {
  const Folder folder;
  std::ofstream(folder.file("source")) << source;
  std::vector<std::string> words = {python(), "-m", "emulator.compile", folder.file("source"),
                                    folder.file("output")};
  std::vector<std::string> variables = environment();
  std::vector<char*> arguments, values;
  for (auto& word : words) arguments.push_back(word.data());
  for (auto& variable : variables) values.push_back(variable.data());
  arguments.push_back(nullptr);
  values.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 2, folder.file("errors").c_str(),
                                   O_WRONLY | O_CREAT | O_TRUNC, 0600);
  pid_t child = 0;
  const int failed =
      posix_spawnp(&child, arguments[0], &actions, nullptr, arguments.data(), values.data());
  posix_spawn_file_actions_destroy(&actions);
  if (failed) throw std::runtime_error("cannot run " + words[0] + " to compile a kernel");
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {}
  if (status != 0) throw std::runtime_error(read(folder.file("errors")));
  return read(folder.file("output"));
}

}  // namespace

std::shared_ptr<Library> compile(const std::string& source) {
  static std::mutex mutex;
  static std::map<std::string, std::shared_ptr<Library>> known;
  {
    const std::lock_guard lock(mutex);
    const auto found = known.find(source);
    if (found != known.end()) return found->second;
  }
  auto library = open_library(compile_with_python(source));
  const std::lock_guard lock(mutex);
  return known.try_emplace(source, library).first->second;
}

}  // namespace softmetal
