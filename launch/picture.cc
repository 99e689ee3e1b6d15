// SPDX-License-Identifier: Apache-2.0
#include "launch/picture.h"

#include <algorithm>
#include <array>

#include "launch/picture_parts.h"
#include "topology/shard.h"

namespace trireme {
namespace {

constexpr double kInner = kPictureWidth - 2 * kPictureMargin;

std::string plural(int count, const std::string& word) {
  return std::to_string(count) + " " + word + (count == 1 ? "" : "s");
}

std::string with_commas(double value) {
  std::string digits = std::to_string(static_cast<int64_t>(value + 0.5));
  for (int at = static_cast<int>(digits.size()) - 3; at > 0; at -= 3) {
    digits.insert(static_cast<size_t>(at), ",");
  }
  return digits;
}

struct Figure {
  std::string value, label;
};

std::vector<Figure> figures(const Placement& placement, int num_used) {
  std::vector<Figure> list;
  const PlacementPrediction& predicted = placement.predicted();
  if (predicted.tokens_per_s() > 0) {
    const double tokens = predicted.tokens_per_s();
    list.push_back({tokens >= 100 ? with_commas(tokens) : short_number(tokens), "tokens/s"});
  }
  if (predicted.requests_per_s() > 0) {
    list.push_back({short_number(predicted.requests_per_s()), "requests/s"});
  }
  if (predicted.tpot_ms() > 0) {
    list.push_back({short_number(predicted.tpot_ms()) + " ms", "per output token"});
  }
  if (predicted.ttft_ms() > 0) {
    list.push_back({short_number(predicted.ttft_ms()) + " ms", "to the first token"});
  }
  if (predicted.bound() > 0) {
    list.push_back({short_number(100 * predicted.gap()) + " %", "from the proven bound"});
  }
  list.push_back({std::to_string(placement.replicas_size()),
                  placement.replicas_size() == 1 ? "replica" : "replicas"});
  list.push_back({std::to_string(num_used), "devices used"});
  return list;
}

double draw_header(Svg& svg, const Topology& topology, const ModelSpec& model,
                   const Placement& placement, int num_used) {
  std::set<std::string> hosts;
  for (const RankInfo& rank : topology.ranks()) hosts.insert(rank.host());
  double y = 54;
  svg.text(kPictureMargin, y,
           model.name() + " on " + plural(static_cast<int>(hosts.size()), "node") + ", " +
               plural(topology.ranks_size(), "device"),
           {26, true}, kInner);
  y += 26;
  svg.text(kPictureMargin, y,
           model.family() + " · " + plural(model.num_layers(), "layer") + " · " +
               dtype_summary(placement) + " · context " + std::to_string(placement.context()) +
               " · " + plural(placement.max_sequences(), "sequence") + " and " +
               std::to_string(int64_t{placement.num_blocks()} * placement.block_size()) +
               " KV positions per replica",
           {14, false, kGrey}, kInner);
  y += 20;
  double x = kPictureMargin;
  for (const Figure& figure : figures(placement, num_used)) {
    const double width =
        std::max(text_width(figure.value, {22, true}), text_width(figure.label, {12})) + 36;
    svg.rect({x, y, width, 64}, "#ffffff", kBorder, 10);
    svg.text(x + 18, y + 30, figure.value, {22, true});
    svg.text(x + 18, y + 50, figure.label, {12, false, kGrey});
    x += width + 12;
  }
  return y + 64;
}

// A row of samples with their names, wrapped.
class Legend {
 public:
  Legend(Svg& svg, double y) : svg_(svg), y_(y) {}

  void entry(const std::string& name, const std::string& fill, const std::string& border,
             double width, bool dashed = false) {
    const double room = width + 8 + text_width(name, {12}) + 22;
    if (x_ + room > kPictureWidth - kPictureMargin) {
      x_ = kPictureMargin;
      y_ += 24;
    }
    if (width > 0) svg_.rect({x_, y_ - 11, width, 13}, fill, border, 3, 1.5, dashed);
    svg_.text(x_ + width + 8, y_, name, {12});
    x_ += room;
  }
  void note(const std::string& text) { entry(text, "none", "none", 0); }
  double end() const { return y_ + 12; }

 private:
  Svg& svg_;
  double x_ = kPictureMargin;
  double y_;
};

double draw_legend(Svg& svg, double y, int num_stages, bool spare,
                   const std::set<LinkClass>& classes) {
  svg.text(kPictureMargin, y + 28, "Legend", {16, true});
  Legend legend(svg, y + 56);
  for (int stage = 0; stage < std::min(num_stages, 10); ++stage) {
    const bool again = stage + 10 < num_stages;
    legend.entry(
        "stage " + std::to_string(stage) + (again ? ", " + std::to_string(stage + 10) + " …" : ""),
        stage_colour(stage), "none", 18);
  }
  if (spare) legend.entry("spare", "#ffffff", "#98a2b3", 18, true);
  legend.note("E embedding, H head");
  legend.entry("weights", kWeightsColour, "none", 26);
  legend.entry("KV cache", kKvColour, "none", 26);
  legend.entry("activations and messages", kBuffersColour, "none", 26);
  legend.entry("free", "#ffffff", "#98a2b3", 26);
  for (const LinkClass link_class : classes) {
    legend.entry(link_name(link_class), tint(link_colour(link_class), 0.15),
                 link_colour(link_class), 26);
  }
  return legend.end();
}

// Lines of at most `room` pixels, broken at spaces.
std::vector<std::string> wrap(const std::string& text, const Font& font, double room) {
  std::vector<std::string> lines(1);
  for (size_t begin = 0; begin < text.size();) {
    size_t end = text.find(' ', begin);
    if (end == std::string::npos) end = text.size();
    const std::string word = text.substr(begin, end - begin);
    const std::string longer = lines.back().empty() ? word : lines.back() + " " + word;
    if (!lines.back().empty() && text_width(longer, font) > room) {
      lines.push_back(word);
    } else {
      lines.back() = longer;
    }
    begin = end + 1;
  }
  return lines;
}

double draw_reasons(Svg& svg, double y, const Placement& placement) {
  const auto& reasons = placement.predicted().reasons();
  if (reasons.empty()) return y;
  constexpr int kMost = 6;
  const Font font{13};
  svg.text(kPictureMargin, y + 28, "Why", {16, true});
  y += 32;
  for (int i = 0; i < std::min(reasons.size(), kMost); ++i) {
    bool first = true;
    for (const std::string& line : wrap(reasons[i], font, kInner - 24)) {
      y += 20;
      if (first) svg.rect({kPictureMargin, y - 8, 5, 5}, kGrey, "none", 2.5);
      svg.text(kPictureMargin + 16, y, line, font);
      first = false;
    }
  }
  return y + 8;
}

}  // namespace

std::string stage_colour(int stage) {
  constexpr std::array kColours = {"#2f6fde", "#d9661f", "#1b8f63", "#a63fc0", "#cf3049",
                                   "#0b8a9c", "#87691c", "#5a50cf", "#bd3f7c", "#5a8427"};
  return kColours[static_cast<size_t>(stage) % kColours.size()];
}

std::string link_colour(LinkClass link_class) {
  switch (link_class) {
    case LINK_CLASS_NVL: return "#2f9e44";
    case LINK_CLASS_C2C: return "#12a594";
    case LINK_CLASS_PIX: return "#3b7dd8";
    case LINK_CLASS_PXB: return "#5b93dd";
    case LINK_CLASS_PHB: return "#c98a12";
    case LINK_CLASS_NODE: return "#8a7f3d";
    case LINK_CLASS_SYS: return "#cc6a2b";
    default: return "#7a5ea8";
  }
}

std::string link_name(LinkClass link_class) {
  switch (link_class) {
    case LINK_CLASS_NVL: return "NVLink";
    case LINK_CLASS_C2C: return "chip to chip";
    case LINK_CLASS_PIX: return "PCIe switch";
    case LINK_CLASS_PXB: return "PCIe switches";
    case LINK_CLASS_PHB: return "host bridge";
    case LINK_CLASS_NODE: return "NUMA node";
    case LINK_CLASS_SYS: return "between sockets";
    default: return "network";
  }
}

std::string link_text(const LinkSpeed& speed) {
  std::string text = link_name(speed.link_class());
  if (speed.bandwidth_bytes_per_s() > 0) {
    text += ", " + short_number(speed.bandwidth_bytes_per_s() / 1e9) + " GB/s";
  }
  if (speed.latency_s() > 0) text += ", " + short_number(speed.latency_s() * 1e6) + " µs";
  if (speed.degraded()) text += ", degraded";
  return text;
}

std::string layers_text(const StageSpec& stage) {
  if (length(stage.layers()) == 0) return "no layer";
  return "L" + std::to_string(stage.layers().begin()) + "–" +
         std::to_string(stage.layers().end() - 1);
}

std::string device_text(const DeviceInfo& device) {
  if (device.kind() == DEVICE_KIND_CPU) {
    return std::to_string(device.threads()) + "-thread CPU";
  }
  if (!device.type().empty()) return device.type();
  return device.name().empty() ? "GPU" : device.name();
}

std::string draw_placement(const Topology& topology, const ModelSpec& model,
                           const Placement& placement) {
  Roles roles;
  int num_stages = 0;
  for (int replica = 0; replica < placement.replicas_size(); ++replica) {
    const auto& stages = placement.replicas(replica).stages();
    num_stages = std::max(num_stages, stages.size());
    for (int stage = 0; stage < stages.size(); ++stage) {
      for (const ShardSpec& shard : stages[stage].shards()) {
        roles[shard.rank()] = {replica, stage, &stages[stage], &shard};
      }
    }
  }
  Svg svg;
  std::set<LinkClass> classes;
  const auto num_used = static_cast<int>(roles.size());
  double y = draw_header(svg, topology, model, placement, num_used);
  y = draw_pipelines(svg, y + 12, topology, placement, classes);
  y = draw_cluster(svg, y + 12, topology, roles, classes);
  y = draw_reasons(svg, y + 4, placement);
  y = draw_legend(svg, y + 4, num_stages, num_used < topology.ranks_size(), classes);
  return svg.finish(kPictureWidth, y + 20);
}

}  // namespace trireme
