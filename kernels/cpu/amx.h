// Tiles of bfloat16 on AMX: 32 rows by 32 columns in four accumulator tiles of 16 x 16.
#pragma once

#include "kernels/cpu/pair_pack.h"

namespace sdpa::cpu::SDPA_ISA {

struct PairTiles : PairPanels<2, 32> {
  static constexpr int R = 32;

  // The tile registers of this thread: 8 of 16 rows of 64 bytes.
  struct Session {
    Session() {
      struct alignas(64) Config {
        uint8_t palette = 1, start_row = 0, reserved[14] = {};
        uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
        uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
      } config;
      static_assert(sizeof(Config) == 64);
      _tile_loadconfig(&config);
    }
    ~Session() { _tile_release(); }
    Session(const Session&) = delete;
    Session& operator=(const Session&) = delete;
  };

  static void multiply(int wide, int depth, const bf16* A, int lda, const bf16* B, float* C,
                       int ldc, const float* alpha) {
    if (alpha)
      for (int i = 0; i < R; ++i)
        for (int v = 0; v < wide; ++v)
          store(C + i * ldc + v * W, load(C + i * ldc + v * W) * alpha[i]);
    if (wide == 1) return narrow_panel(depth, A, lda, B, C, ldc, alpha);
    wide_panel(depth, A, lda, B, C, ldc, alpha);
  }

 private:
  // Tiles 0-3: C; 4, 5: A; 6, 7: B.
  static void wide_panel(int depth, const bf16* A, int lda, const bf16* B, float* C, int ldc,
                         bool adds) {
    float* const below = C + 16 * ldc;
    const int64_t c = int64_t(ldc) * 4, a = int64_t(lda) * 2;
    if (adds) {
      _tile_loadd(0, C, c);
      _tile_loadd(1, C + W, c);
      _tile_loadd(2, below, c);
      _tile_loadd(3, below + W, c);
    } else {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
    }
    for (int k = 0; k < depth; k += kDepth) {
      const bf16* b = B + int64_t(k / 2) * 2 * 2 * W;
      _tile_loadd(4, A + k, a);
      _tile_loadd(6, b, 2 * 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, b + 2 * W, 2 * 64);
      _tile_dpbf16ps(1, 4, 7);
      _tile_loadd(5, A + k + 16 * lda, a);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, C, c);
    _tile_stored(1, C + W, c);
    _tile_stored(2, below, c);
    _tile_stored(3, below + W, c);
  }

  static void narrow_panel(int depth, const bf16* A, int lda, const bf16* B, float* C, int ldc,
                           bool adds) {
    float* const below = C + 16 * ldc;
    const int64_t c = int64_t(ldc) * 4, a = int64_t(lda) * 2;
    if (adds) {
      _tile_loadd(0, C, c);
      _tile_loadd(2, below, c);
    } else {
      _tile_zero(0);
      _tile_zero(2);
    }
    for (int k = 0; k < depth; k += kDepth) {
      _tile_loadd(4, A + k, a);
      _tile_loadd(6, B + int64_t(k / 2) * 2 * W, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(5, A + k + 16 * lda, a);
      _tile_dpbf16ps(2, 5, 6);
    }
    _tile_stored(0, C, c);
    _tile_stored(2, below, c);
  }
};

}  // namespace sdpa::cpu::SDPA_ISA
