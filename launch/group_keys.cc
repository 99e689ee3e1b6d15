// SPDX-License-Identifier: Apache-2.0
#include "launch/group_keys.h"

#include <string>

#include "kernels/base/error.h"

namespace trireme {

void relay_key(Channel& channel, int from, const GroupKey& key, const std::set<int>& company) {
  constexpr size_t kMostBytes = 256;
  ToWorker message;
  message.mutable_group_key()->set_tag(key.tag());
  message.mutable_group_key()->set_key(key.key());
  for (const int rank : key.ranks()) {
    if (!company.contains(rank) || key.key().size() > kMostBytes) {
      throw Error(Code::kInvalidArgument, "cannot start: rank " + std::to_string(from) +
                                              " sent a key that none of its company could use");
    }
    channel.send(rank, message);
  }
}

}  // namespace trireme
