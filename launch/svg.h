// SPDX-License-Identifier: Apache-2.0
// Shapes and text as SVG. Coordinates in pixels, y downwards.
#pragma once

#include <string>

namespace trireme {

// How text looks; sizes in pixels.
struct Font {
  double size = 12;
  bool bold = false;
  std::string colour = "#1f2430";
  const char* anchor = "start";  // start, middle or end
};

struct Box {
  double x = 0, y = 0, width = 0, height = 0;
};

class Svg {
 public:
  void rect(const Box& box, const std::string& fill, const std::string& border = "none",
            double radius = 0, double border_width = 1, bool dashed = false);
  void line(double x1, double y1, double x2, double y2, const std::string& colour, double width);
  // Pointing to the right, its tip at (x, y).
  void arrow_head(double x, double y, const std::string& colour);
  // At most `room` pixels wide: what is longer ends with an ellipsis.
  void text(double x, double y, const std::string& text, const Font& font, double room = 1e9);
  // Between these everything shows `tip` under the pointer.
  void begin_tip(const std::string& tip);
  void end_tip();

  std::string finish(double width, double height) const;

 private:
  std::string body_;
};

// An estimate that is rather too large: fonts differ.
double text_width(const std::string& text, const Font& font);

// Between white (0) and the colour itself (1). REQUIRES: "#rrggbb".
std::string tint(const std::string& colour, double strength);

// "12", "3.4", "0.05": three figures at most.
std::string short_number(double value);

}  // namespace trireme
