"""What all figures share."""

# inches
WIDTH = 10.4
INK = "#1B2330"
