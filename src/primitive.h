// The nodes of the MLX graph: attention, and the merge of partial attentions.
#pragma once

#include <mlx/primitives.h>

#include "src/attention.h"

namespace sdpa {

struct GpuBackend;

// softmax(scale * Q K^T + mask) V. Outputs: out [B, Hq, Lq, Dv] and, if wanted, lse [B, Hq, Lq].
class Sdpa : public mx::Primitive {
 public:
  Sdpa(mx::Stream stream, Attributes attributes) : Primitive(stream), attributes_(attributes) {}

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override;
  void eval_gpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override;

  std::pair<std::vector<mx::array>, std::vector<int>> vmap(const std::vector<mx::array>& inputs,
                                                           const std::vector<int>& axes) override;
  std::vector<mx::array> jvp(const std::vector<mx::array>& primals,
                             const std::vector<mx::array>& tangents,
                             const std::vector<int>& argnums) override;
  std::vector<mx::array> vjp(const std::vector<mx::array>& primals,
                             const std::vector<mx::array>& cotangents,
                             const std::vector<int>& argnums,
                             const std::vector<mx::array>& outputs) override;
  bool is_equivalent(const Primitive& other) const override;
  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>& inputs) override;
  const char* name() const override { return "Sdpa"; }

  // The outputs as arrays of a graph.
  static std::vector<mx::array> make(std::vector<mx::array> inputs, const Attributes&, mx::Stream);

 private:
  void eval_on(const GpuBackend&, const std::vector<mx::array>& inputs,
               std::vector<mx::array>& outputs);

  Attributes attributes_;
};

// Inputs: n outputs [B, Hq, Lq, Dv], then their n lse [B, Hq, Lq]. Outputs: out, lse.
class SdpaMerge : public mx::Primitive {
 public:
  explicit SdpaMerge(mx::Stream stream) : Primitive(stream) {}

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override;
  void eval_gpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override;

  std::pair<std::vector<mx::array>, std::vector<int>> vmap(const std::vector<mx::array>& inputs,
                                                           const std::vector<int>& axes) override;
  std::vector<mx::array> jvp(const std::vector<mx::array>& primals,
                             const std::vector<mx::array>& tangents,
                             const std::vector<int>& argnums) override;
  std::vector<mx::array> vjp(const std::vector<mx::array>& primals,
                             const std::vector<mx::array>& cotangents,
                             const std::vector<int>& argnums,
                             const std::vector<mx::array>& outputs) override;
  bool is_equivalent(const Primitive&) const override { return true; }
  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>& inputs) override;
  const char* name() const override { return "SdpaMerge"; }

  static std::vector<mx::array> make(std::vector<mx::array> inputs, mx::Stream);

 private:
  void eval_on(const GpuBackend&, const std::vector<mx::array>& inputs,
               std::vector<mx::array>& outputs);
};

}  // namespace sdpa
