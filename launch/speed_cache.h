// SPDX-License-Identifier: Apache-2.0
// Speeds that were measured, kept for the next start in one file of the user's cache folder. A file
// that cannot be read or written costs a measurement, not a start.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "proto/preflight.pb.h"

namespace trireme {

class SpeedCache {
 public:
  // `now`: seconds of the Unix clock.
  SpeedCache(std::string path, int64_t now);

  // Not older than a week, nor from the future. The pointer lives until keep().
  const NodeSpeeds* find(const std::string& key) const;
  void keep(const NodeSpeeds& node);
  // Without what nobody will ask for again; says in the log if it cannot.
  void save() const;

 private:
  const std::string path_;
  const int64_t now_;
  SpeedFile file_;
};

// "just now", "5 minutes ago", "3 days ago".
std::string age_text(int64_t seconds);

}  // namespace trireme
