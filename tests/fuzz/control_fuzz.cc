// SPDX-License-Identifier: Apache-2.0
// What ranks send each other: frames and the messages in them, the address that travels by MPI,
// micro-batches, assignments.
#include <google/protobuf/util/message_differencer.h>

#include "proto/micro_batch.pb.h"
#include "tests/fuzz/fuzz.h"
#include "tests/support/models.h"
#include "topology/shard.h"
#include "worker/batch_tensors.h"
#include "worker/comm/control.h"
#include "worker/comm/frame.h"
#include "worker/history.h"
#include "worker/sampler.h"
#include "worker/stage.h"

namespace trireme::fuzz {
namespace {

using google::protobuf::util::MessageDifferencer;

constexpr uint32_t kLimit = 4096;

// The frames of a stream that comes in pieces of `step` bytes, and the reader's last word.
std::vector<std::string> frames_of(std::string_view stream, size_t step) {
  FrameReader reader(kLimit);
  std::vector<std::string> frames;
  for (size_t at = 0; at < stream.size(); at += step) {
    reader.append(stream.substr(at, step));
    while (const auto frame = reader.next()) {
      CHECK(frame->size() <= kLimit, "a frame within the limit");
      frames.emplace_back(*frame);
    }
  }
  frames.push_back(reader.error());
  return frames;
}

// The same by the book: whole frames up to the first that is too long; nothing of one that is cut.
std::vector<std::string> frames_by_the_book(std::string_view stream) {
  std::vector<std::string> frames;
  std::string error;
  while (stream.size() >= 4) {
    uint32_t length = 0;
    for (size_t i = 0; i < 4; ++i) length = length << 8 | static_cast<uint8_t>(stream[i]);
    if (length > kLimit) {
      error = "a message of " + std::to_string(length) + " bytes, the limit is " +
              std::to_string(kLimit);
      break;
    }
    if (stream.size() - 4 < length) break;
    frames.emplace_back(stream.substr(4, length));
    stream.remove_prefix(4 + length);
  }
  frames.push_back(error);
  return frames;
}

template <class Message>
void check_message(const std::string& frame) {
  Message message, again;
  if (!message.ParseFromString(frame)) return;
  FrameReader reader(1 << 20);
  reader.append(make_frame(message, 1 << 20));
  const auto written = reader.next();
  CHECK(written && again.ParseFromArray(written->data(), static_cast<int>(written->size())),
        "what was read can be sent");
  CHECK(again.SerializeAsString() == message.SerializeAsString(), "and arrives the same");
}

// What the draw of a chunk gives, whatever its parameters.
void check_draw(const SequenceChunk& chunk, int32_t vocab_size, std::span<const int32_t> history) {
  constexpr int32_t kPadding = 3;
  static Sampler sampler(vocab_size - kPadding);
  std::vector<float> logits(static_cast<size_t>(vocab_size));
  for (size_t i = 0; i < logits.size(); ++i) logits[i] = static_cast<float>(i * 37 % 100) / 10;
  const int32_t position = chunk.position() + chunk.token_ids_size();
  SampledToken token;
  (void)accepts([&] {
    sampler.draw(logits, chunk.draw(), position, history, token);
    CHECK(token.token() >= 0 && token.token() < vocab_size - kPadding, "no padding is drawn");
    CHECK(token.logprobs_size() <= vocab_size, "logprobs of the vocabulary");
  });
}

}  // namespace

// The first byte says in what pieces the stream comes.
void fuzz_control_frames(std::string_view input) {
  if (input.empty()) return;
  const size_t step = 1 + static_cast<uint8_t>(input[0]);
  const std::vector<std::string> frames = frames_of(input.substr(1), step);
  CHECK(frames == frames_of(input.substr(1), input.size()), "the pieces make no difference");
  CHECK(frames == frames_by_the_book(input.substr(1)), "whole frames, and no others");
  for (const std::string& frame : frames) {
    check_message<ToWorker>(frame);
    check_message<FromWorker>(frame);
  }
}

void fuzz_control_address(std::string_view input) {
  ControlAddress address;
  if (!accepts([&] { address = ControlAddress::parse(std::string(input)); })) return;
  const ControlAddress again = ControlAddress::parse(address.serialise());
  CHECK(again.hosts == address.hosts && again.port == address.port && again.key == address.key,
        "written again it is the same");
}

void fuzz_micro_batch(std::string_view input) {
  static const ModelSpec model = make_model(2, 4, 2, 8, 64, 100);
  static const Placement placement = [] {
    Placement sizes;
    sizes.set_block_size(4);
    sizes.set_num_blocks(10);
    sizes.set_max_sequences(4);
    sizes.set_max_batch_tokens(16);
    sizes.set_context(24);
    return sizes;
  }();
  static const std::unique_ptr<Backend> backend = make_backend({});
  static BatchTensors tensors(*backend, model, placement);
  MicroBatch batch;
  if (!batch.ParseFromArray(input.data(), static_cast<int>(input.size()))) return;
  if (!accepts([&] { tensors.load(batch); })) return;
  const BatchView& view = tensors.view();
  CHECK(view.num_tokens >= 1 && view.num_tokens <= 16, "tokens");
  CHECK(view.num_sequences >= 1 && view.num_sequences <= 4, "sequences");
  for (int32_t t = 0; t < view.num_tokens; ++t) {
    CHECK(view.token_ids[t] >= 0 && view.token_ids[t] < model.vocab_size(), "an id");
    CHECK(view.positions[t] >= 0 && view.positions[t] < placement.context(), "a position");
    CHECK(view.slots[t] >= 0 && view.slots[t] < 10 * 4, "a slot of the cache");
  }
  for (int32_t s = 0; s < view.num_sequences; ++s) {
    CHECK(view.query_begin[s] < view.query_begin[s + 1], "every sequence has a token");
    CHECK(view.context[s] <= view.max_blocks * placement.block_size(), "blocks for the context");
    for (int32_t b = 0; b < view.max_blocks; ++b) {
      const int32_t block = view.block_tables[s * view.max_blocks + b];
      CHECK(block >= 0 && block < placement.num_blocks(), "a block of the cache");
    }
  }
  CHECK(view.query_begin[view.num_sequences] == view.num_tokens, "every token has a sequence");
  Histories histories(placement.max_sequences());
  if (!accepts([&] { histories.follow(batch); })) return;
  for (const SequenceChunk& chunk : batch.chunks()) {
    check_draw(chunk, model.vocab_size(), histories.of(chunk.sequence()));
  }
}

// What check_assignment lets pass, a worker allocates and computes with.
void fuzz_assign(std::string_view input) {
  Assign assign;
  if (!assign.ParseFromArray(input.data(), static_cast<int>(input.size()))) return;
  if (!accepts([&] { check_assignment(assign); })) return;
  const Placement& placement = assign.placement();
  const StageSpec& stage = placement.replicas(assign.replica()).stages(assign.stage());
  const ShardSpec& shard = stage.shards(assign.tp_rank());
  CHECK(weight_bytes(assign.model(), stage, shard, placement) < uint64_t{1} << 62, "weights");
  CHECK(kv_bytes(assign.model(), stage, shard, placement) < uint64_t{1} << 62, "KV");
  CHECK(activation_bytes(assign.model(), stage, shard, placement) < uint64_t{1} << 62,
        "activations");
  CHECK(placement.num_blocks() <= INT32_MAX / placement.block_size(), "slots are 32 bits");
}

}  // namespace trireme::fuzz
