// SPDX-License-Identifier: Apache-2.0
#include "launch/svg.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include "topology/xml.h"

namespace trireme {
namespace {

constexpr const char* kFamily =
    "Inter, 'Segoe UI', 'Helvetica Neue', 'DejaVu Sans', 'Liberation Sans', Arial, sans-serif";

std::string number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f", value);
  return text;
}

// Control characters are no XML, escaped or not.
std::string escape(std::string text) {
  std::replace_if(
      text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x20; }, ' ');
  return xml_escape(text);
}

bool continues(char c) { return (static_cast<unsigned char>(c) & 0xC0) == 0x80; }

}  // namespace

double text_width(const std::string& text, const Font& font) {
  double units = 0;
  for (const char c : text) {
    if (continues(c)) continue;
    const bool narrow = std::string(" .,:;|!'ilIjtfr()·").find(c) != std::string::npos;
    const bool wide = (c >= 'A' && c <= 'Z' && c != 'I' && c != 'J') || c == 'm' || c == 'w';
    units += narrow ? 0.36 : wide ? 0.74 : 0.61;
  }
  return units * font.size * (font.bold ? 1.08 : 1);
}

std::string tint(const std::string& colour, double strength) {
  const long value = std::strtol(colour.c_str() + 1, nullptr, 16);
  const auto mix = [&](int shift) {
    return static_cast<int>(std::lround(255 - strength * double(255 - ((value >> shift) & 255))));
  };
  char text[8];
  std::snprintf(text, sizeof text, "#%02x%02x%02x", mix(16) & 255, mix(8) & 255, mix(0) & 255);
  return text;
}

std::string short_number(double value) {
  char text[32];
  const double size = std::fabs(value);
  std::snprintf(text, sizeof text,
                size >= 100 || size == 0 ? "%.0f"
                : size >= 10             ? "%.1f"
                                         : "%.2f",
                value);
  return text;
}

void Svg::rect(const Box& box, const std::string& fill, const std::string& border, double radius,
               double border_width, bool dashed) {
  body_ += "<rect x=\"" + number(box.x) + "\" y=\"" + number(box.y) + "\" width=\"" +
           number(box.width) + "\" height=\"" + number(box.height) + "\" rx=\"" + number(radius) +
           "\" fill=\"" + fill + "\" stroke=\"" + border + "\" stroke-width=\"" +
           number(border_width) + "\"" + (dashed ? " stroke-dasharray=\"4 3\"" : "") + "/>\n";
}

void Svg::line(double x1, double y1, double x2, double y2, const std::string& colour,
               double width) {
  body_ += "<line x1=\"" + number(x1) + "\" y1=\"" + number(y1) + "\" x2=\"" + number(x2) +
           "\" y2=\"" + number(y2) + "\" stroke=\"" + colour + "\" stroke-width=\"" +
           number(width) + "\" stroke-linecap=\"round\"/>\n";
}

void Svg::arrow_head(double x, double y, const std::string& colour) {
  body_ += "<path d=\"M" + number(x - 7) + " " + number(y - 4) + " L" + number(x) + " " +
           number(y) + " L" + number(x - 7) + " " + number(y + 4) + " Z\" fill=\"" + colour +
           "\"/>\n";
}

void Svg::text(double x, double y, const std::string& text, const Font& font, double room) {
  std::string shown = text;
  bool cut = false;
  while (!shown.empty() && text_width(shown + (cut ? "…" : ""), font) > room) {
    while (shown.size() > 1 && continues(shown.back())) shown.pop_back();
    shown.pop_back();
    cut = true;
  }
  if (cut && shown.empty()) return;
  body_ += "<text x=\"" + number(x) + "\" y=\"" + number(y) + "\" font-size=\"" +
           number(font.size) + "\" fill=\"" + font.colour + "\" text-anchor=\"" + font.anchor +
           "\"" + (font.bold ? " font-weight=\"600\"" : "") + ">" + escape(shown) +
           (cut ? "…" : "") + "</text>\n";
}

void Svg::begin_tip(const std::string& tip) { body_ += "<g><title>" + escape(tip) + "</title>\n"; }

void Svg::end_tip() { body_ += "</g>\n"; }

std::string Svg::finish(double width, double height) const {
  const std::string size = number(width) + " " + number(height);
  return "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 " + size + "\" width=\"" +
         number(width) + "\" height=\"" + number(height) + "\" font-family=\"" + kFamily +
         "\">\n<rect width=\"100%\" height=\"100%\" fill=\"#f5f6f9\"/>\n" + body_ + "</svg>\n";
}

}  // namespace trireme
