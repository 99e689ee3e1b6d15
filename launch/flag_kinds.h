// SPDX-License-Identifier: Apache-2.0
// Flags, and kinds of flags, that several sub-commands have. Included by files that add flags.
#pragma once

#include <CLI/CLI.hpp>
#include <chrono>
#include <string>

#include "launch/options.h"

namespace trireme {

// CLI11's own check prints the limits of a double.
inline CLI::Validator positive() {
  return {[](std::string& text) {
            return text.find_first_not_of("0123456789") == std::string::npos &&
                           text.find_first_not_of('0') != std::string::npos
                       ? std::string()
                       : "found " + text + ", needed is a whole number of 1 or more";
          },
          "POSITIVE"};
}

// Reads a duration of `least` or more into `value`, which may be an optional.
template <class Value>
CLI::Option* add_duration(CLI::App& app, const std::string& name, Value& value,
                          const std::string& help, std::chrono::milliseconds least = {}) {
  const auto read = [&value, name, least](const std::string& text) {
    value = parse_duration(text, name);
    if (value < least) bad_value(name, text, std::to_string(least.count()) + "ms or more");
  };
  return app.add_option_function<std::string>(name, read, help);
}

inline void add_client_flags(CLI::App& app, ClientFlags& flags) {
  app.add_option("--server", flags.server, "HOST:PORT or unix:PATH")->capture_default_str();
  app.add_option("--token_file", flags.token_file, "the server's token");
  app.add_option("--tls_ca", flags.tls_ca, "use TLS; the server's CA or certificate, PEM");
}

}  // namespace trireme
