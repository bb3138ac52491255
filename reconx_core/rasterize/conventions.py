"""The numbers that decide what a set of Gaussians looks like, as in gsplat 1.5.3, so that its scenes render the same here."""

TILE = 16  # pixels
NEAR = 0.01  # Gaussians closer than this to the camera plane are not drawn
FAR = 1e10
SCREEN_BLUR = 0.3  # pixel^2 added to the diagonal of every projected covariance (eps2d)
MIN_ALPHA = 1 / 255  # a weaker contribution to a pixel is skipped
MAX_ALPHA = 0.999  # gsplat's main branch says 0.99
MIN_TRANSMITTANCE = 1e-4  # a pixel is finished before it lets through less than this
VIEW_MARGIN = 0.15  # the projection is linearised at most this share of the image outside of it

# Real spherical harmonics, signs as in the INRIA PLY.
SH_0 = 0.2820947917738781
SH_1 = 0.48860251190292
SH_2 = (1.092548430592079, 0.9461746957575601, 0.3153915652525201, 0.5462742152960395)
SH_3 = (0.5900435899266435, 1.445305721320277, 2.285228997322329, 0.4570457994644658, 1.865881662950577, 1.119528997770346)
