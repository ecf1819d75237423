// Integers, and what lanes of a simdgroup do together: for both compilers, and for mode T.
#pragma once

namespace softmetal {

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;

enum class Reduction : u32 { Sum, Product, Max, Min, And, Or, Xor, All, Any };
enum class Shuffle : u32 { Lane, Xor, Up, Down, RotateUp, RotateDown, Broadcast, BroadcastFirst };

struct Pair {
  float x, y;
};

}  // namespace softmetal
