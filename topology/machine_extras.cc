// SPDX-License-Identifier: Apache-2.0
#include "topology/machine_extras.h"

#include <cstdio>
#include <limits>
#include <type_traits>

#include "topology/machine_text.h"

namespace trireme {
namespace {

constexpr size_t kMostNotes = 64;
constexpr size_t kMostBytes = 512;  // of a text

// Walks over the fields of a description; one walker writes them, the other reads them.
class Writer {
 public:
  void field(const char* name, const std::string& value) {
    if (!value.empty()) add(name, value);
  }
  void field(const char* name, bool value) {
    if (value) add(name, "1");
  }
  template <class Number>
  requires std::is_arithmetic_v<Number>
  void field(const char* name, Number value) {
    if (value == Number{}) return;
    char text[40];
    if constexpr (std::is_floating_point_v<Number>) {
      std::snprintf(text, sizeof text, "%.17g", double(value));
    } else {
      std::snprintf(text, sizeof text, "%lld", static_cast<long long>(value));
    }
    add(name, text);
  }
  template <class Value>
  void field(const char* name, const std::optional<Value>& value) {
    // Absent and zero are two things.
    if (value) add(name, *value == Value{} ? "0" : number(*value));
  }
  const std::string& text() const { return text_; }

 private:
  template <class Value>
  static std::string number(Value value) {
    char text[40];
    std::snprintf(text, sizeof text, "%.17g", static_cast<double>(value));
    return text;
  }
  void add(const char* name, const std::string& value) {
    text_ += " " + std::string(name) + "=\"" + xml_escape(value) + "\"";
  }

  std::string text_;
};

class Reader {
 public:
  explicit Reader(const XmlElement& element) : element_(element) {}

  void field(const char* name, std::string& value) {
    const std::string* const text = element_.find(name);
    if (text == nullptr) return;
    if (text->size() > kMostBytes) return object(name, "a text of more than 512 bytes");
    value = *text;
  }
  void field(const char* name, bool& value) {
    int64_t number = 0;
    if (read(name, 0, 1, number)) value = number != 0;
  }
  template <class Number>
  requires std::is_arithmetic_v<Number>
  void field(const char* name, Number& value) {
    Number number{};
    constexpr double kMost = std::is_floating_point_v<Number> ? 1e15
                             : sizeof(Number) >= 8            ? 1e18
                                                              : 1e6;
    if (read(name, 0, kMost, number)) value = number;
  }
  template <class Value>
  void field(const char* name, std::optional<Value>& value) {
    Value number{};
    if (read(name, 0, 1e15, number)) value = number;
  }
  const std::string& objection() const { return objection_; }

 private:
  void object(const char* name, const std::string& found) {
    if (objection_.empty()) objection_ = std::string(name) + ", " + found;
  }

  template <class Number>
  bool read(const char* name, double least, double most, Number& value) {
    const std::string* const text = element_.find(name);
    if (text == nullptr) return false;
    const auto integer = read_integer(*text);
    const auto number = integer ? static_cast<double>(*integer) : read_number(*text);
    if (!number || *number < least || *number > most) {
      object(name, "\"" + text->substr(0, 40) + "\", which is no number that it can be");
      return false;
    }
    value = integer ? static_cast<Number>(*integer) : static_cast<Number>(*number);
    return true;
  }

  const XmlElement& element_;
  std::string objection_;
};

template <class Walker, class Item>
requires std::is_same_v<std::remove_const_t<Item>, Machine>
void walk(Walker& walker, Item& machine) {
  walker.field("host", machine.host);
  walker.field("group", machine.group);
  walker.field("nvlink_domain", machine.nvlink_domain);
}

template <class Walker, class Item>
requires std::is_same_v<std::remove_const_t<Item>, PciDevice>
void walk(Walker& walker, Item& device) {
  walker.field("root", device.root);
  walker.field("link_bytes_per_s", device.link.bytes_per_s);
  walker.field("now_speed", device.now.gigatransfers);
  walker.field("now_width", device.now.width);
}

template <class Walker, class Item>
requires std::is_same_v<std::remove_const_t<Item>, NumaNode>
void walk(Walker& walker, Item& node) { walker.field("memory_bytes", node.memory_bytes); }

template <class Walker, class Item>
requires std::is_same_v<std::remove_const_t<Item>, Gpu>
void walk(Walker& walker, Item& gpu) {
  walker.field("name", gpu.name);
  walker.field("uuid", gpu.uuid);
  walker.field("memory_bytes", gpu.memory_bytes);
  walker.field("free_bytes", gpu.free_bytes);
  walker.field("links_known", gpu.links_known);
  walker.field("links_down", gpu.links_down);
  walker.field("links_expected", gpu.links_expected);
  walker.field("fabric_id", gpu.fabric_id);
  walker.field("degraded", gpu.degraded);
  walker.field("temperature_c", gpu.health.temperature_c);
  walker.field("slowdown_c", gpu.health.slowdown_c);
  walker.field("power_w", gpu.health.power_w);
  walker.field("power_limit_w", gpu.health.power_limit_w);
  walker.field("sm_clock_mhz", gpu.health.sm_clock_mhz);
  walker.field("max_sm_clock_mhz", gpu.health.max_sm_clock_mhz);
  walker.field("throttle_reasons", gpu.health.throttle_reasons);
  walker.field("ecc_uncorrected", gpu.health.ecc_uncorrected);
  walker.field("ecc_corrected", gpu.health.ecc_corrected);
  walker.field("row_remap_pending", gpu.health.row_remap_pending);
  walker.field("row_remap_failed", gpu.health.row_remap_failed);
  walker.field("fabric_state", gpu.health.fabric_state);
}

template <class Walker, class Item>
requires std::is_same_v<std::remove_const_t<Item>, Nic>
void walk(Walker& walker, Item& nic) {
  walker.field("phys_state", nic.phys_state);
  walker.field("link_layer", nic.link_layer);
  walker.field("fabric_switch", nic.fabric_switch);
  walker.field("virtual", nic.is_virtual);
}

template <class Item>
std::string written(const Item& item) {
  Writer writer;
  walk(writer, item);
  return writer.text();
}

template <class Item>
bool read(const XmlElement& element, Item& item, std::string& objection) {
  Reader reader(element);
  walk(reader, item);
  objection = reader.objection();
  return objection.empty();
}

std::string children(const char* name, const std::vector<std::string>& texts) {
  std::string all;
  for (size_t i = 0; i < texts.size() && i < kMostNotes; ++i) {
    std::string text = texts[i].substr(0, kMostBytes);
    all += "<" + std::string(name) + " text=\"" + xml_escape(text) + "\"/>";
  }
  return all;
}

bool read_children(const XmlElement& element, const char* name, std::vector<std::string>& texts,
                   std::string& objection) {
  for (const XmlElement& child : element.children) {
    if (child.name != name) continue;
    Reader reader(child);
    std::string text;
    reader.field("text", text);
    if (texts.size() >= kMostNotes || !reader.objection().empty()) {
      objection = "its notes, more than 64 or too long";
      return false;
    }
    texts.push_back(text);
  }
  return true;
}

}  // namespace

std::string extra_attributes(const Machine& machine) { return written(machine); }
std::string extra_attributes(const PciDevice& device) { return written(device); }
std::string extra_attributes(const NumaNode& node) { return written(node); }
std::string extra_attributes(const Gpu& gpu) { return written(gpu); }

std::string extra_attributes(const Nic& nic) {
  const char* const state = nic.state == Nic::State::kActive ? " state=\"active\""
                            : nic.state == Nic::State::kDown ? " state=\"down\""
                                                             : "";
  return state + written(nic);
}

std::string extra_children(const Machine& machine) {
  return children("missing", machine.missing) + children("note", machine.notes);
}

std::string extra_children(const Gpu& gpu) {
  std::vector<std::string> xids;
  for (const int32_t xid : gpu.health.xids) xids.push_back(std::to_string(xid));
  return children("note", gpu.notes) + children("fabric_fault", gpu.health.fabric_faults) +
         children("xid", xids);
}

std::string extra_children(const Nic& nic) { return children("note", nic.notes); }

bool read_extras(const XmlElement& element, Machine& machine, std::string& objection) {
  return read(element, machine, objection) &&
         read_children(element, "missing", machine.missing, objection) &&
         read_children(element, "note", machine.notes, objection);
}

bool read_extras(const XmlElement& element, PciDevice& device, std::string& objection) {
  return read(element, device, objection);
}

bool read_extras(const XmlElement& element, NumaNode& node, std::string& objection) {
  return read(element, node, objection);
}

bool read_extras(const XmlElement& element, Gpu& gpu, std::string& objection) {
  std::vector<std::string> xids;
  if (!read(element, gpu, objection) || !read_children(element, "note", gpu.notes, objection) ||
      !read_children(element, "fabric_fault", gpu.health.fabric_faults, objection) ||
      !read_children(element, "xid", xids, objection)) {
    return false;
  }
  for (const std::string& xid : xids) {
    const auto number = read_integer(xid);
    if (number && *number > 0 && *number < 10000) {
      gpu.health.xids.push_back(static_cast<int32_t>(*number));
    }
  }
  return true;
}

bool read_extras(const XmlElement& element, Nic& nic, std::string& objection) {
  const std::string* const state = element.find("state");
  if (state != nullptr && *state == "active") nic.state = Nic::State::kActive;
  if (state != nullptr && *state == "down") nic.state = Nic::State::kDown;
  return read(element, nic, objection) && read_children(element, "note", nic.notes, objection);
}

bool is_extra(const std::string& name) {
  return name == "note" || name == "missing" || name == "fabric_fault" || name == "xid";
}

}  // namespace trireme
