// SPDX-License-Identifier: Apache-2.0
// Model and machine descriptions that tests start from.
#pragma once

#include <string>

#include "proto/cluster.pb.h"

namespace trireme {

inline ModelSpec make_model(int32_t layers, int32_t heads, int32_t kv_heads, int32_t head_dim,
                            int32_t ffn, int32_t vocab) {
  ModelSpec model;
  model.set_family("llama");
  model.set_name("test");
  model.set_num_layers(layers);
  model.set_hidden_size(heads * head_dim);
  model.set_num_heads(heads);
  model.set_num_kv_heads(kv_heads);
  model.set_head_dim(head_dim);
  model.set_ffn_size(ffn);
  model.set_vocab_size(vocab);
  model.set_context_length(8192);
  model.mutable_rope()->set_rotary_dim(head_dim);
  return model;
}

inline ModelSpec smollm2() {
  ModelSpec model = make_model(30, 9, 3, 64, 1536, 49152);
  model.set_tied_embeddings(true);
  return model;
}

inline ModelSpec chatglm3() {
  ModelSpec model = make_model(28, 32, 2, 128, 13696, 65024);
  model.set_qkv_bias(true);
  model.mutable_rope()->set_rotary_dim(64);
  return model;
}

// CPU workers with ranks 1.., all on one host.
inline Topology make_topology(int workers, uint64_t memory_bytes) {
  Topology topology;
  for (int rank = 1; rank <= workers; ++rank) {
    RankInfo& info = *topology.add_ranks();
    info.set_rank(rank);
    info.set_host("node");
    info.mutable_device()->set_kind(DEVICE_KIND_CPU);
    info.mutable_device()->set_memory_bytes(memory_bytes);
  }
  return topology;
}

}  // namespace trireme
