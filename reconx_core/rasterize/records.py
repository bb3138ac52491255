"""The layout of a projected Gaussian: one record of 16 floats, which is a cache line and one vector."""

# Pixel position, conic (A, B; B, C) and opacity; the ellipse outside which it is too faint to count: half size of its
# bounding box, slope and flatness of its two spans (see tiles.ellipse_span); colour and depth.
X, Y, A, B, C, OPACITY, EXTENT_X, EXTENT_Y, SLOPE_X, SLOPE_Y, FLAT_X, FLAT_Y, RED, GREEN, BLUE, DEPTH = range(16)
RECORD = 16

# What the backward pass of the pixels hands to the projection's, per (Gaussian, tile): sums over pixels of the exponent's
# gradient times 1, dx, dy, dx^2, dx dy, dy^2, and of the gradients of red, green, blue and depth.
SLOT = 16
