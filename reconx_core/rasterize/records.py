"""Memory layout of a projected Gaussian: a record of 16 floats, one cache line and one SIMD vector."""

# Pixel position, conic (A, B; B, C) and opacity; the ellipse outside which its alpha is below MIN_ALPHA: half size of its
# bounding box, slope and flatness of its two spans (see tiles.ellipse_span); colour and depth.
X, Y, A, B, C, OPACITY, EXTENT_X, EXTENT_Y, SLOPE_X, SLOPE_Y, FLAT_X, FLAT_Y, RED, GREEN, BLUE, DEPTH = range(16)
RECORD = 16

# Output of the blending's backward pass for the projection's, per (Gaussian, tile): sums over pixels of the exponent's
# gradient times 1, dx, dy, dx^2, dx dy, dy^2, and of the gradients of red, green, blue and depth.
SLOT = 16
