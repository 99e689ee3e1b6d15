// SPDX-License-Identifier: Apache-2.0
#include "launch/top_view.h"

#include <google/protobuf/util/json_util.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "launch/client.h"
#include "launch/text_table.h"

namespace trireme {
namespace {

constexpr const char* kBold = "1";
constexpr const char* kDim = "2";
constexpr const char* kRed = "1;31";
constexpr const char* kGreen = "32";
constexpr const char* kYellow = "1;33";
constexpr const char* kCyan = "36";

constexpr int kMinWidth = 68;

// Columns of a text: its code points, each of which we take for one column.
int columns(const std::string& text) {
  return static_cast<int>(
      std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xc0) != 0x80; }));
}

std::string cut(const std::string& text, int width) {
  if (columns(text) <= width) return text;
  std::string kept;
  int used = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    if ((text[i] & 0xc0) != 0x80 && ++used > width - 1) break;
    kept += text[i];
  }
  return kept + "~";
}

std::string left(const std::string& text, int width) {
  const std::string kept = cut(text, width);
  return kept + std::string(static_cast<size_t>(std::max(width - columns(kept), 0)), ' ');
}

std::string right(const std::string& text, int width) {
  const std::string kept = cut(text, width);
  return std::string(static_cast<size_t>(std::max(width - columns(kept), 0)), ' ') + kept;
}

// Text of others as one line that commands no terminal.
std::string plain(const std::string& text) {
  std::string line = for_terminal(text);
  for (char& c : line) {
    if (c == '\n' || c == '\t') c = ' ';
  }
  return line;
}

// In at most seven columns.
std::string age_text(int64_t ms) {
  const double seconds = static_cast<double>(std::max<int64_t>(ms, 0)) / 1e3;
  if (seconds < 99.95) return format_number("%.1f s", seconds);
  if (seconds < 3600) return format_number("%.0f min", seconds / 60);
  if (seconds < 100 * 3600) return format_number("%.0f h", seconds / 3600);
  return format_number("%.0f d", std::min(seconds / 86400, 99999.0));
}

std::string ranks_text(const google::protobuf::RepeatedField<int32_t>& ranks) {
  std::string text;
  for (const int32_t rank : ranks) text += (text.empty() ? "" : ",") + std::to_string(rank);
  return text;
}

class View {
 public:
  View(const TopState& state, const TopStyle& style)
      : state_(state), style_(style), width_(std::max(style.width, kMinWidth)) {}

  std::vector<std::string> lines() {
    head();
    load();
    if (state_.health) {
      std::vector<std::string> below = troubles();
      ranks(static_cast<int>(below.size()));
      lines_.insert(lines_.end(), below.begin(), below.end());
    }
    if (!state_.notice.empty()) {
      lines_.emplace_back();
      for (const std::string& line : wrapped(state_.notice)) lines_.push_back(paint(line, kYellow));
    }
    if (!style_.footer.empty()) {
      lines_.emplace_back();
      lines_.push_back(paint(style_.footer, kDim));
    }
    return std::move(lines_);
  }

 private:
  std::string paint(const std::string& text, const char* colour) const {
    if (!style_.colour || colour == nullptr) return text;
    return std::string("\033[") + colour + "m" + text + "\033[0m";
  }

  static const char* colour_of(const std::string& state) {
    if (state == "serving") return kGreen;
    if (state == "suspected" || state == "degraded" || state == "draining") return kYellow;
    if (state == "dead" || state == "not serving" || state == "ended") return kRed;
    if (state == "loading" || state == "starting") return kCyan;
    return kDim;
  }

  void head() {
    const std::string word = !state_.health ? "no answer" : plain(state_.health->state());
    std::string shown = word;
    for (char& c : shown) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
    const std::string name = "trireme top  " + plain(state_.server);
    lines_.push_back(paint(left(name, width_ - columns(shown) - 1), kBold) + " " +
                     paint(shown, state_.health ? colour_of(word) : kRed));
  }

  void load() {
    if (!state_.load) return;
    const v1::Load& load = *state_.load;
    const int used = load.blocks_total() - load.blocks_free();
    const double share = load.blocks_total() > 0 ? double(used) / load.blocks_total() : 0;
    std::string line = "running " + std::to_string(load.running()) + "   waiting " +
                       std::to_string(load.waiting()) + "/" + std::to_string(load.max_queue()) +
                       "   KV " + bar(share, 10) + format_number(" %.0f %%", 100 * share);
    if (state_.output_rate) line += "   out " + format_number("%.0f/s", *state_.output_rate);
    if (state_.prompt_rate) line += "   in " + format_number("%.0f/s", *state_.prompt_rate);
    lines_.push_back(cut_line(line));
    lines_.push_back(paint(cut("tokens so far: " + std::to_string(load.prompt_tokens()) + " in, " +
                                   std::to_string(load.output_tokens()) + " out; " +
                                   std::to_string(load.blocks_free()) + " of " +
                                   std::to_string(load.blocks_total()) + " KV blocks free",
                               width_),
                           kDim));
  }

  std::string bar(double share, int width) const {
    const int filled = std::clamp(static_cast<int>(share * width + 0.5), 0, width);
    std::string text;
    for (int i = 0; i < width; ++i) {
      text += style_.colour ? (i < filled ? "█" : "░") : (i < filled ? "#" : "-");
    }
    return style_.colour ? text : "[" + text + "]";
  }

  // No colour is in it.
  std::string cut_line(const std::string& line) const { return cut(line, width_); }

  void ranks(int lines_below) {
    lines_.emplace_back();
    const int extra = width_ - kMinWidth;
    const int host = std::min(6 + extra / 3, 24);
    const int operation = 14 + std::min(extra / 3, 10);
    const int waits_for = 9 + std::min(extra / 6, 20);
    widths_ = {4, 5, 9, host, 7, operation, waits_for, 7};
    // What is left over goes to the operation, so that the table fills its line.
    int used = static_cast<int>(widths_.size()) - 1;
    for (const int width : widths_) used += width;
    widths_[5] += std::clamp(width_ - used, 0, 12);
    lines_.push_back(paint(
        row({"rank", "stage", "state", "host", "batch", "operation", "waits for", "for"}), kDim));
    std::vector<const v1::RankHealth*> shown;
    for (const v1::RankHealth& rank : state_.health->ranks()) shown.push_back(&rank);
    const int room = style_.height - static_cast<int>(lines_.size()) - lines_below - 4;
    if (style_.height > 0 && static_cast<int>(shown.size()) > room) {
      std::stable_partition(shown.begin(), shown.end(), [](const v1::RankHealth* rank) {
        return rank->state() != "serving" && rank->state() != "spare";
      });
      const auto kept = static_cast<size_t>(std::max(room - 1, 1));
      const size_t hidden = shown.size() - std::min(kept, shown.size());
      shown.resize(std::min(kept, shown.size()));
      for (const v1::RankHealth* rank : shown) add(*rank);
      if (hidden > 0) lines_.push_back(paint("… and " + std::to_string(hidden) + " more", kDim));
      return;
    }
    for (const v1::RankHealth* rank : shown) add(*rank);
  }

  void add(const v1::RankHealth& rank) {
    const std::string place =
        rank.has_stage() ? std::to_string(rank.replica()) + "/" + std::to_string(rank.stage())
                         : "-";
    const uint64_t batch =
        rank.current_micro_batch() != 0 ? rank.current_micro_batch() : rank.micro_batch();
    const bool heard = rank.has_heartbeat_age_ms();
    const std::string line =
        row({std::to_string(rank.rank()), place, plain(rank.state()), plain(rank.host()),
             heard ? std::to_string(batch) : "-", plain(rank.operation()),
             ranks_text(rank.waiting_for()),
             heard ? age_text(rank.since_ms() + state_.health_age.count()) : "-"});
    if (!style_.colour) {
      lines_.push_back(line);
      return;
    }
    // The state's column alone is coloured.
    const auto begin = static_cast<size_t>(widths_[0] + 1 + widths_[1] + 1);
    const auto width = static_cast<size_t>(widths_[2]);
    lines_.push_back(line.substr(0, begin) +
                     paint(line.substr(begin, width), colour_of(rank.state())) +
                     line.substr(begin + width));
  }

  std::string row(const std::vector<std::string>& cells) const {
    std::string line;
    for (size_t i = 0; i < cells.size(); ++i) {
      const bool is_number = i == 0 || i == 4 || i == 7;
      if (i > 0) line += ' ';
      line += is_number ? right(cells[i], widths_[i]) : left(cells[i], widths_[i]);
    }
    return line;
  }

  std::vector<std::string> troubles() const {
    std::vector<std::string> lines;
    const auto add_text = [&](const std::string& text, const char* colour) {
      if (lines.empty()) lines.emplace_back();
      for (const std::string& line : wrapped(text)) lines.push_back(paint(line, colour));
    };
    for (const v1::RankHealth& rank : state_.health->ranks()) {
      if (rank.why().empty()) continue;
      add_text("rank " + std::to_string(rank.rank()) + " on " + rank.host() + ": " + rank.why(),
               colour_of(rank.state()));
    }
    std::string told;  // once for all ranks that it is said of
    for (const v1::RankHealth& rank : state_.health->ranks()) {
      if (rank.drift().empty() || rank.drift() == told) continue;
      told = rank.drift();
      add_text(told, kYellow);
    }
    if (!state_.health->first_failure().empty()) add_text(state_.health->first_failure(), kRed);
    return lines;
  }

  // At spaces where there are some.
  std::vector<std::string> wrapped(const std::string& raw) const {
    std::string rest = plain(raw);
    std::vector<std::string> lines;
    while (columns(rest) > width_) {
      // Bytes are at least columns, so this never cuts too late.
      size_t at = rest.rfind(' ', static_cast<size_t>(width_));
      if (at == std::string::npos || at == 0) at = static_cast<size_t>(width_);
      while (at > 1 && (rest[at] & 0xc0) == 0x80) --at;
      lines.push_back(rest.substr(0, at));
      rest.erase(0, rest[at] == ' ' ? at + 1 : at);
    }
    lines.push_back(rest);
    return lines;
  }

  const TopState& state_;
  const TopStyle& style_;
  const int width_;
  std::vector<int> widths_;
  std::vector<std::string> lines_;
};

nlohmann::ordered_json to_json(const google::protobuf::Message& message) {
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  options.always_print_primitive_fields = true;
  std::string text;
  if (!google::protobuf::util::MessageToJsonString(message, &text, options).ok()) return nullptr;
  return nlohmann::ordered_json::parse(text, nullptr, false);
}

}  // namespace

std::vector<std::string> top_lines(const TopState& state, const TopStyle& style) {
  return View(state, style).lines();
}

std::string top_json(const TopState& state) {
  nlohmann::ordered_json json;
  json["server"] = state.server;
  json["health"] = nullptr;
  if (state.health) json["health"] = to_json(*state.health);
  json["load"] = nullptr;
  if (state.load) json["load"] = to_json(*state.load);
  if (state.output_rate) json["output_tokens_per_s"] = *state.output_rate;
  if (state.prompt_rate) json["prompt_tokens_per_s"] = *state.prompt_rate;
  return json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

}  // namespace trireme
