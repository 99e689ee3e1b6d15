// SPDX-License-Identifier: Apache-2.0
// What somebody may have meant by a name that is not known, for messages.
#pragma once

#include <string>
#include <vector>

namespace trireme {

// The one of `names` with the fewest characters to insert, delete or replace; "" of none.
std::string nearest_name(const std::string& asked, const std::vector<std::string>& names);

}  // namespace trireme
