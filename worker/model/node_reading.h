// SPDX-License-Identifier: Apache-2.0
// How the ranks of a node read a checkpoint: each byte that they need from the file system once.
// One of them reads a tensor and hands every other one what that one needs of it, over the data
// plane.
//
// This is not left to the page cache, which shares what two ranks map only while memory and cgroup
// hold it and the file system caches at all; and it makes the count exact. Nothing is dropped from
// the cache either: a job that is started again finds the files there.
//
// Every rank of the node makes the same plan and takes the pieces in the same order, so the one
// that is furthest behind never waits for another, and all arrive.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "worker/comm/communicator.h"
#include "worker/model/slices.h"

namespace trireme {

// What a shard needs of the checkpoint. Throws like load_weights for tensors that do not fit.
std::vector<Want> wanted(const ModelSpec& model, const StageSpec& stage, const ShardSpec& shard,
                         const Checkpoint& checkpoint);

class ReadPlan {
 public:
  struct Member {
    const StageSpec* stage = nullptr;
    const ShardSpec* shard = nullptr;
  };
  // A part of a tensor that a member needs.
  struct Part {
    int member = 0;
    Want want;
  };
  struct Job {
    const TensorInfo* tensor = nullptr;
    int reader = 0;             // a member
    std::vector<Part> parts;    // by member
    std::vector<Units> ranges;  // that are read: ascending, apart
    int64_t step = 1;           // units of a piece
  };

  // everything: tensors that nobody needs are read too, and whole; the work is then that of a check
  // of the weights. `model`, stages, shards and checkpoint must outlive the plan.
  ReadPlan(const ModelSpec& model, std::vector<Member> members, const Checkpoint& checkpoint,
           bool everything);

  const std::vector<Member>& members() const { return members_; }
  bool everything() const { return everything_; }
  // In the order in which they are done: as the tensors lie in the files.
  const std::vector<Job>& jobs() const { return jobs_; }
  // Of the files, that the members read together: what they need, a byte that several need counted
  // once, or everything.
  uint64_t read_bytes() const;
  // What a member has to get through: what it needs itself, and what it reads for nobody.
  uint64_t work_bytes(int member) const { return work_bytes_[static_cast<size_t>(member)]; }

 private:
  void add(Job job, int64_t head_dim);

  std::vector<Member> members_;
  bool everything_ = false;
  std::vector<Job> jobs_;
  std::vector<uint64_t> work_bytes_;  // by member
  std::vector<uint64_t> read_bytes_;  // likewise
};

// Who hears of what comes.
struct ReadSinks {
  // Units of a part of this member, in order within the part.
  std::function<void(const Want& want, Units units, StoredRows stored)> take;
  // All bytes of a tensor that this member reads, in order; or empty.
  std::function<void(const TensorInfo& tensor, std::span<const std::byte> bytes, bool last)> hear;
  // So much of work_bytes() is done more.
  std::function<void(uint64_t bytes)> advance;
};

// This member's part of the plan. group: the members, in their order; null if there is one only.
// team: reads. Throws for files that cannot be read, and kCancelled.
void read_together(const ReadPlan& plan, int member, Communicator* group, Checkpoint& checkpoint,
                   Team& team, const ReadSinks& sinks);

}  // namespace trireme
