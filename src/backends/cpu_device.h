// The CPU as the plan sees it: which instruction set and how many threads are in use.
#pragma once

#include <string>
#include <vector>

#include "kernels/cpu/kernels.h"
#include "src/plan.h"

namespace sdpa::cpu {

// Instruction sets this build has kernels for and this machine runs, best first.
std::vector<std::string> instruction_sets();
// Sets the one in use; "" = the best. Throws std::invalid_argument on any other name.
void use_instruction_set(const std::string&);

// Threads that work on one call; 0 = the cores this process may use.
void use_threads(int);

// What the plan is made for: the instruction set and the threads in use.
Device device();

// The kernels of the instruction set in use.
const Kernels& kernels_in_use();

}  // namespace sdpa::cpu
