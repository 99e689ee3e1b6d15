// SPDX-License-Identifier: Apache-2.0
// The nodes of a placement's picture: devices as tiles, islands around them, the network between.
#include <algorithm>
#include <map>

#include "launch/picture_parts.h"
#include "topology/link_graph.h"
#include "topology/topology.h"

namespace trireme {
namespace {

constexpr double kTileWidth = 122, kTileHeight = 84, kTileGap = 8;
constexpr double kGroupPad = 9, kGroupTitle = 20;
constexpr double kCardPad = 14, kCardHead = 40, kCardGap = 18;
constexpr double kBusRoom = 40;   // under a row of nodes
constexpr size_t kRow = 4;        // tiles beside each other
constexpr size_t kMostNodes = 6;  // beyond, nodes that are alike are drawn once
constexpr size_t kMostCards = 36;

// Devices of a node with one fast path, or those that have none.
struct Group {
  int island = -1;
  std::vector<const RankInfo*> ranks;
  double width = 0, height = 0;
};

struct Card {
  std::vector<std::string> hosts;
  std::vector<Group> groups;
  double width = 0, height = 0;
  size_t num_devices() const {
    size_t count = 0;
    for (const Group& group : groups) count += group.ranks.size();
    return count;
  }
};

class Cluster {
 public:
  Cluster(Svg& svg, const Topology& topology, const Roles& roles, std::set<LinkClass>& classes)
      : svg_(svg), topology_(topology), roles_(roles), classes_(classes), links_(topology) {
    list_cards();
    for (Card& card : cards_) measure(card);
  }

  double draw(double y) {
    svg_.text(kPictureMargin, y + 28, "Devices", {16, true});
    const bool several = hosts_ > 1;
    y += 44;
    const double left = kPictureMargin + (several ? 16 : 0);
    double first_bus = 0, last_bus = 0;  // the rows' lines
    for (size_t begin = 0; begin < std::min(cards_.size(), kMostCards);) {
      size_t end = begin;
      double x = left, height = 0;
      for (; end < std::min(cards_.size(), kMostCards); ++end) {
        if (end > begin && x + cards_[end].width > kPictureWidth - kPictureMargin) break;
        x += cards_[end].width + kCardGap;
        height = std::max(height, cards_[end].height);
      }
      x = left;
      for (size_t i = begin; i < end; ++i) {
        if (several) stub(x + cards_[i].width / 2, y + cards_[i].height, y + height + 14);
        draw_card(cards_[i], x, y);
        if (several && i + 1 == end) bus(x + cards_[i].width / 2, y + height + 14);
        x += cards_[i].width + kCardGap;
      }
      y += height + (several ? kBusRoom : kCardGap);
      if (several) last_bus = y - kBusRoom + 14;
      if (first_bus == 0) first_bus = last_bus;
      begin = end;
    }
    if (several) spine(first_bus, last_bus);
    if (cards_.size() > kMostCards) {
      svg_.text(left, y + 14,
                "and " + std::to_string(cards_.size() - kMostCards) + " more kinds of node",
                {13, false, kGrey});
      y += 24;
    }
    return y;
  }

 private:
  // What makes two nodes look the same: not which replica it is, nor whose host.
  std::string look(const Card& card) const {
    std::string text;
    for (const Group& group : card.groups) {
      text += group.island >= 0 ? "[" : "(";
      for (const RankInfo* rank : group.ranks) {
        text += device_text(rank->device()) + std::to_string(rank->device().memory_bytes() >> 28) +
                (rank->device().degraded() ? "!" : "");
        const auto role = roles_.find(rank->rank());
        if (role == roles_.end()) continue;
        text += layers_text(*role->second.of) + "s" + std::to_string(role->second.stage) + "t" +
                std::to_string(role->second.shard->tp_rank()) + "/" +
                std::to_string(role->second.of->shards_size()) + ",";
      }
    }
    return text;
  }

  void list_cards() {
    std::vector<Card> nodes;
    std::map<std::string, size_t> known;
    for (int worker = 0; worker < topology_.ranks_size(); ++worker) {
      const RankInfo& rank = topology_.ranks(worker);
      const auto [entry, fresh] = known.emplace(rank.host(), nodes.size());
      if (fresh) nodes.push_back({{rank.host()}, {}});
      std::vector<Group>& groups = nodes[entry->second].groups;
      const int island = links_.island_of(worker);
      auto group = std::find_if(groups.begin(), groups.end(),
                                [&](const Group& one) { return one.island == island; });
      if (group == groups.end()) group = groups.insert(groups.end(), {island, {}});
      group->ranks.push_back(&rank);
    }
    hosts_ = nodes.size();
    std::map<std::string, size_t> looks;
    for (const Card& node : nodes) {
      const std::string key = nodes.size() > kMostNodes ? look(node) : node.hosts.front();
      const auto [entry, fresh] = looks.emplace(key, cards_.size());
      if (fresh) {
        cards_.push_back(node);
      } else {
        cards_[entry->second].hosts.push_back(node.hosts.front());
      }
    }
    std::stable_sort(cards_.begin(), cards_.end(),
                     [](const Card& a, const Card& b) { return a.hosts.size() > b.hosts.size(); });
  }

  bool boxed(const Group& group) const { return group.island >= 0 && group.ranks.size() > 1; }

  void measure(Card& card) const {
    double x = 0, row = 0, y = 0, widest = 0;
    for (Group& group : card.groups) {
      const auto count = static_cast<double>(group.ranks.size());
      const double columns = std::min<double>(count, kRow);
      const double rows = static_cast<double>((group.ranks.size() + kRow - 1) / kRow);
      group.width =
          columns * (kTileWidth + kTileGap) - kTileGap + (boxed(group) ? 2 * kGroupPad : 0);
      group.height =
          rows * (kTileHeight + kTileGap) - kTileGap + (boxed(group) ? kGroupTitle + kGroupPad : 0);
      if (x > 0 && x + group.width > kRow * (kTileWidth + kTileGap) + 2 * kGroupPad) {
        y += row + kTileGap;
        x = row = 0;
      }
      x += group.width + kTileGap;
      row = std::max(row, group.height);
      widest = std::max(widest, x - kTileGap);
    }
    card.width = std::max(widest, 250.0) + 2 * kCardPad;
    card.height = y + row + kCardHead + kCardPad;
  }

  void draw_card(const Card& card, double x, double y) {
    svg_.rect({x, y, card.width, card.height}, "#ffffff", kBorder, 12);
    const bool many = card.hosts.size() > 1;
    const DeviceInfo& device = card.groups.front().ranks.front()->device();
    const std::string devices = std::to_string(card.num_devices()) + " × " + device_text(device) +
                                ", " + format_bytes(device.memory_bytes());
    const Font grey{12, false, kGrey, "end"};
    const double inner = card.width - 2 * kCardPad;
    const double devices_room = std::min(text_width(devices, grey), inner * 0.6);
    const Font bold{14, true};
    const double title_room = inner - devices_room - 12;
    const std::string count = std::to_string(card.hosts.size());
    std::string title = many ? count + " nodes like " + card.hosts.front() : card.hosts.front();
    if (many && text_width(title, bold) > title_room) title = count + " × " + card.hosts.front();
    svg_.text(x + kCardPad, y + 25, title, bold, title_room);
    svg_.text(x + card.width - kCardPad, y + 25, devices, grey, devices_room + 1);
    double at_x = x + kCardPad, at_y = y + kCardHead, row = 0;
    for (const Group& group : card.groups) {
      if (at_x > x + kCardPad && at_x + group.width > x + card.width - kCardPad + 1) {
        at_y += row + kTileGap;
        at_x = x + kCardPad;
        row = 0;
      }
      draw_group(group, at_x, at_y, many);
      at_x += group.width + kTileGap;
      row = std::max(row, group.height);
    }
  }

  void draw_group(const Group& group, double x, double y, bool many) {
    double first_x = x, first_y = y;
    if (boxed(group)) {
      const LinkSpeed& link = topology_.islands(group.island).link();
      classes_.insert(link.link_class());
      const std::string colour = link_colour(link.link_class());
      svg_.rect({x, y, group.width, group.height}, tint(colour, 0.07), colour, 9, 1.5);
      svg_.text(x + kGroupPad + 2, y + 14, island_text(group.island), {10.5, true, colour},
                group.width - 2 * kGroupPad);
      first_x += kGroupPad;
      first_y += kGroupTitle;
    }
    for (size_t i = 0; i < group.ranks.size(); ++i) {
      draw_tile(*group.ranks[i], many,
                first_x + static_cast<double>(i % kRow) * (kTileWidth + kTileGap),
                first_y + static_cast<double>(i / kRow) * (kTileHeight + kTileGap));
    }
  }

  // The all-reduce table's words, which say more than the link between two.
  std::string island_text(int island) const {
    const Island& one = topology_.islands(island);
    for (const AllReduceTable& table : topology_.all_reduce_tables()) {
      if (table.name() != one.all_reduce_table() || table.link().empty()) continue;
      return table.link();
    }
    return link_text(one.link());
  }

  void draw_tile(const RankInfo& rank, bool many, double x, double y) {
    const auto found = roles_.find(rank.rank());
    const DeviceInfo& device = rank.device();
    const std::string title = "rank " + std::to_string(rank.rank()) + " · " + device_text(device);
    svg_.begin_tip(title + (device.degraded() ? ": " + device.degraded_reason() : ""));
    const bool spare = found == roles_.end();
    const std::string colour = spare ? "#98a2b3" : stage_colour(found->second.stage);
    svg_.rect({x, y, kTileWidth, kTileHeight}, spare ? "#ffffff" : tint(colour, 0.13),
              device.degraded() ? kWarning
              : spare           ? "#98a2b3"
                                : tint(colour, 0.5),
              7, device.degraded() ? 2 : 1, spare);
    if (!spare) svg_.rect({x, y + 8, 4, kTileHeight - 16}, colour, "none", 2);
    const double room = kTileWidth - 20;
    svg_.text(x + 12, y + 17, title, {10.5, false, device.degraded() ? kWarning : kGrey}, room);
    if (spare) {
      svg_.text(x + 12, y + 40, "spare", {14, false, kGrey}, room);
    } else {
      draw_role(found->second, many, x + 12, y, room);
      draw_memory(*found->second.shard, device.memory_bytes(), {x + 12, y + 62, room, 8});
    }
    svg_.end_tip();
  }

  // Of many nodes that are alike no replica is named.
  void draw_role(const Role& role, bool many, double x, double y, double room) {
    std::string layers = layers_text(*role.of);
    if (role.of->has_embedding()) layers = "E " + layers;
    if (role.of->has_head()) layers += " H";
    svg_.text(x, y + 37, layers, {15, true}, room);
    std::string place =
        many ? "stage " + std::to_string(role.stage) : "replica " + std::to_string(role.replica);
    const int degree = role.of->shards_size();
    if (degree > 1) {
      place += " · TP " + std::to_string(role.shard->tp_rank() + 1) + "/" + std::to_string(degree);
    }
    svg_.text(x, y + 53, place, {11}, room);
  }

  void draw_memory(const ShardSpec& shard, uint64_t memory, const Box& box) {
    svg_.rect(box, "#ffffff", "#98a2b3", 2, 0.8);
    double x = box.x;
    const double there = std::max<double>(static_cast<double>(memory), 1);
    for (const auto& [bytes, colour] :
         {std::pair{shard.weight_bytes(), kWeightsColour},
          {shard.kv_bytes(), kKvColour},
          {shard.activation_bytes() + shard.communication_bytes(), kBuffersColour}}) {
      const double width =
          std::min(static_cast<double>(bytes) / there * box.width, box.x + box.width - x);
      if (width > 0.05) svg_.rect({x, box.y, width, box.height}, colour);
      x += std::max(width, 0.0);
    }
    const uint64_t used = shard.weight_bytes() + shard.kv_bytes() + shard.activation_bytes() +
                          shard.communication_bytes();
    svg_.text(box.x, box.y + 17, format_bytes(used) + " of " + format_bytes(memory),
              {9, false, kGrey}, box.width);
  }

  // ---- the network: a line under each row of nodes, joined at the left ----

  void stub(double x, double from, double to) {
    svg_.line(x, from, x, to, link_colour(LINK_CLASS_NET), 2);
  }
  void bus(double to, double y) {
    svg_.line(kPictureMargin, y, to, y, link_colour(LINK_CLASS_NET), 3);
  }
  void spine(double top, double bottom) {
    classes_.insert(LINK_CLASS_NET);
    svg_.line(kPictureMargin, top, kPictureMargin, bottom, link_colour(LINK_CLASS_NET), 3);
    double least = 0, most = 0, latency = 0;
    for (const LinkSpeed* speed : links_.all()) {
      if (speed->link_class() != LINK_CLASS_NET) continue;
      const double bandwidth = speed->bandwidth_bytes_per_s() / 1e9;
      least = least == 0 ? bandwidth : std::min(least, bandwidth);
      most = std::max(most, bandwidth);
      latency = std::max(latency, speed->latency_s() * 1e6);
    }
    std::string text = "network";
    if (most > 0) {
      text += ", " + (least < most ? short_number(least) + "–" : std::string()) +
              short_number(most) + " GB/s, " + short_number(latency) + " µs";
    }
    svg_.text(kPictureMargin, bottom + 18, text, {12, true, link_colour(LINK_CLASS_NET)});
  }

  Svg& svg_;
  const Topology& topology_;
  const Roles& roles_;
  std::set<LinkClass>& classes_;
  const LinkGraph links_;
  std::vector<Card> cards_;
  size_t hosts_ = 0;
};

}  // namespace

double draw_cluster(Svg& svg, double y, const Topology& topology, const Roles& roles,
                    std::set<LinkClass>& classes) {
  return Cluster(svg, topology, roles, classes).draw(y);
}

}  // namespace trireme
