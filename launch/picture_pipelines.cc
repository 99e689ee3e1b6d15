// SPDX-License-Identifier: Apache-2.0
// The pipelines of a placement's picture: a strip for each kind of replica, stages as long as they
// take.
#include <algorithm>
#include <map>
#include <set>

#include "launch/picture_parts.h"
#include "topology/link_graph.h"
#include "topology/shard.h"

namespace trireme {
namespace {

constexpr double kLabelWidth = 190;
constexpr double kStripWidth = kPictureWidth - 2 * kPictureMargin - kLabelWidth;
constexpr double kHeight = 46;
constexpr int kMostRows = 8;
constexpr int kManyStages = 10;  // beyond, hops have no text

using Workers = std::map<int32_t, int>;  // by rank

// Replicas of one shape: the same layers on the same kinds of devices.
struct Kind {
  const ReplicaSpec* first = nullptr;
  std::vector<int> replicas;
};

const DeviceInfo& device_of(const Topology& topology, const Workers& workers,
                            const StageSpec& stage) {
  return topology.ranks(workers.at(stage.shards(0).rank())).device();
}

std::vector<Kind> list_kinds(const Topology& topology, const Workers& workers,
                             const Placement& placement) {
  std::vector<Kind> kinds;
  std::map<std::string, size_t> known;
  for (int index = 0; index < placement.replicas_size(); ++index) {
    std::string shape;
    for (const StageSpec& stage : placement.replicas(index).stages()) {
      shape += layers_text(stage) + "/" + std::to_string(stage.shards_size()) + "/" +
               device_text(device_of(topology, workers, stage)) + ";";
    }
    const auto [entry, fresh] = known.emplace(shape, kinds.size());
    if (fresh) kinds.push_back({&placement.replicas(index), {}});
    kinds[entry->second].replicas.push_back(index);
  }
  return kinds;
}

// "replicas 0–3, 7"
std::string replicas_text(const std::vector<int>& replicas) {
  std::string text = replicas.size() == 1 ? "replica " : "replicas ";
  for (size_t begin = 0; begin < replicas.size();) {
    size_t end = begin;
    while (end + 1 < replicas.size() && replicas[end + 1] == replicas[end] + 1) ++end;
    text += (begin == 0 ? "" : ", ") + std::to_string(replicas[begin]) +
            (end > begin ? "–" + std::to_string(replicas[end]) : "");
    begin = end + 1;
  }
  return text;
}

std::string degrees_text(const ReplicaSpec& replica) {
  std::set<int> degrees;
  for (const StageSpec& stage : replica.stages()) degrees.insert(stage.shards_size());
  std::string text = "TP " + std::to_string(*degrees.begin());
  if (degrees.size() > 1) text += "–" + std::to_string(*degrees.rbegin());
  return text + " × PP " + std::to_string(replica.stages_size());
}

// What a stage's length stands for: its time, or the layers where no time is predicted.
double weight(const StageSpec& stage) {
  if (stage.predicted().decode_ms() > 0) return stage.predicted().decode_ms();
  return std::max(1, length(stage.layers())) + (stage.has_head() ? 0.5 : 0);
}

void draw_stage(Svg& svg, const Box& box, int index, const StageSpec& stage,
                const DeviceInfo& device) {
  const int degree = stage.shards_size();
  std::string first = layers_text(stage);
  std::string second = std::to_string(degree) + " × " + device_text(device);
  const double ms = stage.predicted().decode_ms();
  if (ms > 0) second = short_number(ms) + " ms · " + second;
  svg.begin_tip("stage " + std::to_string(index) + ": " + first + ", " + second);
  svg.rect(box, stage_colour(index), "none", 7);
  const Font big{13, true, "#ffffff", "middle"};
  if (text_width("stage 00 · " + first, big) < box.width - 10) {
    first = "stage " + std::to_string(index) + " · " + first;
  }
  const double middle = box.x + box.width / 2;
  const Font small{11, false, "#ffffff", "middle"};
  if (text_width(second, small) > box.width - 8 && ms > 0) second = short_number(ms) + " ms";
  const Font least{9.5, false, "#ffffff", "middle"};
  if (text_width(second, small) > box.width - 4 && ms > 0) second = short_number(ms);
  if (text_width(first, least) > box.width - 4) first = first.substr(1);
  svg.text(middle, box.y + 20, first,
           text_width(first, big) < box.width - 6     ? big
           : text_width(first, small) < box.width - 4 ? small
                                                      : least);
  svg.text(middle, box.y + 36, second, text_width(second, small) < box.width - 4 ? small : least,
           box.width - 2);
  svg.end_tip();
}

void draw_hop(Svg& svg, double x, double y, double room, const StageSpec& from,
              const LinkSpeed& link, bool with_text) {
  const std::string colour = link_colour(link.link_class());
  svg.begin_tip(link_text(link));
  svg.line(x + 2, y, x + room - 7, y, colour, 2);
  svg.arrow_head(x + room - 1, y, colour);
  if (with_text) {
    const Font font{10, false, colour, "middle"};
    svg.text(x + room / 2, y - 6, link_name(link.link_class()), font, room + 4);
    const double ms = from.predicted().hop_ms();
    if (ms > 0) svg.text(x + room / 2, y + 14, short_number(ms) + " ms", font, room + 4);
  }
  svg.end_tip();
}

void draw_strip(Svg& svg, double y, const Topology& topology, const Workers& workers,
                const LinkGraph& links, const ReplicaSpec& replica, std::set<LinkClass>& classes) {
  const int stages = replica.stages_size();
  const bool with_text = stages <= kManyStages;
  const double gap = with_text ? 62 : std::min(14.0, kStripWidth / 3 / stages);
  const double room = kStripWidth - gap * (stages - 1);
  const double least = std::min(58.0, room / stages);
  double total = 0;
  for (const StageSpec& stage : replica.stages()) total += weight(stage);
  double x = kPictureMargin + kLabelWidth;
  for (int index = 0; index < stages; ++index) {
    const StageSpec& stage = replica.stages(index);
    const double width = least + (room - least * stages) * weight(stage) / total;
    draw_stage(svg, {x, y, width, kHeight}, index, stage, device_of(topology, workers, stage));
    x += width;
    if (index + 1 == stages) break;
    const LinkSpeed& link = links.between(workers.at(stage.shards(0).rank()),
                                          workers.at(replica.stages(index + 1).shards(0).rank()));
    classes.insert(link.link_class());
    draw_hop(svg, x, y + kHeight / 2, gap, stage, link, with_text);
    x += gap;
  }
}

}  // namespace

double draw_pipelines(Svg& svg, double y, const Topology& topology, const Placement& placement,
                      std::set<LinkClass>& classes) {
  Workers workers;
  for (int worker = 0; worker < topology.ranks_size(); ++worker) {
    workers[topology.ranks(worker).rank()] = worker;
  }
  const LinkGraph links(topology);
  const std::vector<Kind> kinds = list_kinds(topology, workers, placement);
  svg.text(kPictureMargin, y + 28, "Pipelines", {16, true});
  svg.text(kPictureMargin + kLabelWidth, y + 28,
           kinds.front().first->stages(0).predicted().decode_ms() > 0
               ? "stages as long as a decode step takes in them"
               : "stages as long as they have layers",
           {12, false, kGrey});
  y += 44;
  int rows = 0;
  for (const Kind& kind : kinds) {
    if (rows++ == kMostRows) {
      svg.text(kPictureMargin, y + 14,
               "and " + std::to_string(kinds.size() - kMostRows) + " more kinds of replica",
               {12, false, kGrey});
      return y + 24;
    }
    svg.text(kPictureMargin, y + 19, replicas_text(kind.replicas), {13, true}, kLabelWidth - 14);
    const double tokens = kind.first->predicted().tokens_per_s();
    std::string each = degrees_text(*kind.first);
    if (tokens > 0) each += " · " + short_number(tokens) + " tok/s";
    svg.text(kPictureMargin, y + 36, each, {12, false, kGrey}, kLabelWidth - 10);
    draw_strip(svg, y, topology, workers, links, *kind.first, classes);
    y += kHeight + 14;
  }
  return y;
}

}  // namespace trireme
