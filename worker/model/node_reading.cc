// SPDX-License-Identifier: Apache-2.0
#include "worker/model/node_reading.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <numeric>
#include <utility>

#include "kernels/base/check.h"
#include "worker/model/prefix.h"
#include "worker/model/quant.h"

namespace trireme {
namespace {

constexpr uint64_t kPieceBytes = 16 << 20;
// How far the file system is told of what comes next.
constexpr uint64_t kAheadBytes = 64 << 20;

// Ranges joined where they meet.
std::vector<Units> joined(std::vector<Units> ranges) {
  std::sort(ranges.begin(), ranges.end(),
            [](const Units& a, const Units& b) { return a.begin < b.begin; });
  std::vector<Units> result;
  for (const Units& range : ranges) {
    if (range.count == 0) continue;
    if (!result.empty() && range.begin <= result.back().end()) {
      Units& last = result.back();
      last.count = std::max(last.end(), range.end()) - last.begin;
    } else {
      result.push_back(range);
    }
  }
  return result;
}

Units common(const Units& a, const Units& b) {
  const int64_t begin = std::max(a.begin, b.begin);
  return {begin, std::max<int64_t>(std::min(a.end(), b.end()) - begin, 0)};
}

uint64_t bytes_in(const Units& units, const TensorInfo& tensor) {
  return static_cast<uint64_t>(units.count) * tensor.unit_bytes();
}

// What is read at once.
struct Piece {
  Units units;
  uint64_t offset = 0;  // in the tensor
  uint64_t bytes = 0;
  bool last = false;  // of its tensor
};

std::vector<Piece> pieces_of(const ReadPlan::Job& job) {
  std::vector<Piece> pieces;
  const uint64_t unit = job.tensor->unit_bytes();
  for (const Units& range : job.ranges) {
    for (int64_t at = range.begin; at < range.end(); at += job.step) {
      const Units units{at, std::min(job.step, range.end() - at)};
      const uint64_t offset = static_cast<uint64_t>(at) * unit;
      const uint64_t bytes = bytes_in(units, *job.tensor);
      // A unit may be large where nobody needs it: those that are needed are rows of the model.
      for (uint64_t done = 0; done < bytes;) {
        const uint64_t size = job.parts.empty() ? std::min(kPieceBytes, bytes - done) : bytes;
        pieces.push_back({units, offset + done, size, false});
        done += size;
      }
    }
  }
  if (!pieces.empty()) pieces.back().last = true;
  return pieces;
}

// What a part takes of a piece: `rows` times `row_bytes`, the first at `begin`. The values of a
// vector are one row.
struct Cut {
  Units units;
  uint64_t begin = 0;
  int64_t rows = 0;
  uint64_t row_bytes = 0;
  int64_t col = 0;  // of the first value
  uint64_t bytes() const { return static_cast<uint64_t>(rows) * row_bytes; }
};

Cut cut_of(const Slice& slice, const Piece& piece) {
  const TensorInfo& tensor = *slice.tensor;
  Cut cut;
  cut.units = common(units_of(slice), piece.units);
  if (cut.units.count == 0) return cut;
  cut.begin = bytes_in({0, cut.units.begin - piece.units.begin}, tensor);
  if (tensor.shape.size() != 2) {
    cut.rows = 1;
    cut.row_bytes = bytes_in(cut.units, tensor);
    cut.col = tensor.units() > 1 ? cut.units.begin : 0;
    return cut;
  }
  const StoredType& type = *find_stored_type(tensor.type);  // the plan has asked for it
  const int64_t first = (slice.col - slice.before) / type.block_values;
  const int64_t last = slice.col + slice.cols + slice.after;
  const int64_t end = (last + type.block_values - 1) / type.block_values;
  cut.begin += static_cast<uint64_t>(first * type.block_bytes);
  cut.rows = cut.units.count;
  cut.row_bytes = static_cast<uint64_t>((end - first) * type.block_bytes);
  cut.col = first * type.block_values;
  return cut;
}

class NodeReader {
 public:
  NodeReader(const ReadPlan& plan, int member, Communicator* group, Checkpoint& checkpoint,
             Team& team, const ReadSinks& sinks)
      : plan_(plan),
        member_(member),
        group_(group),
        checkpoint_(checkpoint),
        team_(team),
        sinks_(sinks) {}

  void run() {
    for (const ReadPlan::Job& job : plan_.jobs()) {
      const bool needed = std::any_of(job.parts.begin(), job.parts.end(),
                                      [&](const auto& part) { return part.member == member_; });
      if (!needed && job.reader != member_) continue;
      for (const Piece& piece : pieces_of(job)) {
        if (job.reader == member_) {
          read(job, piece);
        } else {
          receive(job, piece);
        }
      }
    }
  }

 private:
  void read(const ReadPlan::Job& job, const Piece& piece) {
    announce();
    announced_bytes_ -= std::min(announced_bytes_, piece.bytes);
    piece_.resize(piece.bytes);
    checkpoint_.fetch(*job.tensor, piece.offset, piece_, team_);
    if (sinks_.hear) sinks_.hear(*job.tensor, piece_, piece.last);
    for (int member = 0; member < static_cast<int>(plan_.members().size()); ++member) {
      if (member != member_) hand_on(job, piece, member);
    }
    const auto stride = static_cast<int64_t>(job.tensor->unit_bytes());
    for_each_cut(job, piece, member_, [&](const Want& want, const Cut& cut) {
      take(want, cut, piece_.data() + cut.begin, stride);
    });
    if (job.parts.empty()) sinks_.advance(piece.bytes);
  }

  void hand_on(const ReadPlan::Job& job, const Piece& piece, int member) {
    message_.clear();
    const uint64_t stride = job.tensor->unit_bytes();
    for_each_cut(job, piece, member, [&](const Want&, const Cut& cut) {
      for (int64_t row = 0; row < cut.rows; ++row) {
        const auto begin = piece_.begin() + static_cast<int64_t>(cut.begin + row * stride);
        message_.insert(message_.end(), begin, begin + static_cast<int64_t>(cut.row_bytes));
      }
    });
    if (!message_.empty()) group_->send(padded_message(), member);
  }

  void receive(const ReadPlan::Job& job, const Piece& piece) {
    uint64_t bytes = 0;
    for_each_cut(job, piece, member_, [&](const Want&, const Cut& cut) { bytes += cut.bytes(); });
    if (bytes == 0) return;
    message_.resize(bytes);
    group_->recv(padded_message(), job.reader);
    uint64_t begin = 0;
    for_each_cut(job, piece, member_, [&](const Want& want, const Cut& cut) {
      take(want, cut, message_.data() + begin, static_cast<int64_t>(cut.row_bytes));
      begin += cut.bytes();
    });
  }

  template <class Function>
  void for_each_cut(const ReadPlan::Job& job, const Piece& piece, int member, Function function) {
    for (const ReadPlan::Part& part : job.parts) {
      if (part.member != member) continue;
      const Cut cut = cut_of(part.want.slice, piece);
      if (cut.units.count > 0) function(part.want, cut);
    }
  }

  void take(const Want& want, const Cut& cut, const std::byte* data, int64_t stride) {
    sinks_.take(want, cut.units, {data, stride, cut.col});
    sinks_.advance(bytes_in(cut.units, *want.slice.tensor));
  }

  // Tensors that travel are fp32; nobody looks at the values.
  Tensor padded_message() {
    constexpr size_t kUnit = sizeof(float);
    message_.resize((message_.size() + kUnit - 1) / kUnit * kUnit);
    return {message_.data(), DType::kF32, 1, static_cast<int64_t>(message_.size() / kUnit)};
  }

  // Tells the file system of what this member reads next, so that it reads while others compute.
  void announce() {
    const std::vector<ReadPlan::Job>& jobs = plan_.jobs();
    while (announced_bytes_ < kAheadBytes && next_job_ < jobs.size()) {
      const ReadPlan::Job& job = jobs[next_job_];
      if (job.reader != member_ || next_range_ == job.ranges.size()) {
        ++next_job_;
        next_range_ = 0;
        next_unit_ = 0;
        continue;
      }
      const Units& range = job.ranges[next_range_];
      const int64_t begin = std::max(next_unit_, range.begin);
      const Units units{begin, std::min(job.step, range.end() - begin)};
      const uint64_t bytes = bytes_in(units, *job.tensor);
      checkpoint_.will_fetch(*job.tensor, bytes_in({0, begin}, *job.tensor),
                             std::min(bytes, kAheadBytes));
      announced_bytes_ += bytes;
      next_unit_ = units.end();
      if (next_unit_ == range.end()) ++next_range_;
    }
  }

  const ReadPlan& plan_;
  const int member_;
  Communicator* const group_;
  Checkpoint& checkpoint_;
  Team& team_;
  const ReadSinks& sinks_;
  std::vector<std::byte> piece_;
  std::vector<std::byte> message_;

  // The first that was not announced.
  size_t next_job_ = 0;
  size_t next_range_ = 0;
  int64_t next_unit_ = 0;
  uint64_t announced_bytes_ = 0;  // and not read
};

}  // namespace

std::vector<Want> wanted(const ModelSpec& model, const StageSpec& stage, const ShardSpec& shard,
                         const Checkpoint& checkpoint) {
  const SlicePlan plan(model, shard, checkpoint);
  std::vector<Want> wants;
  const auto add = [&](std::vector<Slice> slices, std::optional<Slot> slot, int32_t layer) {
    for (const Slice& slice : slices) {
      if (units_of(slice).count == 0) continue;
      checkpoint.require_readable(*slice.tensor);
      wants.push_back({slice, slot, layer});
    }
  };
  add(prefix_slices(model, stage, shard, checkpoint), std::nullopt, 0);
  for (Slot slot : outer_slots(model, stage)) add(plan.slices(slot, 0), slot, 0);
  for (int32_t layer = stage.layers().begin(); layer < stage.layers().end(); ++layer) {
    for (Slot slot : layer_slots(model, shard)) add(plan.slices(slot, layer), slot, layer);
  }
  return wants;
}

ReadPlan::ReadPlan(const ModelSpec& model, std::vector<Member> members,
                   const Checkpoint& checkpoint, bool everything)
    : members_(std::move(members)),
      everything_(everything),
      work_bytes_(members_.size()),
      read_bytes_(members_.size()) {
  CHECK(!members_.empty(), "a node without ranks reads nothing");
  std::map<const TensorInfo*, std::vector<Part>> parts;
  for (size_t member = 0; member < members_.size(); ++member) {
    const auto& [stage, shard] = members_[member];
    for (const Want& want : wanted(model, *stage, *shard, checkpoint)) {
      parts[want.slice.tensor].push_back({static_cast<int>(member), want});
    }
  }
  for (const TensorInfo* tensor : checkpoint.tensors()) {
    const auto found = parts.find(tensor);
    if (found == parts.end() && !everything) continue;
    Job job;
    job.tensor = tensor;
    if (found != parts.end()) job.parts = std::move(found->second);
    add(std::move(job), model.head_dim());
  }
}

void ReadPlan::add(Job job, int64_t head_dim) {
  const TensorInfo& tensor = *job.tensor;
  std::vector<Units> needed;
  int64_t whole = 1;  // units that must stay together: heads that are un-permuted
  std::vector<bool> candidate(members_.size(), job.parts.empty());
  for (const Part& part : job.parts) {
    const Units units = units_of(part.want.slice);
    needed.push_back(units);
    if (part.want.slice.permuted) whole = head_dim;
    candidate[static_cast<size_t>(part.member)] = true;
    work_bytes_[static_cast<size_t>(part.member)] += bytes_in(units, tensor);
  }
  job.ranges = joined(std::move(needed));
  if (everything_) job.ranges = joined({{0, tensor.units()}});
  const auto fit = static_cast<int64_t>(kPieceBytes / std::max<uint64_t>(tensor.unit_bytes(), 1));
  job.step = std::max<int64_t>(fit / whole, 1) * whole;

  // The member with the least to read so far, of those that need it.
  size_t reader = members_.size();
  for (size_t member = 0; member < members_.size(); ++member) {
    if (!candidate[member]) continue;
    if (reader == members_.size() || read_bytes_[member] < read_bytes_[reader]) reader = member;
  }
  job.reader = static_cast<int>(reader);
  uint64_t bytes = 0;
  for (const Units& range : job.ranges) bytes += bytes_in(range, tensor);
  read_bytes_[reader] += bytes;
  if (job.parts.empty()) work_bytes_[reader] += bytes;
  jobs_.push_back(std::move(job));
}

uint64_t ReadPlan::read_bytes() const {
  return std::accumulate(read_bytes_.begin(), read_bytes_.end(), uint64_t{0});
}

void read_together(const ReadPlan& plan, int member, Communicator* group, Checkpoint& checkpoint,
                   Team& team, const ReadSinks& sinks) {
  CHECK(group != nullptr || plan.members().size() == 1, "several ranks need a way to each other");
  NodeReader(plan, member, group, checkpoint, team, sinks).run();
}

}  // namespace trireme
